from hypothesis import given
from hypothesis import strategies as st

from processor.core.tables.row_sums import Totals
from server.reads import read_json
from server.reads.answers import UserRow

counts = st.integers(0, 2**70)
instants = st.none() | st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
rows = st.builds(
    UserRow,
    user_id=st.none() | st.text(max_size=20),
    totals=st.builds(Totals, counts, counts, counts, counts, counts, counts, counts),
    first_seen=instants,
    last_seen=instants,
)


@given(st.lists(rows, max_size=4))
def test_the_feeds_rows_are_those_of_every_other_answer(found: list[UserRow]) -> None:
    assert read_json.user_rows(found) == read_json.encode([read_json.user_row(row) for row in found])
