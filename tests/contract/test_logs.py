"""One suite for both logs: what the rest of the program may ask of one (processor/log/port.py)."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processor.log.address import LogAddress
from processor.log.errors import LogError, LogUnavailable, PartitionMismatch
from processor.log.kafka.config import KafkaAccess
from processor.log.port import LogWriter, scan
from processor.log.records import Append, Record, TopicPartition
from processor.log.tail import Tail
from processor.log.topics import CLAIMS, DIRECTORY, EVENTS, GROUP, ROWS
from tests.support.patience import PATIENCE
from tests.support.tables import NOON

E0, E1 = TopicPartition(EVENTS, 0), TopicPartition(EVENTS, 1)


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def address(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> LogAddress:
    if request.param == "embedded":
        return LogAddress(tmp_path)
    broker: Any = request.getfixturevalue("kafka")
    return LogAddress(tmp_path, KafkaAccess(broker.bootstrap, prefix=prefix))


@pytest.fixture
def log(address: LogAddress) -> Iterator[LogWriter]:
    opened = address.open(2, create=True)
    yield opened
    opened.close()


def test_a_log(log: LogWriter, address: LogAddress) -> None:
    """In one test: what comes later needs what came before."""
    assert log.partitions == 2
    assert log.topics()[EVENTS] == log.topics()[ROWS] == log.topics()[CLAIMS] == 2
    assert log.topics()[DIRECTORY] == 1
    kafka = address.kafka
    assert log.name_of(ROWS) == (ROWS if kafka is None else f"{kafka.prefix}rows")

    # appends give the offset of each one's first record, and reads find them in order
    assert log.append([Append(E0, [(None, b"a"), (b"k", b"b")]), Append(E1, [(None, b"c")])], NOON) == [0, 0]
    assert log.append([Append(E0, [(b"k", None)])], NOON + 1000) == [2]
    assert [(r.offset, r.key, r.value) for r in log.read(E0, 0)] == [(0, None, b"a"), (1, b"k", b"b"), (2, b"k", None)]
    assert [r.at for r in log.read(E0, 0)] == [NOON, NOON, NOON + 1000]
    assert [r.offset for r in log.read(E0, 1, 1)] == [1]
    assert [r.offset for r in log.read(E0, 2, 1)] == [2]
    assert log.read(E0, 3) == []
    assert [r.value for r in scan(log, E0, 0, 2, 1)] == [b"a", b"b"]
    assert (log.first(E0), log.end(E0), log.end(E1)) == (0, 3, 1)
    assert log.committed(GROUP, E0) is None
    log.probe(NOON)

    # a second one sees the same, under the same name
    other = address.open()
    assert (other.identity, other.salt, other.partitions) == (log.identity, log.salt, 2)
    assert [r.value for r in other.read(E1, 0)] == [b"c"]
    other.close()

    # a tail begins at the beginning and goes on with what comes
    tail = address.tail([E0, E1])
    seen: list[tuple[int, int]] = []
    deadline = time.monotonic() + PATIENCE
    while not tail.is_current or len(seen) < 4:
        assert time.monotonic() < deadline, seen
        seen += [(tp.partition, record.offset) for tp, records in tail.poll() for record in records]
    assert sorted(seen) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    log.append([Append(E1, [(None, b"d")])], NOON)
    while len(seen) < 5:
        assert time.monotonic() < deadline, seen
        seen += [(tp.partition, record.offset) for tp, records in tail.poll() for record in records]
    assert seen[4:] == [(1, 1)]

    # and knows until when it knows a partition: from before the question, and not without having handed it out
    assert wait_known(tail, E1, time.monotonic()) == []
    log.append([Append(E1, [(None, b"e")])], NOON)
    at = time.monotonic()
    time.sleep(1)  # as a process that stood still
    assert tail.known_at(E1) < at
    assert [record.value for record in wait_known(tail, E1, at)] == [b"e"]
    tail.close()
    assert address.ends([E0, E1])() == {0: 2, 1: 2}

    # another number of partitions is refused, and says what to do
    with pytest.raises(PartitionMismatch, match=r"has 2 partition\(s\), not 3.*export"):
        address.open(3, create=True)


def wait_known(tail: Tail, tp: TopicPartition, at: float) -> list[Record]:
    """Follow until all that was in a partition at a moment has been handed out; returns what of it was."""
    found: list[Record] = []
    deadline = time.monotonic() + PATIENCE
    while tail.known_at(tp) <= at:
        assert time.monotonic() < deadline
        found += [record for _, records in tail.poll() for record in records]
    return found


@pytest.mark.slow
def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="there is no log in"):
        LogAddress(tmp_path).open()
    with pytest.raises(LogUnavailable, match=r"no Kafka broker answers at 127\.0\.0\.1:9:"):
        LogAddress(tmp_path, KafkaAccess("127.0.0.1:9")).open()


def test_ends_are_those_of_after_the_look(address: LogAddress) -> None:
    """A look that appends is among the ends, however old both are."""
    log = address.open(2, create=True)
    is_over = False

    def look() -> int:
        return 0 if is_over else log.append([Append(E0, [(None, b"a")])], NOON)[0]

    noted, seen = address.ends_since([E0], look), set[int]()
    deadline = time.monotonic() + PATIENCE
    while len(seen) < 3:
        looked, ends = noted()
        assert ends == {0: looked}
        seen.add(looked)
        time.sleep(0.05)
        assert time.monotonic() < deadline
    is_over = True
