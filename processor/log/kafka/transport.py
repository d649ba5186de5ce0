"""The Faust transport over Kafka: `spendstream-kafka://`, with librdkafka's consumer group behind it.

The group assigns only partitions of the events topic, to static members; the changelog partition of the same number
goes with it. All calls of the consumer, and so the group's callbacks, are made on one thread. Before a partition is
given up its changes are flushed and its offset is committed. Its next owner fences the earlier one, so that neither a
stopped nor a slow owner can write to the changelog any more.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol, cast

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as Assigned

from processor import restart
from processor.log import faust_transport
from processor.log.errors import DamagedRecord, LogUnavailable
from processor.log.faust_library import TP
from processor.log.faust_library import transport as base
from processor.log.faust_transport import by_partition
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.log import record_of, sound_records
from processor.log.kafka.writer import Fenced, PartitionWriter
from processor.log.records import Append
from processor.log.topics import EVENTS, GROUP
from processor.structured_log import get_logger
from processor.wall_clock import now

FETCH_RECORDS: Final = 64
FETCH_WAIT: Final = 0.02
FULL_WAIT: Final = 0.005
IDLE: Final = 0.1
"""Seconds without a fetch after which the group's callbacks are served nevertheless."""

MAX_STASH: Final = 128
"""Most records that are kept while Faust is not ready for them; with more, nothing is fetched."""

PATIENCE: Final = 10.0
EXIT_FENCED: Final = 70

LOOK_AGAIN: Final = 5.0
"""Seconds between two tries to read a damaged record: another replica may have it undamaged."""


class StateHolder(Protocol):
    """The keeper of the partitions' state, found as `app.spendstream` on the Faust app, which makes its consumer."""

    access: KafkaAccess
    counts: dict[str, int]
    """topic -> partitions"""
    instance: str
    """The process's name in its group."""
    writers: "Writers"
    topics: tuple[str, ...]
    """The topics whose partitions are assigned with those of the events; the events are one of them."""

    async def bring(self, partitions: set[int]) -> None:
        """Become the only owner of these partitions and load all of their state."""
        ...

    async def release(self, partitions: set[int]) -> Mapping[int, int]:
        """Make durable what these partitions have applied and give them up; return partition -> next offset to read."""
        ...

    async def drop(self, partitions: set[int]) -> None:
        """Drop partitions that may belong to another worker by now."""
        ...


class Consumer(faust_transport.Consumer):
    """A member of the group that the Faust app is named after.

    A partition whose next record is damaged is not read any further until that record can be read.
    """

    _topic: str = EVENTS
    """The name of the events topic on the cluster."""
    _damaged: Mapping[int, tuple[int, float]] = MappingProxyType({})
    """Partition with a damaged next record -> its offset, and when it is tried again (monotonic seconds)."""
    _floors: Mapping[int, int] = MappingProxyType({})
    """Partition that had one -> its offset: all before it has been delivered."""
    _not_read: frozenset[TP] = frozenset()
    """Partitions that are left out, as far as this thread knows: `_left_out` changes on the event loop, when it may."""
    _going_on: frozenset[TP] = frozenset()
    """Those that this thread is to go on with; of the event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app: Any = self.app
        self._holder: StateHolder = app.spendstream
        self.counts = dict(self._holder.counts)
        self._topic = self._holder.access.wire(EVENTS)
        self._client: Client | None = None
        self._commits = ThreadPoolExecutor(1, "log-commits")
        self._turn = asyncio.Lock()
        self._stash: deque[tuple[TP, Any]] = deque()
        self._paused = False
        self._epoch = 0
        """Counts seeks: what was fetched before one is not delivered after it."""
        self._fetched_at = 0.0
        self._ends: dict[TP, int] = {}
        self._positions: dict[TP, int] = {}
        """Partition -> the least offset of its next message, since the last seek."""
        self._leaving = False

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group. Returns at once: assignments come when they come."""
        if self._client is None:
            self._running = asyncio.get_running_loop()
            await self._call(self._join)
            self.add_future(self._serve())

    def _join(self) -> None:
        group = cast(Any, self.app).conf.id
        self._client = Client(self._holder.access.member(group, self._holder.instance))
        self._client.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    async def _serve(self) -> None:
        """Serve the group's callbacks, which run inside of a fetch, while Faust does not fetch."""
        while not self.should_stop:
            await asyncio.sleep(IDLE)
            if time.monotonic() - self._fetched_at > IDLE and not self.should_stop:
                await self._call(self._serve_once)

    # --- the group's callbacks, on the consumer's thread ------------------------------------------------------------

    def _used(self, partitions: Iterable[Assigned]) -> list[Assigned]:
        """The group hands out partitions that an administrator has added, too: no event is in them."""
        return [found for found in partitions if found.partition < self.counts[EVENTS]]

    def _on_assign(self, client: Client, partitions: list[Assigned]) -> None:
        partitions = self._used(partitions)
        for found in partitions:
            self._positions.pop(TP(EVENTS, found.partition), None)
        self._not_read = frozenset()
        client.assign(partitions)
        if partitions:
            client.pause(partitions)  # until their state is here and their offset known
        self._running.call_soon_threadsafe(self._gained, {found.partition for found in partitions})

    def _on_revoke(self, client: Client, partitions: list[Assigned]) -> None:
        offsets = self._wait_for(self._give_up, partitions)
        if offsets:
            self._commit_now(
                client, self._topic, offsets
            )  # here: from another thread it would wait for the end of this call
        client.unassign()

    def _on_lost(self, client: Client, partitions: list[Assigned]) -> None:
        self._wait_for(self._lose, partitions)
        client.unassign()

    def _wait_for(
        self, giving_up: Callable[[set[int]], Coroutine[Any, Any, Mapping[int, int]]], partitions: list[Assigned]
    ) -> Mapping[TP, int]:
        if self._leaving:
            return {}
        numbers = {found.partition for found in self._used(partitions)}
        offsets = asyncio.run_coroutine_threadsafe(giving_up(numbers), self._running).result()
        return {TP(EVENTS, number): offset for number, offset in offsets.items()}

    def _gained(self, partitions: set[int]) -> None:
        self.add_future(self._take(partitions))

    async def _take(self, partitions: set[int]) -> None:
        async with self._turn:
            get_logger().info("partitions.assigned", partitions=sorted(partitions))
            self._suspend()
            await self._holder.bring(partitions)
            await self._change({TP(topic, number) for topic in self._holder.topics for number in partitions})

    async def _give_up(self, partitions: set[int]) -> Mapping[int, int]:
        async with self._turn:
            get_logger().info("partitions.revoked", partitions=sorted(partitions))
            self._suspend()
            return await self._holder.release(partitions)

    async def _lose(self, partitions: set[int]) -> Mapping[int, int]:
        async with self._turn:
            get_logger().warning("partitions.lost", partitions=sorted(partitions))
            self._suspend()
            await self._holder.drop(partitions)
            return {}

    def _suspend(self) -> None:
        """Nothing is fetched or delivered from here on, until Faust has gone through the change."""
        app: Any = self.app
        app.on_rebalance_start()
        app.flow_control.suspend()

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:  # noqa: ASYNC109 - Faust's
        deadline = time.monotonic() + timeout
        while not self.should_stop and self.flow_active:
            epoch = self._epoch
            active = self._assigned if active_partitions is None else active_partitions & self._assigned
            if self.app.rebalancing or not active:
                await asyncio.sleep(FETCH_WAIT)
            else:
                found = await self._call(self._fetch, active, epoch)
                if epoch != self._epoch or self.app.rebalancing:
                    continue
                if found:
                    return found
                if self._stash:  # Faust cannot take what is there yet
                    await asyncio.sleep(FULL_WAIT)
            if time.monotonic() >= deadline:
                break
        return {}

    def leave_out(self, tp: TP) -> None:
        """See `faust_transport.Consumer.leave_out`."""
        super().leave_out(tp)
        self._going_on -= {tp}
        with contextlib.suppress(RuntimeError):  # the consumer has stopped
            self._thread.submit(self._pause, tp)  # now: it must not come after what `go_on` does

    async def go_on(self, tp: TP) -> None:
        """See `faust_transport.Consumer.go_on`."""
        self._going_on |= {tp}
        await self._call(self._go_on, tp)
        if tp in self._going_on:  # it was not left out again meanwhile
            self._going_on -= {tp}
            await super().go_on(tp)

    def _go_on(self, tp: TP) -> None:
        """Seek what comes after the last message that was delivered: what had been read beyond it was dropped, also
        what lies before a damaged record."""
        if tp not in self._not_read:  # it was assigned anew, and goes on elsewhere
            return
        self._not_read -= {tp}
        position = self._ends.get(tp)
        if self._client is None or position is None:
            return
        self._stash = deque(each for each in self._stash if each[0] != tp)
        self._positions[tp] = position
        self._damaged = {number: when for number, when in self._damaged.items() if number != tp.partition}
        self._floors = {number: offset for number, offset in self._floors.items() if number != tp.partition}
        with contextlib.suppress(KafkaException):  # it is not ours any more
            self._client.seek(Assigned(self._topic, tp.partition, position))
            if not self._paused:
                self._client.resume([self._wire(tp)])

    def _pause(self, tp: TP) -> None:
        self._not_read |= {tp}
        if self._client is not None:
            with contextlib.suppress(KafkaException):  # it is not ours any more
                self._client.pause([self._wire(tp)])

    def _fetch(self, active: set[TP], epoch: int) -> dict[TP, list[Any]]:
        self._fetched_at = time.monotonic()
        if not any(tp in active for tp, _ in self._stash):
            self._read(FETCH_RECORDS, 0 if self._stash else FETCH_WAIT)
        found: dict[TP, list[Any]] = {}
        held: deque[tuple[TP, Any]] = deque()
        if epoch != self._epoch:
            return found
        for tp, record in self._stash:
            if tp in active:
                found.setdefault(tp, []).append(record)
                self._ends[tp] = record.offset + 1
            elif tp not in self._not_read:
                held.append((tp, record))
        self._stash = held
        return found

    def _serve_once(self) -> None:
        self._read(1, 0)

    def _read(self, limit: int, wait: float) -> None:
        client = self._client
        if client is None or self._leaving:
            return
        full = len(self._stash) >= MAX_STASH
        if full != self._paused:
            everything = [found for found in client.assignment() if TP(EVENTS, found.partition) not in self._not_read]
            chosen = everything if full else [found for found in everything if found.partition not in self._damaged]
            if chosen:
                (client.pause if full else client.resume)(chosen)
            self._paused = full
        if self._damaged:
            self._look_again(client)
        epoch = self._epoch
        messages = client.consume(limit, wait)
        if epoch != self._epoch:
            return
        message: Any
        for message in messages:
            if message.error() is None:
                number = message.partition()
                if number not in self._damaged and message.offset() >= self._floors.get(number, 0):
                    tp = TP(EVENTS, number)
                    if message.offset() < self._positions.get(tp, 0):
                        _end_cut_off(tp, message.offset(), self._positions[tp])
                    self._positions[tp] = message.offset() + 1
                    self._stash.append((tp, record_of(message)))
            else:
                _end_if_fatal(message.error())
                try:
                    sound_records([message], at_end=False, access=self._holder.access)
                except DamagedRecord as error:
                    self._stand_still(client, error)
                except LogUnavailable as error:
                    get_logger().warning("log.unavailable", error=str(error))

    def _stand_still(self, client: Client, error: DamagedRecord) -> None:
        """Seek explicitly after a damaged record: where librdkafka itself would continue is not defined."""
        if error.partition not in self._damaged:
            get_logger().critical("record.damaged", error=str(error), partition=error.partition, offset=error.offset)
            client.pause([Assigned(self._topic, error.partition)])
            self._damaged = {**self._damaged, error.partition: (error.offset, time.monotonic() + LOOK_AGAIN)}
            self._floors = {**self._floors, error.partition: error.offset}

    def _look_again(self, client: Client) -> None:
        assigned = {found.partition for found in client.assignment()}
        for number, (offset, at) in self._damaged.items():
            if number not in assigned:
                self._damaged = {other: when for other, when in self._damaged.items() if other != number}
            elif time.monotonic() > at and not self._paused:
                try:
                    client.seek(Assigned(self._topic, number, offset))
                    client.resume([Assigned(self._topic, number)])
                except KafkaException as error:  # the broker is away: the next look may go well
                    get_logger().debug("consumer.waits", error=error.args[0].str())
                    self._damaged = {**self._damaged, number: (offset, time.monotonic() + LOOK_AGAIN)}
                else:
                    self._damaged = {other: when for other, when in self._damaged.items() if other != number}

    # --- offsets ----------------------------------------------------------------------------------------------------

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek every source partition to its next offset (see `Application.resume_at`)."""
        self._epoch += 1
        wanted = [tp for tp in self._assigned if tp.topic == EVENTS]
        return await self._call(self._seek_committed, wanted) if wanted else {}

    def _seek_committed(self, tps: list[TP]) -> dict[TP, int]:
        assert self._client is not None
        self._not_read &= self._left_out  # which a new assignment has emptied
        assigned = {TP(EVENTS, found.partition) for found in self._client.assignment()}
        # What was lost since would be sought in vain, and meanwhile nobody would serve the group: it comes here again.
        tps = [tp for tp in tps if tp in assigned]
        if not tps:
            return {}
        found: dict[TP, int] = {}
        for tp in tps:
            resume: int | None = cast(Any, self.app).resume_at(tp.partition)
            if resume is None:  # it was given up meanwhile
                continue
            found[tp] = resume
            target = Assigned(self._topic, tp.partition, found[tp])
            _patiently(partial(_seek, target), self._client)
        self._stash.clear()
        self._damaged = {}
        self._floors = {}
        self._positions = dict(found)
        self._client.resume([self._wire(tp) for tp in found if tp not in self._not_read])
        self._paused = False
        return found

    def _wire(self, tp: TP) -> Assigned:
        return Assigned(self._topic, tp.partition)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        client = self._client
        if client is None or not offsets or self.app.rebalancing:
            return False
        running = asyncio.get_running_loop()
        return await running.run_in_executor(self._commits, self._commit_now, client, self._topic, offsets)

    @staticmethod
    def _commit_now(client: Client, topic: str, offsets: Mapping[TP, int]) -> bool:
        try:
            committed = [Assigned(topic, tp.partition, offset) for tp, offset in offsets.items()]
            client.commit(offsets=committed, asynchronous=False)
        except KafkaException as error:  # what is not committed is applied again, and changes nothing
            _end_if_fatal(error.args[0])
            get_logger().warning("commit.failed", error=error.args[0].str())
            return False
        return True

    async def position(self, tp: TP) -> int | None:
        return self._ends.get(tp)

    async def _seek(self, partition: TP, offset: int) -> None:
        """Faust seeks changelogs only, and those are not read through it."""

    def highwater(self, tp: TP) -> int:
        return self._ends.get(tp, 0)

    # The changelog was read when the partition came: for Faust's recovery there is never anything left of it.

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return dict.fromkeys(partitions, 0)

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return dict.fromkeys(partitions, 0)

    async def on_stop(self) -> None:
        self._leaving = True
        await super().on_stop()
        if self._client is not None:
            await asyncio.to_thread(self._client.close)
        self._commits.shutdown()


_FATAL: Final = (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID)


def _end_if_fatal(error: Any) -> None:
    """A client that met a fatal error never reads again: the process ends, and the next one joins anew.

    A broker that died in the middle of a rebalance and comes back may know this member by an older id: then it says
    that another has taken its place, though there is none.
    """
    if error.fatal() or error.code() in _FATAL:
        get_logger().critical("worker.fenced", error=error.str())
        restart.end(EXIT_FENCED)


def _end_cut_off(tp: TP, offset: int, expected: int) -> None:
    """The log has lost its end, and the client began anew: the process ends, and the next start finds out what is gone
    (`processor.state.recovery`)."""
    get_logger().critical("log.cut_off", topic=tp.topic, partition=tp.partition, offset=offset, expected=expected)
    restart.end(EXIT_FENCED)


def _seek(target: Assigned, client: Client) -> None:
    client.seek(target)


def _patiently(ask: Callable[[Client], Any], client: Client) -> Any:
    """Ask again while the broker is away or the assignment is not through yet."""
    deadline = time.monotonic() + 2 * PATIENCE
    while True:
        try:
            return ask(client)
        except KafkaException as error:
            _end_if_fatal(error.args[0])
            get_logger().debug("consumer.waits", error=error.args[0].str())
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Writers:
    """The transactional writers of the partitions this worker owns."""

    def __init__(self, access: KafkaAccess) -> None:
        self._access = access
        self._open: dict[int, PartitionWriter] = {}
        self._threads = ThreadPoolExecutor(16, "log-writer")

    def fence(self, partition: int) -> None:
        """Become the only writer of a partition. Blocks. Raises `LogUnavailable`."""
        self._open[partition] = PartitionWriter(self._access, f"{GROUP}.tables.{partition}")

    def release(self, partition: int) -> None:
        """Be its writer no longer."""
        self._open.pop(partition, None)

    def append_to(self, partition: int, appends: list[Append]) -> list[int]:
        """A transaction of one partition that was fenced. Blocks. Raises `LogUnavailable`; ends the process if another
        owner has fenced this one."""
        try:
            return self._open[partition].append(appends, now())
        except Fenced as error:
            get_logger().critical("worker.fenced", error=str(error))
            restart.end(EXIT_FENCED)

    async def append(self, appends: list[Append]) -> list[int]:
        """A transaction for each partition, all at the same time; of partitions given up since, nothing is written."""
        loop = asyncio.get_running_loop()
        found = {partition: numbers for partition, numbers in by_partition(appends).items() if partition in self._open}
        offsets = [-1] * len(appends)
        results = await asyncio.gather(
            *(
                loop.run_in_executor(
                    self._threads, self._open[partition].append, [appends[number] for number in numbers], now()
                )
                for partition, numbers in found.items()
            ),
            return_exceptions=True,
        )
        for numbers, result in zip(found.values(), results, strict=True):
            if isinstance(result, Fenced):
                get_logger().critical("worker.fenced", error=str(result))
                restart.end(EXIT_FENCED)  # what is in memory here is not to be written any more
            if isinstance(result, BaseException):
                raise result
            for number, offset in zip(numbers, result, strict=True):
                offsets[number] = offset
        return offsets

    def close(self) -> None:
        """End the threads."""
        self._open.clear()
        self._threads.shutdown()


class Producer(faust_transport.Producer):
    """Appends through the writers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app: Any = self.app
        self._writers: Writers = app.spendstream.writers
        self.counts = dict(app.spendstream.counts)

    async def append(self, appends: list[Append]) -> list[int]:
        """See `Writers.append`."""
        return await self._writers.append(appends)

    async def on_stop(self) -> None:
        await super().on_stop()
        await asyncio.to_thread(self._writers.close)


class Transport(base.Transport):
    """The transport of applications whose log is Kafka."""

    Consumer: ClassVar[Any] = Consumer
    Producer: ClassVar[Any] = Producer

    driver_version = "spendstream-kafka"
