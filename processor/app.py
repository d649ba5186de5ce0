"""The Faust application: topics, the table and the agent. `core` has what it computes, `state` what it keeps."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from processor import restart
from processor.core.tables.history import RESTORE, Loss, unrecorded
from processor.log import faust_app, losses
from processor.log.errors import DamagedRecord, HistoryMismatch, LogUnavailable
from processor.log.faust_app import Delivery
from processor.log.faust_library import TP
from processor.log.records import TopicPartition
from processor.log.topics import (
    CHECKPOINTS,
    CLAIMS,
    DEAD_LETTERS,
    EVENT_CONSUMERS,
    EVENTS,
    GROUP,
    ROWS,
    STORE_GROUP,
    STORE_PATIENCE,
    EventConsumer,
)
from processor.settings import Settings
from processor.state import loader
from processor.state.applier import Applier
from processor.state.compactor import Compactor
from processor.state.faust_table import RowTable
from processor.state.loader import Partition
from processor.state.rebuild import repair
from processor.state.recovery import refuse
from processor.state.retention import Sealer
from processor.structured_log import get_logger

if TYPE_CHECKING:
    from processor.leases.followed_ledger import FollowedLedger
    from processor.state.partitions import Holder
    from processor.users_topic.row_publisher import UsersTopicPublisher

COMMIT_INTERVAL: Final = 0.25
"""Seconds between two commits of progress; the event store goes no further than them."""

EXIT_BROKEN: Final = 70
"""Exit code of a process whose rows in memory cannot be trusted; the next start reads them back."""


class Application:
    """The Faust app, and the worker's parts around it."""

    def __init__(self, settings: Settings, clock: Any) -> None:
        found = faust_app.find_log(settings)
        self._address, self.partitions, counts = found
        address = found.address
        self._clock = clock
        self.faust = faust_app.make_app(GROUP, found, "faust", COMMIT_INTERVAL)
        load: Callable[[int], Partition] | None = partial(self._load, clock=clock)
        self.faust.resume_at = self._resume_at
        self.owned: dict[int, Partition] = {}
        """Partition number -> what this worker holds of it."""
        self.holder: Holder | None = None
        self.stage: UsersTopicPublisher | None = None
        """The publisher of the users topic; None on the embedded log, where only API processes read users' sums."""
        if address.kafka is not None:
            self.faust.spendstream = self.holder = self._hold(counts, standby=settings.standby)
            load = None  # the partitions of several workers are loaded when the group assigns them
        self.table = RowTable(
            self.faust,
            owned=self.owned,
            load=load,
            name="rows",
            partitions=self.partitions,
            changelog_topic=faust_app.topic_of(self.faust, ROWS, self.partitions),
            key_type=bytes,
            value_type=bytes,
        )
        self.faust.tables.add(self.table)
        self.applier = Applier(
            self.owned, self._append, clock, settings.flush_interval, self._exists, self._lost, self._pause
        )
        events = faust_app.topic_of(self.faust, EVENTS, self.partitions)
        self.faust.add_agent(f"{GROUP}.tables", events, self._tables)
        self.faust.add_task(self.applier.run)
        if address.kafka is None:  # a broker compacts by itself
            self.faust.add_task(Compactor(self.owned, self._delete, self._flush).run)
            if settings.retention:
                self._retain(settings, clock)
        if self.holder is not None:
            self._share(self.holder, clock)

    def _retain(self, settings: Settings, clock: Any) -> None:
        """Have events deleted that are older than they are kept for, and that every consumer has read."""
        store = (EventConsumer(STORE_GROUP, STORE_PATIENCE),) if settings.event_store else ()
        kept, every, consumers = settings.retention, settings.retention_interval, (*EVENT_CONSUMERS, *store)
        self.faust.add_task(Sealer(self._address.data_dir, self.owned, clock, kept, every, consumers).run)

    async def _tables(self, stream: Any) -> None:
        async for event in stream.noack().events():
            try:
                await self.applier.process(Delivery(event))
            except Exception as error:  # noqa: BLE001 - an agent that raises goes on without the message: it would be lost
                get_logger().critical("worker.broken", error=str(error) or repr(error))
                restart.end(EXIT_BROKEN)

    def _hold(self, counts: dict[str, int], *, standby: bool) -> "Holder":
        from processor.state.partitions import Holder

        return Holder(self._address, counts, self.owned, self._flush, self._clock, standby=standby)

    def _share(self, holder: "Holder", clock: Any) -> None:
        """What a worker does that is one of several: it follows the others' partitions, grants leases, and publishes
        users' rows."""
        from processor.leases.followed_ledger import FollowedLedger
        from processor.leases.grantor import HOME, Grantor

        self.faust.add_task(holder.follow)
        ledger = FollowedLedger()
        self.grantor = Grantor(self._address, self.partitions, lambda: HOME in self.owned, clock, ledger)
        self.faust.add_task(self._grant)
        self.stage = self._stage(clock, ledger)

    async def _grant(self) -> None:
        self.grantor.start()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(self.grantor.stop)

    def _stage(self, clock: Any, ledger: "FollowedLedger") -> "UsersTopicPublisher":
        from processor.users_topic.row_publisher import UsersTopicPublisher

        return UsersTopicPublisher(self._address, self.partitions, lambda: list(self.owned), clock, ledger)

    async def _flush(self) -> None:
        await self.applier.flush()

    def _pause(self, number: int) -> None:
        """Stop fetching messages of a partition."""
        consumer: Any = self.faust.consumer
        consumer.leave_out(TP(EVENTS, number))

    async def _exists(self, number: int, start: int, before: int) -> bool:
        return await asyncio.to_thread(self._look, number, start, before)

    def _look(self, number: int, start: int, before: int) -> bool:
        log = self._address.open()
        try:
            found = log.read(TopicPartition(EVENTS, number), start, 1)
            return bool(found) and found[0].offset < before
        except DamagedRecord as error:  # it is there
            return error.offset < before
        finally:
            log.close()

    def _load(self, number: int, clock: Callable[[], int]) -> Partition:
        try:
            try:
                return loader.load(self._address, number, clock)
            except DamagedRecord as error:
                return self._load_repaired(number, clock, error)
        except HistoryMismatch as error:
            refuse(error)

    def _load_repaired(self, number: int, clock: Callable[[], int], found: DamagedRecord) -> Partition:
        """Load a partition whose rows or claims have a damaged record: what they said follows from the events."""
        if found.topic not in {ROWS, CLAIMS, DEAD_LETTERS, CHECKPOINTS}:
            raise HistoryMismatch(f"{found}. Stop all processes and {RESTORE}")
        get_logger().critical("record.damaged", error=str(found), healing="the partition is made anew from its events")
        done = repair(self._address, number, clock())
        get_logger().warning("partition.repaired", partition=number, rows=done.rows, claims=done.claims, lost=done.lost)
        try:
            return loader.load(self._address, number, clock)
        except DamagedRecord as error:
            raise HistoryMismatch(f"{error}, and cannot be made anew. Stop all processes and {RESTORE}") from None

    def _resume_at(self, number: int) -> int | None:
        """The next offset to read of a partition; None: it is not owned."""
        partition = self.owned.get(number)
        return None if partition is None else partition.expected

    async def _lost(self, number: int, start: int, end: int, reason: str) -> None:
        while True:
            try:
                return await asyncio.to_thread(self._report, number, start, end, reason)
            except LogUnavailable as error:
                get_logger().warning("log.unavailable", error=str(error))
                await asyncio.sleep(1)

    def _report(self, number: int, start: int, end: int, reason: str) -> None:
        log = self._address.open()
        try:
            loss = Loss(start, end, counted=False, reason=reason)
            known = losses.of_partition(log, number)
            for each in losses.report(log, number, unrecorded([loss], known), self._clock()):
                get_logger().error("events.lost", partition=number, first=each.start, last=each.end - 1, text=each.text)
        finally:
            log.close()

    async def _append(self, appends: Any) -> list[int]:
        producer: Any = self.faust.producer
        found: list[int] = await producer.append(appends)
        return found

    async def _delete(self, tp: TopicPartition, offsets: list[int]) -> None:
        producer: Any = self.faust.producer
        await producer.delete(tp, offsets)
