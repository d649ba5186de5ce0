"""What an API does when the log gives offsets that were used before: it acknowledges nothing at them."""

import asyncio
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from processor.core.events.message import build_blocks
from processor.core.events.source import Source
from processor.log import losses
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS
from server.errors import Refused
from server.ingest.acknowledged import Acknowledged
from server.ingest.log_publisher import LogPublisher
from server.ingest.publisher import Parts
from tests.support.publisher import publish as append
from tests.support.tables import NOON, Usage, columns

E0 = TopicPartition(EVENTS, 0)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "data")
    made.append([Append(E0, [(None, b"m")] * 5)], NOON)
    yield made
    made.close()


def parts(number: int) -> Parts:
    source = Source("org", "project", "key", NOON, "json", "partial")
    return build_blocks(source, columns([Usage(number)]), 1)


def lose_end(log: Log, end: int) -> None:
    """The only partition with so many records is that of the events."""
    with closing(apsw.Connection(str(log.path))) as db:
        db.execute("DELETE FROM record WHERE id & 0xffffffffff >= ?", (end,))
        db.execute("UPDATE partition SET next = ? WHERE topic = ?", (end, EVENTS))


def reported(log: Log) -> list[tuple[str, int, int, bool]]:
    return [(each.topic, each.start, each.end, each.counted) for each in losses.read(log)]


async def publish(publisher: LogPublisher, number: int) -> int:
    return (await append(publisher, parts(number)))[0]


async def test_nothing_is_acknowledged_at_an_offset_that_the_tables_have(log: Log) -> None:
    held = {0: 6}
    publisher = LogPublisher(LogAddress(log.path.parent), lambda: NOON, 1 << 20, contained=lambda: held)
    for number in (5, 6):  # appended there all the same, and never counted: the worker appends them once more
        with pytest.raises(Refused, match=rf"lost its end \(partition 0 at {number}\)") as refused:
            await publish(publisher, number)
        assert refused.value.retryable
    assert await publish(publisher, 6) == 7
    assert reported(log) == []
    await asyncio.to_thread(publisher.close)


async def test_a_worker_that_is_quicker_than_the_answer_is_no_loss(log: Log) -> None:
    held = {0: 4}

    def clock() -> int:
        """Asked for when the append begins: the tables contain it before anybody is told."""
        held[0] += 1
        return NOON

    publisher = LogPublisher(LogAddress(log.path.parent), clock, 1 << 20, contained=lambda: held)
    held[0] = 4
    assert [await publish(publisher, number) for number in range(3)] == [5, 6, 7]
    assert held == {0: 7}
    await asyncio.to_thread(publisher.close)


async def test_what_was_acknowledged_and_is_gone_is_reported_by_the_next_process(log: Log, tmp_path: Path) -> None:
    marks = tmp_path / "acknowledged-0"
    address = LogAddress(log.path.parent)
    first = LogPublisher(address, lambda: NOON, 1 << 20, marks=marks)
    assert await publish(first, 1) == 5
    await asyncio.to_thread(first.close)
    lose_end(log, 3)

    second = LogPublisher(address, lambda: NOON, 1 << 20, settled=lambda: {0: 3}, marks=marks)
    second.check_acknowledged()
    assert reported(log) == [("acknowledged", 4, 6, False)]
    assert await publish(second, 1) == 3, "it is reported once; from then on there is nothing to compare with"
    await asyncio.to_thread(second.close)


async def test_a_process_notices_it_at_its_next_append(log: Log, tmp_path: Path) -> None:
    publisher = LogPublisher(LogAddress(log.path.parent), lambda: NOON, 1 << 20, settled=lambda: {0: 4})
    assert [await publish(publisher, number) for number in range(3)] == [5, 6, 7]
    lose_end(log, 6)
    with pytest.raises(Refused, match="lost its end"):
        await publish(publisher, 3)
    assert reported(log) == [("acknowledged", 6, 8, False)]
    assert await publish(publisher, 3) == 7
    await asyncio.to_thread(publisher.close)


def test_marks_outlive_the_process_and_belong_to_one_log(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    marks = Acknowledged(path, "abcd1234", 2)
    assert (marks[0], marks[1]) == (-1, -1)
    marks.advance({0: 7})
    marks.advance({0: 5, 1: 1})
    again = Acknowledged(path, "abcd1234", 2)
    assert (again[0], again[1]) == (7, 1)
    again.forget(0)
    assert Acknowledged(path, "abcd1234", 2)[0] == -1
    assert Acknowledged(path, "ffff1234", 2)[1] == -1
    assert Acknowledged(path, "ffff1234", 3)[1] == -1
    no_directory = Acknowledged(tmp_path / "none" / "marks", "ffff1234", 1)
    no_directory.advance({0: 3})
    assert no_directory[0] == 3
    path.write_bytes(struct.pack("<8s", b"ffff1234"))
    assert Acknowledged(path, "ffff1234", 3)[2] == -1
    assert Acknowledged(None, "ffff1234", 1)[0] == -1
