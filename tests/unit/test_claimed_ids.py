"""The ids of a message are the union of all records that name it, also where only some of them fit into memory."""

from collections.abc import Iterator
from random import Random

import numpy as np
import pytest

from processor.core.tables import dedupe
from processor.core.tables.dedupe import Claimed
from processor.event_store.claimed_ids import ClaimedIds
from processor.log.errors import LogUnavailable
from processor.log.records import Record, TopicPartition
from processor.log.topics import CLAIMS
from tests.support.examples import tries


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def keys_of(*numbers: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    return np.frombuffer(b"".join(map(key, numbers)), np.uint64).reshape(-1, 2)


class Topic:
    """Records of claims, with holes as a broker's transactions leave them."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.end = 0
        self.is_away = False

    def append(self, claimed: dict[int, list[int]]) -> None:
        found = [Claimed(offset, b"".join(map(key, ids)), b"") for offset, ids in claimed.items()]
        self.records.append(Record(self.end, 0, None, dedupe.encode_claims(found)))
        self.end += 1

    def read(self, tp: TopicPartition, offset: int, limit: int) -> list[Record]:
        assert tp == TopicPartition(CLAIMS, 3)
        if self.is_away:
            raise LogUnavailable("away")
        return [each for each in self.records if each.offset >= offset][:limit]


def test_a_late_record_that_could_not_be_read_is_read_at_the_next_try() -> None:
    """Else the rows of its message would be left out of the store, though the tables count them."""
    topic = Topic()
    topic.append({0: [1]})
    topic.append({3: [4]})
    topic.append({1: [2], 2: [3]})  # of a worker that has started again
    found = ClaimedIds(topic.read, 3, 0, 0, never, max_bytes=1)
    found.read_on()
    assert found.known_before(1) == 1
    found.forget(1)
    found.read_on()
    topic.is_away = True
    with pytest.raises(LogUnavailable):
        found.known_before(4)
    topic.is_away = False
    assert found.known_before(4) == 4
    assert found.kept(1, keys_of(2)).tolist() == [True]


def never(text: str) -> None:
    raise AssertionError(text)


def test_the_first_copy_of_each_claimed_id_is_kept() -> None:
    topic = Topic()
    topic.append({5: [1, 3], 7: [9, 8]})
    found = ClaimedIds(topic.read, 3, 0, 0, never)
    found.read_on()
    assert found.kept(5, keys_of(1, 2, 3, 1)).tolist() == [True, False, True, False]
    assert found.kept(7, keys_of(9, 8)).tolist() == [True, True]
    assert found.kept(6, keys_of(1)).tolist() == [False]
    assert (found.has_any(5), found.has_any(6)) == (True, False)


def test_a_damaged_record_is_reported_and_claims_nothing() -> None:
    topic = Topic()
    topic.records.append(Record(0, 0, None, b"junk"))
    reports: list[str] = []
    found = ClaimedIds(topic.read, 3, 0, 0, reports.append)
    found.read_on()
    assert "spendstream.claims:3:0" in reports[0]


def flushes(chance: Random) -> Iterator[tuple[dict[int, list[int]], int]]:
    """Flushes of a worker that starts again here and there: the claims of each, and how far it has committed then."""
    message, committed, last = 0, 0, 60
    ids = {number: [100 * number + n for n in range(chance.randrange(4))] for number in range(last)}
    while committed < last:
        if chance.random() < 0.2:
            message = committed
        end = min(last, message + chance.randint(1, 5))
        yield {number: ids[number] for number in range(message, end) if ids[number]}, committed
        message = end
        if chance.random() < 0.7:
            committed = end
    yield {}, committed


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("room", [1, 300, 1500, 1 << 20])
def test_what_is_known_is_the_union_of_all_records(seed: int, room: int) -> None:
    chance = Random(seed)
    topic, expected, reached, committed = Topic(), dict[int, set[int]](), 0, 0
    found = ClaimedIds(topic.read, 3, 0, 0, never, room)
    for claimed, committed in flushes(chance):
        if claimed:
            topic.append(claimed)
        topic.end += chance.randrange(2)
        for offset, ids in claimed.items():
            expected.setdefault(offset, set()).update(ids)
        if chance.random() < 0.4:
            found.read_on()
            known = found.known_before(committed)
            reached = check(found, chance.randint(reached, max(known, reached)), reached, expected)
            if chance.random() < 0.2:  # another store goes on
                found = ClaimedIds(topic.read, 3, found.claims_from(reached), reached, never, room)
    for _ in range(200):
        found.read_on()
        reached = check(found, found.known_before(committed), reached, expected)
    assert reached == committed == 60


def check(found: ClaimedIds, until: int, reached: int, expected: dict[int, set[int]]) -> int:
    for offset in range(reached, until):
        ids = sorted(expected.get(offset, ()))
        assert found.kept(offset, keys_of(*ids, 5)).tolist() == [True] * len(ids) + [False]
        assert found.has_any(offset) == bool(ids)
    found.forget(until)
    return max(until, reached)


@pytest.mark.parametrize("seed", range(tries(200)))
def test_the_quick_way_to_the_kept_rows_says_what_the_slow_one_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages with copies of earlier events and of their own, claims in their order, in another, or of more ids."""
    chance = Random(seed)
    ids = [chance.randrange(chance.choice([5, 40, 1000])) for _ in range(chance.randrange(1, 60))]
    claimed = [each for each in dict.fromkeys(ids) if chance.random() < chance.choice([0.5, 0.95, 1])]
    if chance.random() < 0.2:
        chance.shuffle(claimed)
    if chance.random() < 0.1:
        claimed.append(5000)
    topic = Topic()
    topic.append({0: claimed} if claimed else {})
    found = ClaimedIds(topic.read, 3, 0, 0, never)
    found.read_on()
    compiled = found.kept(0, keys_of(*ids))
    monkeypatch.setattr("processor.event_store.claimed_ids.kernel", None)
    quick = found.kept(0, keys_of(*ids))
    monkeypatch.setattr("processor.event_store.claimed_ids.FEW", -1)
    slow = found.kept(0, keys_of(*ids))
    left = set(claimed)
    expected = []
    for each in ids:
        expected.append(each in left)
        left.discard(each)
    assert compiled.tolist() == quick.tolist() == slow.tolist() == expected
