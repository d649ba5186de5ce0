"""What the topic says of a user is what `GET /v1/users` says, character by character."""

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import parse_timestamp
from processor.core.tables.row_sums import RowSums
from processor.users_topic.row_json import user_row
from server.reads import read_json

FIRST, LAST = parse_timestamp("0001-01-01T00:00:00Z"), parse_timestamp("9999-12-31T23:59:59.999999Z")
counts = st.integers(0, 2**70)
times = st.integers(FIRST, LAST)


@given(
    project=st.text(max_size=8),
    user=st.none() | st.text(min_size=1, max_size=8),
    sums=st.tuples(*[counts] * 7),
    first=times,
    last=times,
)
def test_it_is_the_row_of_the_list_and_its_project(
    project: str, user: str | None, sums: tuple[int, ...], first: int, last: int
) -> None:
    said = RowSums(*[*sums, first, last])
    listed = read_json.encode({"project_id": project, **read_json.user_row(user, said)})
    assert user_row(project, user, said) == listed


def test_a_row() -> None:
    said = RowSums(2, 1, 576, 128, 0, 3_413_000_000, 0, 1_776_679_200_000_000, 1_776_679_201_200_000)
    assert user_row("default", "u1", said) == (
        b'{"project_id":"default","user_id":"u1","requests":2,"errors":1,"input_tokens":576,"output_tokens":128,'
        b'"cached_tokens":0,"cost_usd":0.003413,"unpriced":0,"first_seen":"2026-04-20T10:00:00.000Z",'
        b'"last_seen":"2026-04-20T10:00:01.200Z"}'
    )
    nothing = json.loads(user_row("default", None, RowSums()))
    assert (nothing["user_id"], nothing["first_seen"], nothing["last_seen"]) == (None, None, None)
    assert msgspec.json.decode(user_row("default", "ü\n日", said))["user_id"] == "ü\n日"
