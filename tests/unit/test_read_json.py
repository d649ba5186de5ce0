from hypothesis import given
from hypothesis import strategies as st

from processor.core.tables.row_sums import RowSums
from processor.view.listing import UserSums
from server.reads import read_json

counts = st.integers(0, 2**70)
instants = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
sums = st.builds(RowSums, counts, counts, counts, counts, counts, counts, counts, instants, instants)
users = st.builds(UserSums, st.none() | st.text(max_size=20), sums)


@given(st.lists(users, max_size=4))
def test_the_feeds_rows_are_those_of_every_other_answer(found: list[UserSums]) -> None:
    assert read_json.user_rows(found) == read_json.encode([read_json.user_row(*user) for user in found])
