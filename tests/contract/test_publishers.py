"""What every publisher promises: the fake of the unit tests and the real one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from processor.core.events import message
from processor.core.events.message import build_blocks
from processor.core.events.source import Source
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.errors import LogUnavailable
from processor.log.records import TopicPartition
from processor.log.topics import EVENTS
from server import position
from server.errors import Refused
from server.ingest.log_publisher import LogPublisher
from server.ingest.publisher import NotPublished, Outcome, Parts, Publisher
from tests.support.messages import ids_by_request, ids_of
from tests.support.patience import PATIENCE
from tests.support.publisher import FakePublisher, publish
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
        offsets = await publish(port, parts, 100)
        assert offsets.keys() == parts.keys()
        for partition, offset in offsets.items():
            assert ids_of(parts[partition]) in ids_by_request(read(partition)[offset])
        assert position.decode(port.identity, position.encode(port.identity, offsets)) == offsets


async def test_concurrent_requests_are_all_answered_with_their_own_place(publisher: tuple[Publisher, Read]) -> None:
    port, read = publisher
    requests = [parts_of(*range(start, start + 5)) for start in range(0, 500, 5)]
    answers = await asyncio.gather(*(publish(port, parts, 50) for parts in requests))
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
        await publish(port, parts_of(1))
    assert (refused.value.reason, refused.value.retry_after) == ("unavailable", 1)
    assert refused.value.retryable
    if isinstance(port, FakePublisher):
        port.available = True
    else:
        assert isinstance(port, LogPublisher)
        assert port.failure
        monkeypatch.setattr(Log, "append", append)
    assert await publish(port, parts_of(1))
    if isinstance(port, LogPublisher):
        assert port.failure is None


async def test_the_outcome_comes_once_and_never_while_a_batch_is_submitted(publisher: tuple[Publisher, Read]) -> None:
    port, _ = publisher
    outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
    for number in range(5):
        port.submit(parts_of(number, partitions=1), 10, outcomes.put_nowait)
    assert outcomes.empty()
    async with asyncio.timeout(PATIENCE):
        found = [await outcomes.get() for _ in range(5)]
    await publish(port, parts_of(9, partitions=1))
    assert outcomes.empty()
    assert all(isinstance(outcome, dict) for outcome in found)


async def test_a_callback_that_fails_keeps_no_other_batch_from_its_outcome(publisher: tuple[Publisher, Read]) -> None:
    port, _ = publisher
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def fail(_: Outcome) -> None:
        raise RuntimeError("of the test")

    port.submit(parts_of(1, partitions=1), 10, fail)
    assert await publish(port, parts_of(2, partitions=1))
    assert [str(context["exception"]) for context in failures] == ["of the test"]


def _fail(*_: object) -> list[int]:
    raise LogUnavailable("disk full")


async def test_more_than_the_bound_is_refused_and_one_is_always_taken(tmp_path: Path) -> None:
    """What waits is bounded in bytes until it has an outcome, whichever of the turns of the loop brought it."""
    Log(tmp_path).close()
    real = LogPublisher(LogAddress(tmp_path), lambda: NOON, 100)
    parts = [parts_of(number, partitions=1) for number in range(5)]
    refused: list[Outcome] = []
    try:
        async with asyncio.TaskGroup() as group:
            large = group.create_task(publish(real, parts[0], 500))
            await asyncio.sleep(0)
            with pytest.raises(NotPublished, match="Too many events wait for the disk"):
                real.submit(parts[1], 1, refused.append)
        async with asyncio.TaskGroup() as group:
            small = [group.create_task(publish(real, parts[number], size)) for number, size in ((2, 60), (3, 40))]
            await asyncio.sleep(0)
            with pytest.raises(NotPublished):
                real.submit(parts[4], 1, refused.append)
    finally:
        await asyncio.to_thread(real.close)
    assert [each.result() for each in (large, *small)] == [{0: 0}, {0: 1}, {0: 1}], "a turn of the loop is one message"
    assert not refused
