"""What both Faust transports have in common."""

import asyncio
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from faust.transport.utils import DefaultSchedulingStrategy
from faust.types import TP

from processor.log import faust_transport
from processor.log.embedded import transport
from processor.log.embedded.log import Log
from processor.log.errors import LogUnavailable
from processor.log.faust_library import ProducerSendError
from processor.log.records import Append, TopicPartition
from tests.support.patience import PATIENCE, until

EVENTS_0 = TP("spendstream.events", 0)
EVENTS_1 = TP("spendstream.events", 1)


class Consumer(transport.Consumer):
    """One that has just begun to fetch, with what it knows of its partition."""

    def __init__(self, *, stops: bool) -> None:
        self.app: Any = SimpleNamespace(should_stop=stops)
        self._read_offset = {}
        self._committed_offset = {EVENTS_0: None}

    async def seek_to_committed(self) -> dict[TP, int]:
        return {EVENTS_0: 200}

    def committed(self) -> dict[TP, int | None]:
        return dict(self._committed_offset)


@pytest.mark.parametrize("stops", [False, True])
async def test_a_fetch_that_ends_while_the_worker_stops_does_not_keep_the_last_commit_from_being_made(
    stops: bool,
) -> None:
    """Faust seeks then, and would take the offset at which the partition goes on for one that is committed."""
    consumer = Consumer(stops=stops)
    await consumer.perform_seek()
    assert consumer.committed() == {EVENTS_0: None if stops else 200}


class Fetching(transport.Consumer):
    """One that fetches of a log, as far as `getmany` needs it."""

    def __init__(self, data_dir: Path) -> None:
        app = MagicMock(client_only=False, consumer_generation_id=1, rebalancing=False, in_recovery=False)
        app.conf.ConsumerScheduler = DefaultSchedulingStrategy
        app.open_log = partial(Log, data_dir, create=False)
        made = MagicMock(app=app)
        nothing = MagicMock()
        super().__init__(made, nothing, on_partitions_revoked=nothing, on_partitions_assigned=nothing)
        self.assign({EVENTS_0})
        self.resume_flow()

    def assign(self, partitions: set[TP]) -> None:
        """Fetch these from their beginnings on."""
        self._assigned = partitions
        self._positions = dict.fromkeys(partitions, 0)
        self._set_active_tps(partitions)


async def test_what_was_fetched_of_a_partition_that_is_left_out_meanwhile_is_delivered(tmp_path: Path) -> None:
    """It was dropped, and the partition went on after it: the event store lost these messages."""
    log = Log(tmp_path)
    log.append([Append(TopicPartition(*EVENTS_0), [(None, b"%d" % number) for number in range(10)])], 1)
    consumer = Fetching(tmp_path)
    seen: list[int] = []
    async for _, message in consumer.getmany(timeout=1.0):
        seen.append(message.offset)
        if message.offset == 3:
            consumer.leave_out(EVENTS_0)
        if message.offset == 6:
            await consumer.go_on(EVENTS_0)
    log.append([Append(TopicPartition(*EVENTS_0), [(None, b"more")])], 2)
    async with asyncio.timeout(PATIENCE):
        async for _, message in consumer.getmany(timeout=1.0):
            seen.append(message.offset)
    assert seen == list(range(11))
    consumer.leave_out(EVENTS_0)
    log.append([Append(TopicPartition(*EVENTS_0), [(None, b"left out")])], 3)
    assert [each async for each in consumer.getmany(timeout=0.05)] == []
    log.close()


async def test_a_partition_that_goes_on_is_fetched_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While all were left out Faust slept for a second: the event store cut what it had in a third of that."""
    log = Log(tmp_path)
    log.append([Append(TopicPartition(*EVENTS_0), [(None, b"waits")])], 1)
    consumer = Fetching(tmp_path)
    monkeypatch.setattr(consumer, "sleep", MagicMock(side_effect=AssertionError("it sleeps")))
    consumer.leave_out(EVENTS_0)
    fetching = asyncio.ensure_future(_fetched(consumer))
    assert not (await asyncio.wait({fetching}, timeout=0.1))[0]
    await consumer.go_on(EVENTS_0)
    assert await asyncio.wait_for(fetching, PATIENCE) == []
    assert await asyncio.wait_for(_fetched(consumer), PATIENCE) == [0]
    log.close()


@pytest.mark.parametrize("wakes", ["the buffer was emptied", "a partition was assigned"])
async def test_a_partition_whose_buffer_was_full_is_fetched_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wakes: str
) -> None:
    """Faust slept for a second: a worker that was behind went through its queue in a part of that, and stood still."""
    log = Log(tmp_path)
    log.append([Append(TopicPartition(*EVENTS_0), [(None, b"waits")])], 1)
    consumer = Fetching(tmp_path)
    monkeypatch.setattr(consumer, "sleep", MagicMock(side_effect=AssertionError("it sleeps")))
    consumer.on_buffer_full(EVENTS_0)
    fetching = asyncio.ensure_future(_fetched(consumer))
    assert not (await asyncio.wait({fetching}, timeout=0.1))[0]
    if wakes == "the buffer was emptied":
        consumer.on_buffer_drop(EVENTS_0)
    else:
        consumer.assign({EVENTS_0})
    assert await asyncio.wait_for(fetching, PATIENCE) == []
    assert await asyncio.wait_for(_fetched(consumer), PATIENCE) == [0]
    log.close()


@pytest.mark.parametrize("is_full_first", [True, False])
async def test_a_partition_that_is_left_out_is_not_fetched_once_its_buffer_is_emptied(
    tmp_path: Path, is_full_first: bool
) -> None:
    """It was: what is behind a message that the worker cannot read was read through to the end of the log."""
    log = Log(tmp_path)
    log.append([Append(TopicPartition(*EVENTS_0), [(None, b"left out")])], 1)
    consumer = Fetching(tmp_path)
    if is_full_first:
        consumer.on_buffer_full(EVENTS_0)
    consumer.leave_out(EVENTS_0)
    if not is_full_first:
        consumer.on_buffer_full(EVENTS_0)
    consumer.on_buffer_drop(EVENTS_0)
    assert [each async for each in consumer.getmany(timeout=0.05)] == []
    await consumer.go_on(EVENTS_0)
    assert await asyncio.wait_for(_fetched(consumer), PATIENCE) == [0]
    log.close()


async def test_a_partition_whose_buffer_was_full_does_not_wait_for_another_that_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that reads the log waited for the others for half a second, whichever was emptied meanwhile."""
    monkeypatch.setattr(transport, "HELD", 2 * PATIENCE)
    log = Log(tmp_path, partitions=2)
    log.append([Append(TopicPartition(*EVENTS_0), [(None, b"waits")])], 1)
    consumer = Fetching(tmp_path)
    consumer.assign({EVENTS_0, EVENTS_1})
    consumer.on_buffer_full(EVENTS_0)
    fetching = asyncio.ensure_future(_fetched(consumer))
    assert not (await asyncio.wait({fetching}, timeout=0.2))[0]
    consumer.on_buffer_drop(EVENTS_0)
    assert await asyncio.wait_for(fetching, PATIENCE) == [0]
    log.close()


@pytest.mark.parametrize("full_first", [True, False])
async def test_a_partition_that_is_left_out_stays_so_when_its_buffer_is_emptied(
    tmp_path: Path, *, full_first: bool
) -> None:
    """Faust fetched it again: nothing bounded what an event store that was behind had waiting."""
    log = Log(tmp_path)
    log.append([Append(TopicPartition(*EVENTS_0), [(None, b"left out")])], 1)
    consumer = Fetching(tmp_path)
    steps = [consumer.on_buffer_full, consumer.leave_out]
    for step in steps if full_first else reversed(steps):
        step(EVENTS_0)
    consumer.on_buffer_drop(EVENTS_0)
    assert [each async for each in consumer.getmany(timeout=0.1)] == []
    await consumer.go_on(EVENTS_0)
    assert await asyncio.wait_for(_fetched(consumer), PATIENCE) == [0]
    log.close()


async def _fetched(consumer: Fetching) -> list[int]:
    return [message.offset async for _, message in consumer.getmany(timeout=2 * PATIENCE)]


async def test_who_waits_for_records_asks_whether_anything_was_committed_and_reads_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path)
    consumer = Fetching(tmp_path)
    reads: list[int] = []
    read = Log.read

    def counted(self: Log, *args: Any, **options: Any) -> list[Any]:
        reads.append(args[1])
        return read(self, *args, **options)

    monkeypatch.setattr(Log, "read", counted)
    assert [each async for each in consumer.getmany(timeout=0.3)] == []
    assert reads == [0]
    waiting = asyncio.ensure_future(anext(consumer.getmany(timeout=10.0)))
    await asyncio.sleep(0.2)
    log.append([Append(TopicPartition("spendstream.rows", 0), [(None, b"of another topic")])], 1)
    await until(lambda: len(reads) == 2)
    await asyncio.sleep(0.2)
    assert not waiting.done()
    assert reads == [0, 0]
    log.append([Append(TopicPartition(*EVENTS_0), [(None, b"new")])], 2)
    _, message = await asyncio.wait_for(waiting, PATIENCE)
    assert (message.offset, reads) == (0, [0, 0, 0])
    log.close()


async def test_whatever_else_the_logs_thread_is_needed_for_does_not_wait_for_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "HELD", 2 * PATIENCE)
    Log(tmp_path).close()
    consumer = Fetching(tmp_path)
    fetching = asyncio.ensure_future(anext(consumer.getmany(timeout=2 * PATIENCE)))
    for _ in range(3):
        await asyncio.sleep(0.02)
        assert await asyncio.wait_for(consumer.highwaters(EVENTS_0), PATIENCE) == {EVENTS_0: 0}
        assert not fetching.done()
    consumer.stop_flow()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(fetching, PATIENCE)


class Producer(faust_transport.Producer):
    """One whose log takes nothing until it is there again."""

    def __init__(self) -> None:
        self._unsent = []
        self._sending = None
        self.is_away = asyncio.Event()
        self.is_there = False

    async def append(self, appends: list[Append]) -> list[int]:
        if self.is_there:
            return [7 for _ in appends]
        self.is_away.set()
        await asyncio.sleep(0.01)
        raise LogUnavailable("the disk is full")


async def test_what_is_sent_after_a_sender_was_cancelled_while_the_log_was_away_is_appended() -> None:
    """The task that appends ended with an error of asyncio, and nothing was sent any more."""
    producer = Producer()
    sending = asyncio.ensure_future(producer.send_and_wait(EVENTS_0.topic, None, b"", 0, None, None))
    await producer.is_away.wait()
    sending.cancel()
    other = await producer.send(EVENTS_0.topic, None, b"", 0, None, None)
    with pytest.raises(ProducerSendError):
        await asyncio.wait_for(asyncio.ensure_future(other), PATIENCE)
    producer.is_there = True
    found = await asyncio.wait_for(producer.send_and_wait(EVENTS_0.topic, None, b"", 0, None, None), PATIENCE)
    assert found.offset == 7
