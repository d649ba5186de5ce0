"""The event store's role: partitions are brought, their messages cut into segments, and given up again.

What is complete of all partitions is cut together, every half second: files first, then their manifests in one append,
then the messages are acknowledged. Where to go on is what the catalog says has been reached, not what was committed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

from processor.background import Yielding
from processor.core.clock import DAY
from processor.core.tables.dedupe import ClaimKeys
from processor.event_store import skips
from processor.event_store.catalog import Catalog
from processor.event_store.claimed_ids import ClaimedIds
from processor.event_store.first_build import FirstBuild
from processor.event_store.fresh_messages import Cut, FreshMessages, MessagesSkipped
from processor.event_store.manifest import Manifest, Segment
from processor.event_store.segment_writer import SegmentWriter
from processor.event_store.segments_topic import SegmentsTopic
from processor.event_store.store_directory import StoreDirectory
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.errors import DamagedRecord, LogBroken, LogError
from processor.log.port import LogWriter
from processor.log.records import Delivered, TopicPartition
from processor.log.topics import EVENTS, GROUP
from processor.memory import Trimming
from processor.structured_log import get_logger

INTERVAL: Final = 0.5
"""Seconds from the start of a cut to the next one, of a store that keeps up."""

PAUSE: Final = 0.05
"""Least seconds between two such cuts."""

RETRY: Final = 2.0
"""Seconds after a failure, or while there is no room, until the next try."""

MAX_WAITING: Final = 48 << 20
"""Bytes of messages that wait, of all partitions; with more of its share a partition is held."""

MIN_WAITING: Final = 1 << 20

ENOUGH: Final = 16 << 20
"""Bytes of a partition's waiting messages for which a store that is behind cuts at once."""

FAR: Final = 10
"""As many times the messages of a cut are left after it by a store that is far behind, and lets others go first."""

T = TypeVar("T")


class _CutAll(NamedTuple):
    """What a cut of all partitions has left."""

    is_full: bool
    """Whether there is more to cut at once."""
    is_behind: bool
    """See `Store.is_behind`."""
    is_far_behind: bool = False
    """See `FAR`."""


class Overtaken(Exception):
    """Another store has begun a partition anew: what is known here about it is not true any more."""


class DirectoryGone(Exception):
    """The directory of the store was deleted, or is mounted no longer."""


class Store:
    """The partitions of one store. `hold` and `go_on` stop and continue fetching the messages of a partition."""

    def __init__(
        self,
        address: LogAddress,
        directory: StoreDirectory,
        writer: SegmentWriter,
        clock: Callable[[], int],
        payload_retention: int | None = None,
        hold: Callable[[int], None] = lambda number: None,
        go_on: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._address = address
        self.directory = directory
        self.writer = writer
        self.clock = clock
        self._payload_retention = payload_retention
        self._hold = hold
        self._go_on = go_on
        self._thread = ThreadPoolExecutor(1, "store")
        self._log: LogWriter | None = None
        self.topic: SegmentsTopic | None = None
        self._fresh: dict[int, FreshMessages] = {}
        self._held: set[int] = set()
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._building = FirstBuild()
        self._trimming = Trimming()
        self._yielding = Yielding()
        self._has_room = True
        self.lacking: dict[str, Segment] = {}
        """Live segments whose files are missing or were damaged, by id: their rows are to be made anew (`upkeep`)."""
        self.rows = 0
        """Written since the start, by cuts."""
        self.is_behind = False
        """Whether the last cut has left messages that could have been cut, or more committed ones than it has cut of
        their partition, which have not arrived yet: the log is read more slowly than segments are cut. False after one
        that failed, and for partitions of which nothing is cut: merging waits for no store that stands still."""
        self._is_far_behind = False
        self.is_cutting = False
        """Whether a cut is being made now."""
        self.cuts_wait_until = 0.0
        """When the next cut may begin (monotonic seconds): a merge that cannot wait for the cuts takes turns with
        them, as the memory of both together would be too much. Set by the thread of the merging, again and again."""
        self.unmerged = 0
        """Segments of all partitions that were never merged."""

    @property
    def owned(self) -> frozenset[int]:
        """The numbers of the partitions that this store writes."""
        return frozenset(self._fresh)

    @property
    def is_shared(self) -> bool:
        """Whether other stores may write into the same directory, which they do for other partitions."""
        return self._address.kafka is not None

    @property
    def log(self) -> LogWriter:
        """The log. For the store's thread; raises `LogError`."""
        return self._open()[0]

    def first(self, number: int) -> int:
        """Return the first message of a partition that the log has. For the store's thread."""
        return self.log.first(TopicPartition(EVENTS, number))

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function on the thread to which the log's connection belongs."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    # --- partitions come and go -------------------------------------------------------------------------------------

    async def bring(self, numbers: Iterable[int]) -> None:
        """Own these partitions: find out where to go on, and begin anew where files are missing. Raises `LogError`."""
        async with self._turn:
            for number in sorted(numbers):
                self._fresh[number] = await self.call(self._bring, number)
        get_logger().info("store.partitions", partitions=sorted(self._fresh), reached=self.reached())

    async def release(self, numbers: Iterable[int]) -> dict[int, int]:
        """Give partitions up; return partition -> next message to read. Waits for the cut that is being made."""
        async with self._turn:
            given = [self._fresh.pop(number) for number in numbers if number in self._fresh]
            self._held.difference_update(fresh.number for fresh in given)
            self.lacking = {name: each for name, each in self.lacking.items() if each.partition in self._fresh}
            return {fresh.number: fresh.reached for fresh in given}

    def reached(self, number: int | None = None) -> Any:
        """Return the next message of a partition, None if it is not owned; without a number of all, by partition."""
        if number is None:
            return {each: fresh.reached for each, fresh in self._fresh.items()}
        fresh = self._fresh.get(number)
        return None if fresh is None else fresh.reached

    def generation(self, number: int) -> int:
        """Return the generation in which a partition is cut; 0 if it is not owned."""
        fresh = self._fresh.get(number)
        return 0 if fresh is None else fresh.generation

    def _open(self) -> tuple[LogWriter, SegmentsTopic]:
        if self._log is None or self.topic is None:
            self._log = log = self._address.open()
            delete = log.delete if isinstance(log, Log) else None
            self.topic = SegmentsTopic(log, self.clock, delete)
            has_segments = any(each.has_files for each in self.topic.read_on().live())
            self.directory.claim(log.identity, is_shared=self.is_shared, has_segments=has_segments)
        return self._log, self.topic

    def _bring(self, number: int) -> FreshMessages:
        log, topic = self._open()
        catalog = topic.read_on()
        live = catalog.live(number)
        generation = catalog.generation(number)
        lacking = self.directory.lacks(live)
        is_most = 2 * sum(each.rows for each in lacking) > sum(each.rows for each in live)
        if is_most or not catalog.is_whole(number):
            get_logger().warning("store.begins_anew", partition=number, segments=len(live), missing=len(lacking))
            live, generation, lacking = [], generation + 1, []
        self.lacking.update({each.id: each for each in lacking})
        last = live[-1] if live else None
        reached = last.end if last else 0
        claimed = ClaimedIds(
            log.read, number, last.claims_from if last else 0, reached, lambda text: _say_damaged(number, text)
        )
        keys = ClaimKeys(log.salt)
        fresh = FreshMessages(number, generation, reached, claimed, keys, self.writer, self._has_messages)
        fresh.previous = last.id if last else None
        gap = fresh.gap(log.first(TopicPartition(EVENTS, number)))
        if gap is not None:
            self._append_gap(fresh, gap)
        return fresh

    def _has_messages(self, number: int, first: int, end: int) -> bool:
        """See `HasMessages`. For the store's thread."""
        try:
            found = self.log.read(TopicPartition(EVENTS, number), first, 1)
        except DamagedRecord as error:  # it is there
            return error.offset < end
        return bool(found) and found[0].offset < end

    def _append_gap(self, fresh: FreshMessages, gap: Manifest) -> None:
        segment = gap.segment
        get_logger().warning("store.gap", partition=fresh.number, first=segment.start, last=segment.end - 1)
        assert self.topic is not None
        self._advance(fresh, self.topic.append([gap]), gap)

    # --- messages ---------------------------------------------------------------------------------------------------

    def deliver(self, delivered: Delivered) -> None:
        """Keep a message until it is in a segment. Those of partitions that are not owned are another store's."""
        fresh = self._fresh.get(delivered.partition)
        if fresh is None:
            return
        fresh.arrive(delivered)
        if fresh.bytes > self._share and delivered.partition not in self._held:
            self._held.add(delivered.partition)
            self._hold(delivered.partition)
            self._wake.set()
        elif self._is_enough(fresh):
            self._wake.set()

    def _is_enough(self, fresh: FreshMessages) -> bool:
        """Return whether a store that is behind cuts at once, for what has arrived of a partition."""
        return self.is_behind and fresh.bytes > min(ENOUGH, self._share // 2)

    @property
    def _share(self) -> int:
        return max(MIN_WAITING, MAX_WAITING // max(1, len(self._fresh)))

    async def run(self) -> None:
        """Cut segments, for ever. What fails is tried again."""
        while True:
            while (waits := self.cuts_wait_until - time.monotonic()) > 0:  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(min(waits, PAUSE))
            began = time.monotonic()
            try:
                goes_on_at_once = await self.cut()
            except LogBroken:
                raise
            except (LogError, OSError) as error:
                get_logger().warning("store.waits", error=str(error))
                await asyncio.sleep(RETRY)
                continue
            if not goes_on_at_once:
                self._wake.clear()
            if self._is_far_behind:
                await self._yielding.rest(time.monotonic() - began)
            if not goes_on_at_once:
                try:
                    async with asyncio.timeout(max(PAUSE, began + INTERVAL - time.monotonic())):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def cut(self) -> bool:
        """Make segments of what is complete; return whether there is more at once.

        Raises `LogError`, `OSError`; and `MessagesSkipped`, once what came before those messages is stored: the next
        store has to begin with them.
        """
        async with self._turn:
            left = _CutAll(is_full=False, is_behind=False)
            self.is_cutting = True
            try:
                if not await self.call(self._look_for_room):
                    return False
                left = await self.call(self._cut_all, list(self._fresh.values()))
            finally:
                self.is_behind, self._is_far_behind = left.is_behind, left.is_far_behind
                self.is_cutting = False
            for fresh in self._fresh.values():
                fresh.release()
        await self._let_in()
        return left.is_full or any(map(self._is_enough, self._fresh.values()))

    async def _let_in(self) -> None:
        """Fetch again what was held, where there is room. Not within a turn: the consumer may wait for one, so as to
        give partitions up, before it does this."""
        for number in list(self._held):
            if number not in self._held:  # it was given up meanwhile
                continue
            if self._fresh[number].bytes <= self._share // 2 and not self._fresh[number].is_stopped:
                self._held.discard(number)
                if self._go_on is not None:
                    await self._go_on(number)

    def _look_for_room(self) -> bool:
        if not self.directory.is_there:
            raise DirectoryGone(f"{self.directory.path} is not there any more")
        found = self.directory.has_room()
        if found != self._has_room:
            self._has_room = found
            if found:
                get_logger().info("store.goes_on", free=self.directory.free())
            else:
                get_logger().error("store.disk_full", free=self.directory.free(), reserve=self.directory.reserve())
        return found

    def _cut_all(self, partitions: list[FreshMessages]) -> _CutAll:
        log, topic = self._open()
        before = self.clock() - self._payload_retention * DAY if self._payload_retention else 0
        cuts: list[tuple[FreshMessages, Cut]] = []
        behind = left = taken = 0
        leaves_more = False
        for fresh in partitions:
            events = TopicPartition(EVENTS, fresh.number)
            committed = log.committed(GROUP, events) or 0
            behind += max(0, committed - fresh.reached)
            first = fresh.next_offset()
            if first is not None and first > fresh.reached:
                gap = fresh.gap(min(first, log.first(events)))
                if gap is not None:
                    self._append_gap(fresh, gap)
            try:
                found = fresh.cut(committed, before) if committed > fresh.reached else None
            except MessagesSkipped as error:
                get_logger().critical(
                    "store.messages_skipped", partition=error.partition, first=error.first, last=error.last
                )
                skips.count(self.directory.storage, error.partition)
                raise
            if found is not None:
                cuts.append((fresh, found))
                segment = found.manifest.segment
                leaves_more |= committed - segment.end > segment.end - segment.start
                left += committed - segment.end
                taken += segment.end - segment.start
        is_full = False
        if cuts:
            catalog = topic.append(each.manifest for _, each in cuts)
            for fresh, each in cuts:
                is_full |= not self._advance(fresh, catalog, each.manifest) or each.is_full
            live = [each for fresh in partitions for each in catalog.live(fresh.number)]
            self.unmerged = sum(each.level == 0 and each.has_files for each in live)
            self._trimming.worked(sum(each.manifest.segment.parquet_bytes for _, each in cuts))
        else:
            self._trimming.rested()
        self._tell(behind)
        return _CutAll(is_full, is_full or leaves_more, left > FAR * taken)

    def _advance(self, fresh: FreshMessages, catalog: Catalog, written: Manifest) -> bool:
        """Go on behind the last live segment; return whether that is the one written here, not another store's."""
        if catalog.generation(fresh.number) > fresh.generation:
            raise Overtaken(f"another store has begun partition {fresh.number} anew")
        live = catalog.live(fresh.number)
        last: Segment | None = live[-1] if live else None
        if last is not None:
            fresh.advance(last.end, last.id)
        if last is None or last.id != written.segment.id:
            get_logger().warning("store.not_first", partition=fresh.number, segment=written.segment.id)
            return False
        self.rows += last.rows
        return True

    def _tell(self, behind: int) -> None:
        report = self._building.report(behind, time.monotonic())
        if report is not None:
            event = "store.built" if report.is_last else "store.building"
            get_logger().info(event, done=report.done, of=report.of, seconds_left=report.seconds_left)

    async def close(self) -> None:
        """End the thread, after the cut that is being made, and close the log."""
        async with self._turn:
            await self.call(self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


def _say_damaged(number: int, text: str) -> None:
    get_logger().error("store.claims_damaged", partition=number, text=text)
