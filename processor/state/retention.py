"""Retention: events past their time are sealed into a checkpoint of rows, then deleted. See decisions 11 and 30."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from processor.core.clock import DAY, HOUR
from processor.core.events import message
from processor.core.events.message import Message
from processor.core.partitioning import U64, Places
from processor.core.tables import retained, table_rows
from processor.core.tables.apply import Tables
from processor.core.tables.history import is_padding
from processor.core.tables.retained import Retained
from processor.ids.index import IdIndex
from processor.log.embedded.log import Log
from processor.log.port import polls
from processor.log.records import Append, Record, TopicPartition
from processor.log.topics import CHECKPOINTS, EVENT_CONSUMERS, EVENTS, EventConsumer
from processor.state.loader import Partition
from processor.structured_log import get_logger

SLACK: Final = HOUR
"""Microseconds past its time that the oldest message must be before a round begins: so there is one round an hour."""

MESSAGES: Final = 50
"""Messages read, or deleted, in one step."""

ROWS_STEP: Final = 1000
"""Rows appended in one step."""

RESTORED: Final = 10_000
"""Records of the checkpoints read back together."""

COMPACT_STEP: Final = 2000
COMPACT_SLACK: Final = 10_000
"""Replaced records that may stay in the checkpoints, whatever the number of rows."""

MAX_CHANGED: Final = 20_000
MAX_MESSAGES: Final = 500
"""What was applied is sealed when the first of the two is reached: they bound the memory for unwritten changes."""

PAUSE: Final = 0.02
"""Seconds between two steps that write, so that other writers get the lock."""

T = TypeVar("T")


class SealError(Exception):
    """The checkpoint cannot be continued; nothing was deleted."""


class Claims:
    """A partition's ids, read-only: the messages that are applied here have claimed theirs before."""

    def __init__(self, index: IdIndex) -> None:
        self._index = index

    def claim(self, keys: U64, digests: U64, offset: int | Places) -> tuple[NDArray[np.int64], U64]:
        """See `ClaimIndex.claim`; the messages at `offset` have been applied before, so all their ids are there."""
        held, kept = self._index.find(keys)
        if (held < 0).any():
            raise SealError(f"ids of the message {np.max(offset)} are not in the index")
        return held, kept


class Sealer:
    """Seals and deletes events that arrived more than `retention` days ago, one partition after the other.

    `consumers` are those that are switched on: an event is kept until all of them have committed it, or until their
    patience is over. Calls of the log run in a separate thread; rows and ids are used on the event loop.
    """

    def __init__(
        self,
        data_dir: Path,
        owned: Mapping[int, Partition],
        clock: Callable[[], int],
        retention: int,
        interval: float,
        consumers: Sequence[EventConsumer] = EVENT_CONSUMERS,
    ) -> None:
        self._data_dir = data_dir
        self._owned = owned
        self._clock = clock
        self._retention = retention * DAY
        self._interval = interval
        self._consumers = consumers
        self._noted: dict[int, Noted] = {}

    async def run(self) -> None:
        """Check every `interval` seconds, for ever. A failed round is repeated at the next check."""
        while True:
            await asyncio.sleep(self._interval)
            for partition in list(self._owned.values()):
                try:
                    await self.round(partition)
                except Exception:  # noqa: BLE001 - metering goes on without it, and nothing was deleted too early
                    get_logger().exception("retention.failed", partition=partition.number)

    async def round(self, partition: Partition) -> int:
        """Seal and delete what is past its time in one partition; return how many messages were deleted."""
        with ThreadPoolExecutor(1, "log-sealer") as thread:
            loop = asyncio.get_running_loop()

            def call(function: Callable[..., T], *args: Any) -> Awaitable[T]:
                return loop.run_in_executor(thread, function, *args)

            log = await call(_open, self._data_dir)
            noted = self._noted.get(partition.number)
            found = _Round(log, call, partition, noted, self._clock(), self._retention, self._consumers)
            try:
                return await found.run()
            finally:
                if found.noted is not None:
                    self._noted[partition.number] = found.noted
                await call(log.close)


def _open(data_dir: Path) -> Log:
    return Log(data_dir, create=False)


Call = Callable[..., Awaitable[Any]]


class Noted(NamedTuple):
    """How far retention has come in a partition, and the offset of the checkpoint record that says so."""

    retained: Retained
    offset: int


class _Round:
    """One round over one partition, at the instant `now`; `kept_for` is the retention. Both in microseconds."""

    def __init__(
        self,
        log: Log,
        call: Call,
        partition: Partition,
        noted: Noted | None,
        now: int,
        kept_for: int,
        consumers: Sequence[EventConsumer],
    ) -> None:
        self.noted = noted
        self._log = log
        self._call = call
        self._partition = partition
        self._now = now
        self._kept_for = kept_for
        self._consumers = consumers
        horizon = partition.tables.horizon
        self._horizon = min(now, horizon.retained)
        self._running = horizon.running
        self._before = 0
        self._key = table_rows.encode_key(partition.number, "retained")
        self._events = TopicPartition(EVENTS, partition.number)
        self._checkpoints = TopicPartition(CHECKPOINTS, partition.number)
        self._tables = Tables(partition.number, log.salt, Claims(partition.index))
        self._tables.close_by(horizon)
        self._records = 0

    async def run(self) -> int:
        if not await self._call(self._is_due):
            return 0
        await self._call(self._restore)
        end = await self._apply_expired()
        sealed = self._tables.progress.offset
        await self._compact()
        await self._call(self._report_passed, end)
        gone = await self._trim(end)
        get_logger().info("retention.done", partition=self._partition.number, sealed=sealed, messages=gone)
        return gone

    def _is_due(self) -> bool:
        if not self._horizon:  # no arrival is old enough to be trusted
            return False
        oldest = self._log.read(self._events, self._log.first(self._events), 1, keep_damaged=True)
        self._begin(oldest[0].at if oldest else self._horizon)
        assert self.noted is not None
        if not oldest:
            return False
        reach = retained.advance(self.noted.retained, oldest[0].at, self._horizon, self._running)
        self._before = reach.before
        if oldest[0].at >= self._before - SLACK or self._is_kept(oldest[0], self._committed()):
            return False
        self._note(reach)  # before deleting: so the next round after a kill goes no further
        return True

    def _begin(self, oldest: int) -> None:
        if self.noted is None:
            offsets = self._log.offsets_of(self._checkpoints, self._key, 0, self._log.end(self._checkpoints))
            for record in self._log.read(self._checkpoints, offsets[-1], 1) if offsets else []:
                if record.value is None:
                    continue
                self.noted = Noted(Retained.of(table_rows.decode_value(record.value)), record.offset)
        last = None if self.noted is None else self.noted.retained
        begun = retained.begin(last, oldest, self._horizon, self._running, self._kept_for)
        if begun != last:
            self._note(begun)

    def _note(self, retained: Retained) -> None:
        offset = self._append([(self._key, msgspec.json.encode(retained.value()))])
        self.noted = Noted(retained, offset)

    def _committed(self) -> dict[EventConsumer, int]:
        """Return the first offset that each consumer may still read."""
        return {each: self._log.committed(each.group, self._events) or 0 for each in self._consumers}

    def _is_kept(self, record: Record, committed: Mapping[EventConsumer, int]) -> bool:
        """Return True for a message that is not past its time, or that a consumer still has to read.

        The patience with one counts from the time of the message, not from how far this round goes, which may be less
        than it is long; that bounds what goes all the same.
        """
        past = self._horizon - self._kept_for
        return record.at >= self._before or any(
            record.offset >= offset and (consumer.patience is None or record.at >= past - consumer.patience)
            for consumer, offset in committed.items()
        )

    def _report_passed(self, end: int) -> None:
        """Log which consumers lose events up to `end` (exclusive), as they did not read them in time."""
        first = self._log.first(self._events)
        for consumer, offset in self._committed().items():
            lost = end - max(offset, first)
            if lost > 0:
                number = self._partition.number
                get_logger().warning("retention.not_read", group=consumer.group, partition=number, messages=lost)

    def _restore(self) -> None:
        for records in polls(self._log.read, self._checkpoints, limit=RESTORED):
            self._tables.restore_all((record.key or b"", record.value, record.offset) for record in records)
            self._records += len(records)
        first = self._log.first(self._events)
        if first > self._tables.progress.offset + 1:
            raise SealError(f"events before {first} are gone, the checkpoint ends at {self._tables.progress.offset}")

    async def _apply_expired(self) -> int:
        """Apply all that is past its time to the checkpoint; return the first offset that has to stay.

        Messages that an earlier round has sealed but not deleted are checked again: there may be a new consumer.
        """
        end: int = await self._call(self._log.first, self._events)
        position: int | None = end
        applied = 0
        while position is not None:
            found, position = await self._call(self._read, position)
            for offset, decoded in found:
                end = offset + 1
                if offset <= self._tables.progress.offset:
                    continue
                if decoded is None:
                    self._tables.skip(offset)
                else:
                    self._tables.apply(offset, decoded, self._tables.prepare(decoded))
                await asyncio.sleep(0)
            applied += len(found)
            if position is None or self._tables.changed > MAX_CHANGED or applied >= MAX_MESSAGES:
                await self._seal()
                applied = 0
        return end

    def _read(self, position: int) -> tuple[list[tuple[int, Message | None]], int | None]:
        """Return expired messages from `position` on, and the position to continue at (None: there are no more).

        None in place of a message: it is a dead letter, or the checkpoint contains it.
        """
        committed = self._committed()
        found: list[tuple[int, Message | None]] = []
        records = self._log.read(self._events, position, MESSAGES, keep_damaged=True)
        for record in records:
            if self._is_kept(record, committed):
                return found, None
            if record.offset <= self._tables.progress.offset:
                found.append((record.offset, None))
                continue
            is_dead = record.offset in self._partition.dead or (is_padding(record.value) and not record.is_damaged)
            if record.is_damaged and not is_dead:
                raise SealError(
                    f"message {record.offset} of partition {self._partition.number} is damaged, and the tables contain "
                    "it: no checkpoint can be made of it. `spendstream rebuild --allow-loss` goes on without it"
                )
            found.append((record.offset, None if is_dead else message.decode(record.value or b"")))
        return found, records[-1].offset + 1 if records else None

    async def _seal(self) -> None:
        """Append the changed rows, the progress last: with it they are a checkpoint."""
        changes = self._tables.drain_changes()
        if changes is None:
            return
        offsets: list[int] = []
        for chunk in _chunks(changes.records):
            first = await self._call(self._append, chunk)
            offsets += range(first, first + len(chunk))
            await asyncio.sleep(PAUSE)
        changes.wrote(offsets)

    def _append(self, records: Sequence[tuple[bytes | None, bytes | None]]) -> int:
        self._records += len(records)
        return self._log.append([Append(self._checkpoints, records)], self._now)[0]

    async def _compact(self) -> None:
        if self._records <= 2 * len(self._tables) + COMPACT_SLACK:
            return
        start: int | None = 0
        end = self._tables.progress.changelog
        live = await self._call(self._tables.newest_offsets)
        if self.noted is not None:
            live = np.union1d(live, [self.noted.offset])
        while start is not None:
            arguments = (self._checkpoints, start, end, COMPACT_STEP, live)
            start, _ = await self._call(self._log.compact, *arguments)
            await asyncio.sleep(PAUSE)

    async def _trim(self, before: int) -> int:
        gone = 0
        while (count := await self._call(self._log.trim, self._events, before, MESSAGES)) > 0:
            gone += count
            await asyncio.sleep(PAUSE)
        return gone


def _chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), ROWS_STEP):
        yield rows[start : start + ROWS_STEP]
