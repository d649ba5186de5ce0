"""What every publisher promises: the fake of the unit tests and the real one."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from processor.core.events import message
from processor.core.events.message import build_blocks
from processor.core.events.source import Source
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.errors import LogUnavailable
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS
from server import position
from server.errors import Refused
from server.ingest.log_publisher import LogPublisher
from server.ingest.publisher import Parts, Publisher
from tests.support.messages import ids_by_request, ids_of
from tests.support.publisher import FakePublisher
from tests.support.tables import NOON, Usage, columns

Read = Callable[[int], list[bytes]]


@pytest.fixture(params=["fake", "embedded"])
async def publisher(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Publisher, Read]]:
    if request.param == "fake":
        fake = FakePublisher(partitions=2)
        yield fake, lambda partition: fake.messages[partition]
        return
    log = Log(tmp_path, partitions=2)
    real = LogPublisher(LogAddress(tmp_path), lambda: NOON, 1 << 20)
    yield real, lambda partition: [record.value or b"" for record in log.read(TopicPartition(EVENTS, partition), 0)]
    await asyncio.to_thread(real.close)
    log.close()


def parts_of(*ids: int, partitions: int = 2) -> Parts:
    source = Source("org", "project", "key", NOON, "json", "partial")
    return build_blocks(source, columns(map(Usage, ids)), partitions)


async def test_events_are_in_the_log_where_the_answer_says(publisher: tuple[Publisher, Read]) -> None:
    port, read = publisher
    assert port.partitions == 2
    for start in range(0, 60, 20):
        parts = parts_of(*range(start, start + 20))
        offsets = await port.publish(parts, 100)
        assert offsets.keys() == parts.keys()
        for partition, offset in offsets.items():
            assert ids_of(parts[partition]) in ids_by_request(read(partition)[offset])
        assert position.decode(port.identity, position.encode(port.identity, offsets)) == offsets


async def test_concurrent_requests_are_all_answered_with_their_own_place(publisher: tuple[Publisher, Read]) -> None:
    port, read = publisher
    requests = [parts_of(*range(start, start + 5)) for start in range(0, 500, 5)]
    answers = await asyncio.gather(*(port.publish(parts, 50) for parts in requests))
    for parts, offsets in zip(requests, answers, strict=True):
        for partition, offset in offsets.items():
            assert ids_of(parts[partition]) in ids_by_request(read(partition)[offset])
    assert sum(len(message.decode(value)) for p in (0, 1) for value in read(p)) == 500


async def test_a_log_that_is_away_is_a_retryable_refusal_and_comes_back(
    publisher: tuple[Publisher, Read], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, _ = publisher
    append = Log.append
    if isinstance(port, FakePublisher):
        port.available = False
    else:
        monkeypatch.setattr(Log, "append", _fail)
    with pytest.raises(Refused) as refused:
        await port.publish(parts_of(1), 10)
    assert (refused.value.reason, refused.value.retry_after) == ("unavailable", 1)
    assert refused.value.retryable
    if isinstance(port, FakePublisher):
        port.available = True
    else:
        assert isinstance(port, LogPublisher)
        assert port.failure
        monkeypatch.setattr(Log, "append", append)
    assert await port.publish(parts_of(1), 10)
    if isinstance(port, LogPublisher):
        assert port.failure is None


async def test_a_caller_that_is_cancelled_is_told_what_became_of_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the write takes: until then nobody may count on it, nor on its not being there."""
    Log(tmp_path, partitions=1).close()
    port = LogPublisher(LogAddress(tmp_path), lambda: NOON, 1 << 20)
    may_go, append = threading.Event(), Log.append

    def slow(log: Log, appends: Sequence[Append], at: int) -> list[int]:
        may_go.wait()
        return append(log, appends, at)

    monkeypatch.setattr(Log, "append", slow)
    told: asyncio.Queue[dict[int, int] | None] = asyncio.Queue()
    publishing = asyncio.create_task(port.publish(parts_of(1, partitions=1), 10, told.put_nowait))
    await asyncio.sleep(0.05)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert told.empty()
    may_go.set()
    async with asyncio.timeout(10):
        assert await told.get() == {0: 0}
    monkeypatch.setattr(Log, "append", _fail)
    failing = asyncio.create_task(port.publish(parts_of(2, partitions=1), 10, told.put_nowait))
    await asyncio.sleep(0)
    failing.cancel()
    async with asyncio.timeout(10):
        assert await told.get() is None
    monkeypatch.setattr(Log, "append", append)
    await asyncio.to_thread(port.close)


async def test_a_caller_that_is_cancelled_as_its_batch_is_decided_is_told_too(tmp_path: Path) -> None:
    Log(tmp_path, partitions=1).close()
    port = LogPublisher(LogAddress(tmp_path), lambda: NOON, 1 << 20)
    told: asyncio.Queue[dict[int, int] | None] = asyncio.Queue()
    publishing = asyncio.create_task(port.publish(parts_of(1, partitions=1), 10, told.put_nowait))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    time.sleep(0.5)  # noqa: ASYNC251 - the outcome waits for the loop meanwhile
    asyncio.get_running_loop().call_soon(publishing.cancel)  # behind the outcome, before the task goes on
    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert told.get_nowait() == {0: 0}
    await asyncio.to_thread(port.close)


def _fail(*_: object) -> list[int]:
    raise LogUnavailable("disk full")
