import uuid

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from processor.core.partitioning import U64, partitions_of
from processor.core.tables.dedupe import claim_keys, project_pad, resolve
from tests.support.dict_index import DictIndex


def halves(raw: bytes) -> U64:
    return np.frombuffer(raw, "<u8").reshape(-1, 2)


def ids(*numbers: int) -> U64:
    return halves(b"".join(uuid.UUID(int=number, version=4).bytes for number in numbers))


def test_the_partition_of_an_id_never_changes() -> None:
    raw = (
        uuid.UUID("550e8400-e29b-41d4-a716-446655440001").bytes
        + uuid.UUID("f47ac10b-58cc-4372-a567-0e02b2c3d479").bytes
    )
    assert partitions_of(halves(raw), 1).tolist() == [0, 0]
    assert partitions_of(halves(raw), 7).tolist() == [5, 3]
    assert partitions_of(halves(raw), 1024).tolist() == [153, 229]


def test_partitions_are_even() -> None:
    raw = b"".join(uuid.uuid4().bytes for _ in range(4000))
    counts = np.bincount(partitions_of(halves(raw), 4), minlength=4)
    assert counts.min() > 850


def test_the_same_id_in_two_projects_is_two_keys() -> None:
    raw = ids(1)
    salt = b"s" * 32
    first, second = claim_keys(raw, project_pad("a", salt)), claim_keys(raw, project_pad("b", salt))
    assert (first != second).any()
    assert (claim_keys(raw, project_pad("a", salt)) == first).all()
    assert (project_pad("a", b"t" * 32) != project_pad("a", salt)).any()


def test_the_first_copy_wins_also_inside_a_message() -> None:
    keys = claim_keys(ids(1, 2, 1, 3, 2), project_pad("p", b"salt"))
    digests = np.array([10, 20, 11, 30, 20], np.uint64)
    fresh, conflicting = resolve(DictIndex(), keys, digests, 5)
    assert fresh.tolist() == [True, True, False, True, False]
    assert conflicting.tolist() == [False, False, True, False, False]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=8), min_size=1, max_size=8
    ),
    st.data(),
)
def test_a_replay_decides_as_the_first_time(messages: list[list[tuple[int, int]]], data: st.DataObject) -> None:
    pad = project_pad("p", b"salt")
    index = DictIndex()

    def play(offset: int) -> tuple[list[bool], list[bool]]:
        numbers, digests = zip(*messages[offset], strict=True)
        fresh, conflicting = resolve(index, claim_keys(ids(*numbers), pad), np.array(digests, np.uint64), offset)
        return fresh.tolist(), conflicting.tolist()

    first = [play(offset) for offset in range(len(messages))]
    assert sum(sum(fresh) for fresh, _ in first) == len({number for message in messages for number, _ in message})
    for _ in range(3):
        start = data.draw(st.integers(0, len(messages) - 1))
        assert [play(offset) for offset in range(start, len(messages))] == first[start:]
