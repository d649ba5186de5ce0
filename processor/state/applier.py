"""From messages to durable tables: apply, flush, then acknowledge. Never the other way round.

One applier serves all partitions that a worker owns. Messages of `process` are applied in memory, many together, as a
call of numpy has a fixed cost. The flusher, a separate task, writes what has changed every `interval` seconds: rows,
claims and progress of a flush are one append, and its messages are acknowledged only when that is durable. A failing
write is repeated until it succeeds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from processor import tracing, wall_clock
from processor.core.clock import SECOND
from processor.core.events import message
from processor.core.events.message import Message, UnknownVersion
from processor.core.partitioning import U64
from processor.core.tables import dedupe
from processor.core.tables.apply import Changes
from processor.core.tables.history import digest_of, is_padding
from processor.core.tables.table_rows import NEVER
from processor.ids.index_checkpoint import Covered
from processor.log.dead_letters import DeadLetter
from processor.log.errors import DamagedRecord, LogUnavailable
from processor.log.records import Append, Delivered, TopicPartition
from processor.log.topics import CLAIMS, DEAD_LETTERS, EVENTS, ROWS
from processor.memory import BURST, Trimming
from processor.state.loader import Partition, sync_index
from processor.structured_log import get_logger

MAX_CHANGED: Final = 40_000
"""Changed rows at which new messages wait for the flush under way."""

MAX_WAITING: Final = 4096
"""Waiting events at which the messages are applied, for each partition of up to `MANY`; a flush applies fewer."""

MANY: Final = 8
"""Partitions. Each has its own calls of numpy, so of several more events have to wait for as few calls an event."""

SYNC_INTERVAL: Final = 5.0
"""Seconds between two checkpoints of the id index."""

IDLE_TICK: Final = 1.0
"""Seconds after which the tables are given the time even if no message comes."""

MAX_BACKOFF: Final = 2.0


Exists = Callable[[int, int, int], Awaitable[bool]]
"""(partition, first offset, offset after the last): whether the log has a message there."""

Lost = Callable[[int, int, int, str], Awaitable[None]]
"""(partition, first offset, offset after the last, reason): report messages that are gone and in no table. Durable on
return."""

AppendAll = Callable[[list[Append]], Awaitable[list[int]]]
"""Append to several partitions, all or nothing; raises `LogUnavailable`."""


class Broken(Exception):
    """A message failed while it was applied: the rows in memory cannot be trusted, and the process must restart."""


class Applier:
    """Applies messages to the partitions in `owned`."""

    def __init__(
        self,
        owned: Mapping[int, Partition],
        append: AppendAll,
        clock: Callable[[], int],
        interval: float,
        exists: Exists,
        lost: Lost,
        pause: Callable[[int], None] = lambda number: None,
        running: Callable[[], int] = wall_clock.running,
    ) -> None:
        """`pause` is called with the number of a partition of which this program cannot apply any more messages."""
        self._lost = lost
        self._owned = owned
        self._append = append
        self._clock = clock
        self._interval = interval
        self._exists = exists
        self._pause = pause
        self._running = running
        self._ticked: int | None = None
        self._pending: list[tuple[Partition, Delivered]] = []
        self._waiting: dict[Partition, list[tuple[int, Message, U64]]] = {}
        """Messages that are not applied yet, with their offsets and keys."""
        self._waiting_events = 0
        self._work = asyncio.Event()
        self._trimming = Trimming()
        self._flushing = asyncio.Lock()
        self._synced_at = 0.0
        self._broken = False
        self._burying = asyncio.Lock()
        """Held until a message that failed is a dead letter: the process must not end before."""
        self._log = get_logger()
        self.applied = 0
        """Events applied since the start."""

    async def process(self, delivered: Delivered) -> None:
        """Process one message; raises only `Broken`. It is applied together with others, at the latest by the next
        flush, which acknowledges it.

        A message of a partition that was given up or stopped meanwhile is left to the next owner.
        """
        await self._check_sound()
        partition = self._owned.get(delivered.partition)
        if partition is None or partition.is_stopped:
            return
        if delivered.offset > partition.expected:
            await self._check_gap(partition, delivered.offset)
        if partition.tables.changed > MAX_CHANGED:
            await self.flush()
        if self._owned.get(delivered.partition) is not partition:  # given up meanwhile
            return
        partition.expected = delivered.offset + 1
        progress = partition.tables.progress.offset
        if (
            delivered.offset in partition.dead
            or (is_padding(delivered.value) and not delivered.is_damaged)
            or (delivered.is_damaged and delivered.offset <= progress)  # a replay: it was counted before it was damaged
        ):
            self._apply_waiting()
            partition.tables.skip(delivered.offset)
        elif not await self._apply_or_bury(partition, delivered):
            return
        partition.newest = (delivered.offset, delivered.key, delivered.value)
        self._pending.append((partition, delivered))
        self._trimming.worked(len(delivered.value or b""))
        self._work.set()

    async def _check_sound(self) -> None:
        async with self._burying:
            if self._broken:
                raise Broken("a message has failed half way: the process must start again")

    async def _check_gap(self, partition: Partition, offset: int) -> None:
        """Handle a gap in the offsets: missing messages are reported as lost; existing ones must not be skipped."""
        if await self._exists(partition.number, partition.expected, offset):
            self._broken = True
            raise Broken(f"messages {partition.number}:{partition.expected} to {offset} were skipped on their way here")
        start = max(partition.expected, partition.tables.progress.offset + 1)  # what was counted is no loss to report
        if start < offset:
            await self._lost(partition.number, start, offset, "missing in the log")

    async def _apply_or_bury(self, partition: Partition, delivered: Delivered) -> bool:
        """Apply a message now or with the next ones, or bury it; False: it is not for this program to judge."""
        try:
            if delivered.is_damaged:
                raise DamagedRecord(EVENTS, partition.number, delivered.offset)
            decoded = message.decode(delivered.value or b"")
            keys = partition.tables.prepare(decoded)
        except UnknownVersion as error:
            self._stop(partition, delivered, error)
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop the partition
            await self._bury_and_skip(partition, delivered, error)
            return True
        if partition.one_by_one:
            await self._apply_alone(partition, delivered, decoded, keys)
            return True
        self._waiting.setdefault(partition, []).append((delivered.offset, decoded, keys))
        self._waiting_events += len(decoded)
        if self._waiting_events >= MAX_WAITING * min(len(self._owned), MANY):
            self._apply_waiting()
        return True

    async def _bury_and_skip(self, partition: Partition, delivered: Delivered, error: Exception) -> None:
        """Make a dead letter of a message that cannot be read, once those before it are applied."""
        self._apply_waiting()
        await self._bury(partition, delivered, str(error) or repr(error), damaged=delivered.is_damaged)
        partition.tables.skip(delivered.offset)

    def _stop(self, partition: Partition, delivered: Delivered, error: UnknownVersion) -> None:
        """Apply and acknowledge nothing of the partition from this message on: another program has to read it.

        The events are acknowledged and must be counted, so it is no dead letter.
        """
        partition.is_stopped = True
        self._log.critical("partition.stopped", partition=partition.number, offset=delivered.offset, reason=str(error))
        self._pause(partition.number)

    async def _apply_alone(self, partition: Partition, delivered: Delivered, decoded: Message, keys: U64) -> None:
        """Apply a message by itself, so that a failure is known to be its own. See `ONE_BY_ONE`."""
        try:
            partition.tables.apply(delivered.offset, decoded, keys)
        except (OSError, MemoryError) as error:  # a full disk under the id index is no fault of the message
            self._broken = True
            reason = f"message {delivered.partition}:{delivered.offset} is applied after a restart: {error}"
            raise Broken(reason) from error
        except Exception as error:
            self._broken = True  # before anything is awaited: no flush may write what is half applied
            partition.index.distrust()  # it may have ids of this message, which no table will ever contain
            async with self._burying:
                await self._bury(partition, delivered, f"{type(error).__name__} while it was applied: {error}")
            raise Broken(f"message {delivered.partition}:{delivered.offset} could not be applied") from error
        self.applied += len(keys)
        partition.newest = (delivered.offset, delivered.key, delivered.value)
        partition.one_by_one -= 1
        if not partition.one_by_one:
            await self.flush()  # the next start begins behind them, so that a failure among many is found at last

    def _apply_waiting(self) -> None:
        """Apply what waits, all messages of a partition at once. Raises `Broken`: which of them failed, the next start
        finds out, which applies the first ones one by one."""
        waiting, self._waiting, self._waiting_events = self._waiting, {}, 0
        for partition, messages in waiting.items():
            if self._owned.get(partition.number) is not partition:  # given up meanwhile: they are the next owner's
                continue
            try:
                partition.tables.apply_all(messages)
            except Exception as error:
                self._broken = True
                first, last = messages[0][0], messages[-1][0]
                reason = f"one of the messages {partition.number}:{first} to {last} could not be applied: {error!r}"
                raise Broken(reason) from error
            self.applied += sum(len(keys) for _, _, keys in messages)

    async def _bury(self, partition: Partition, delivered: Delivered, reason: str, *, damaged: bool = False) -> None:
        letter = DeadLetter(EVENTS, partition.number, delivered.offset, reason, self._clock(), damaged)
        self._log.error("message.dead", partition=partition.number, offset=delivered.offset, reason=reason)
        to = TopicPartition(DEAD_LETTERS, partition.number)
        await self._append_at_last([Append(to, [(letter.encode(), delivered.value)])])
        partition.dead.add(delivered.offset)
        if damaged:
            await self._lost(partition.number, delivered.offset, delivered.offset + 1, "damaged, see the dead letters")

    # --- flushing ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Flush, for ever: at once when the stream has been idle, else every `interval` seconds."""
        self._trimming.worked(BURST)  # reading back what there was
        while True:
            self._tick()
            try:
                async with asyncio.timeout(IDLE_TICK):
                    await self._work.wait()
            except TimeoutError:
                self._trimming.rested()
                continue
            await self.flush()
            await self._check_sound()
            now = asyncio.get_running_loop().time()
            if now - self._synced_at >= SYNC_INTERVAL:
                self._synced_at = now
                await self._sync_indexes()
            await asyncio.sleep(self._interval)

    async def flush(self) -> None:
        """Make everything applied so far durable and acknowledge it. Waits while the log is unavailable.

        Does nothing once a message has failed half way: the restart reads the rows back and applies all again.
        """
        async with self._flushing:
            if self._broken:
                return
            self._apply_waiting()
            self._work.clear()
            pending, self._pending = self._pending, []
            self._tick()
            changed: list[tuple[Partition, Changes, int]] = []
            for partition in self._owned.values():
                # The progress names the message that it ends with, and how many dead letters there are.
                progress = partition.tables.progress
                progress.letters = len(partition.dead)
                offset, key, value = partition.newest
                if offset == progress.offset and progress.dirty:
                    progress.digest = digest_of(key, value)
                changes = partition.tables.drain_changes(packs=partition.replaced is not None)
                if changes is not None:
                    changed.append((partition, changes, len(partition.index)))
            if changed:
                with tracing.span("tables.flush", messages=len(pending), partitions=len(changed)):
                    made = [_appends(partition, changes) for partition, changes, _ in changed]
                    appends = [append for each in made for append in each]
                    offsets = await self._append_at_last(appends)
                firsts = dict(zip([append.to for append in appends], offsets, strict=True))
                for (partition, changes, ids), written in zip(changed, made, strict=True):
                    self._note_written(partition, changes, ids, written, firsts)
            owned = self._owned
            for partition, delivered in pending:
                if owned.get(partition.number) is partition:
                    delivered.ack()

    def _tick(self) -> None:
        """Give the tables the present time, once a second."""
        now = self._running()
        if self._ticked is None or now - self._ticked >= SECOND:
            self._ticked = now
            clock = self._clock()
            for partition in self._owned.values():
                partition.tables.tick(now, clock)

    def _note_written(
        self,
        partition: Partition,
        changes: Changes,
        ids: int,
        appends: list[Append],
        firsts: Mapping[TopicPartition, int],
    ) -> None:
        """The changes of a partition are durable from the offsets `firsts` on, its index had `ids` with them.

        Raises `Broken` if the log gives offsets once more: rows or claims that were durable are gone then.
        """
        rows, *claimed = appends
        first, count = firsts[rows.to], len(rows.records)
        claims_end = firsts[claimed[0].to] if claimed else partition.claims_end
        if NEVER < first < partition.rows_end or NEVER < claims_end < partition.claims_end:
            self._broken = True
            partition.index.distrust()
            raise Broken(f"the log has lost the end of the rows or claims of partition {partition.number}")
        partition.end(changes.wrote(range(first, first + count)))
        partition.records += len(changes)
        partition.rows_end = first + count
        if claimed and claims_end >= 0:  # else the partition was given up, and nothing was written
            [(_, value)] = claimed[0].records
            partition.covered = Covered(claims_end + 1, dedupe.digest_of_claims(value or b""), ids)

    async def _append_at_last(self, appends: list[Append]) -> list[int]:
        delay = 0.05
        while True:
            try:
                return await self._append(appends)
            except LogUnavailable as error:
                self._log.error("log.unavailable", error=str(error), retry_in=delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, MAX_BACKOFF)

    async def _sync_indexes(self, *, final: bool = False) -> None:
        for partition in list(self._owned.values()):
            if partition.claims_end > partition.index.checkpointed:
                await asyncio.to_thread(sync_index, partition, final=final)

    async def finish(self) -> None:
        """Flush for the last time, and checkpoint all ids, so that the next start finds them in the index."""
        await self.flush()
        await self._sync_indexes(final=True)


def _appends(partition: Partition, changes: Changes) -> list[Append]:
    appends = [Append(TopicPartition(ROWS, partition.number), changes.records)]
    if changes.claimed:
        record = (None, dedupe.encode_claims(changes.claimed))
        appends.append(Append(TopicPartition(CLAIMS, partition.number), [record]))
    return appends
