"""What a store does beside its cuts: it merges segments, makes those anew whose files are missing or damaged, removes
what is past retention, and deletes replaced files."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from processor import memory
from processor.core.clock import DAY
from processor.event_store import merging, stored_sums
from processor.event_store.manifest import Manifest, Segment, segment_id
from processor.event_store.merge import SegmentUnreadable
from processor.event_store.merging import Bounds
from processor.event_store.repair import RangeUnknown, Repair
from processor.event_store.store import Store
from processor.event_store.store_directory import UNNAMED_AGE
from processor.event_store.stored_sums import DamagedSegment
from processor.log.errors import LogBroken, LogError
from processor.structured_log import get_logger

MERGE_EVERY: Final = 0.5
"""Seconds between two looks for segments to merge."""

SWEEP_EVERY: Final = 10.0
EXPIRE_EVERY: Final = 60.0

LOOK: Final = 0.05
"""Seconds between two looks whether a merge may go on."""

MOST_TURN: Final = 2.0
"""Seconds for which cuts wait at most for a merge that has waited for one of them."""

MOST_UNMERGED: Final = 16 * merging.WIDE_FAN_IN
"""Segments of all partitions that were never merged, up to which cuts of a store that is behind go first."""

LEFT_OUT_FOR: Final = 600.0
"""Seconds for which segments are not merged that could not be read, though their files are sound: a disk may have
failed once."""

KEPT_FOR: Final = 120.0
"""Seconds for which the files of a replaced segment stay, for questions that are being answered from them."""


MOST_HELD: Final = 5.0
"""Seconds for which cuts wait at most for a merge that goes first to go on."""


class _Replaced(NamedTuple):
    """A replaced segment, and since when this process has known that (monotonic seconds)."""

    segment: Segment
    since: float


class Upkeep:
    """Looks after the segments of the partitions that `store` owns.

    `retention` is in days, 0: none; `kept_for` in seconds, see `KEPT_FOR`. Files are merged in a thread of their own;
    all calls of the log are made in the store's.
    """

    def __init__(
        self,
        store: Store,
        retention: int = 0,
        payload_retention: int | None = None,
        kept_for: float = KEPT_FOR,
        fan_in: int = merging.FAN_IN,
    ) -> None:
        self._store = store
        self._retention = retention
        self._payload_retention = payload_retention
        self._kept_for = kept_for
        self._fan_in = fan_in
        self._bounds = Bounds(span=merging.MAX_SPAN_RETAINED) if retention else Bounds()
        self._thread = ThreadPoolExecutor(1, "store-merge")
        self._replaced: dict[str, _Replaced] = {}
        self._unreadable: dict[str, float] = {}
        """Segments that could not be read, though their files are those that were written, and until when (monotonic
        seconds) they are left out."""
        self._unknown: set[str] = set()
        """Segments that cannot be made anew: the program that has written their messages is a newer one."""
        self._holds_cuts = False
        """Whether cuts wait, or have waited, for the merge that is under way until it is done."""
        self.merged = 0
        """Segments that were written in place of others."""

    async def run(self) -> None:
        """Look after the segments, for ever. What fails is tried again."""
        if not self._store.is_shared:  # nobody else writes there, and nothing is being written
            await self._store.call(self.remove_unnamed, 0.0)
        await asyncio.gather(
            self._repeat(self.merge_one, MERGE_EVERY),
            self._repeat(self.repair_one, MERGE_EVERY),
            self._repeat(self.sweep, SWEEP_EVERY),
            self._repeat(self.expire, EXPIRE_EVERY),
        )

    async def _repeat(self, work: Callable[[], Awaitable[Any]], every: float) -> None:
        while True:
            try:
                goes_on_at_once = await work()
            except LogBroken:
                raise
            except (LogError, OSError) as error:
                get_logger().warning("store.waits", error=str(error))
                goes_on_at_once = False
            if not goes_on_at_once:
                await asyncio.sleep(every)

    def live(self, number: int) -> list[Segment]:
        """Return the segments of a partition that count. For the store's thread.

        None where the store begins the partition anew and has cut nothing yet: the topic still has those before.
        """
        topic = self._store.topic
        if topic is None or topic.catalog.generation(number) < self._store.generation(number):
            return []
        return topic.catalog.live(number)

    # --- merging ----------------------------------------------------------------------------------------------------

    @property
    def _has_to_wait(self) -> bool:
        """Whether merging has to wait: a store that is behind cuts first, since that is what it is late with."""
        return self._store.is_behind and self._may_wait

    @property
    def _may_wait(self) -> bool:
        """Whether merging may wait for cuts at all. Repairs, for which questions wait, are made by its thread."""
        return self._store.unmerged < MOST_UNMERGED and not self._store.lacking

    @property
    def _has_to_go_first(self) -> bool:
        """Whether a store that is behind has to merge before it cuts on: as many segments stand as may."""
        return self._store.is_behind and self._store.unmerged >= MOST_UNMERGED

    def _let_cuts_go_first(self) -> None:
        """Wait as long as that, and while a cut is being made: what has just been counted waits for it, and both take
        what ingest leaves. For the thread of the merging."""
        while self._has_to_wait or (self._store.is_cutting and self._may_wait):
            time.sleep(LOOK)
        if self._has_to_go_first:
            self.hold_cuts()
        else:
            self.take_turns()

    def hold_cuts(self) -> None:
        """Have the cuts wait for this merge until it is done, once that which is being made is: both together gain
        nothing, as they take turns, and would take too much memory."""
        has_been_cut = self._store.is_cutting or not self._holds_cuts
        self._holds_cuts = True
        self._store.cuts_wait_until = time.monotonic() + MOST_HELD
        while self._store.is_cutting:
            time.sleep(LOOK)
        if has_been_cut:  # which has left free what the merge takes
            memory.trim()
            self._store.cuts_wait_until = time.monotonic() + MOST_HELD

    def take_turns(self) -> None:
        """Wait while a cut is being made, and have the next one wait as long: both together would take too much
        memory."""
        began = time.monotonic()
        if began < self._store.cuts_wait_until:
            return
        while self._store.is_cutting:
            time.sleep(LOOK)
        now = time.monotonic()
        if now - began >= LOOK:
            self._store.cuts_wait_until = now + min(now - began, MOST_TURN)

    async def merge_one(self) -> bool:
        """Merge the segments of one partition that need it most; return whether there were any, and it could be done.

        Raises `LogError`, `OSError`.
        """
        if self._has_to_wait:
            return False
        chosen = await self._store.call(self._choose)
        if not chosen:
            return False
        self._holds_cuts = False
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._let_cuts_go_first)  # for minutes, it may be
            if not await self._store.call(self._are_live, chosen):
                return True
            replacement = await loop.run_in_executor(self._thread, self._merge, chosen)
        except SegmentUnreadable as error:
            get_logger().error("store.unreadable", error=str(error))
            if not await self.remove_damaged(chosen):
                self._unreadable |= dict.fromkeys((each.id for each in chosen), time.monotonic() + LEFT_OUT_FOR)
            return True
        finally:
            if self._holds_cuts:
                self._store.cuts_wait_until = 0.0
        if replacement.partition in self._store.owned:
            await self._store.call(self._replace, "merged", chosen, replacement)
            self.merged += 1
        if self._holds_cuts:
            await asyncio.sleep(2 * LOOK)  # the cut that waited begins before the next merge
        return True

    def _choose(self) -> Sequence[Segment]:
        at, lacking = time.monotonic(), self._store.lacking
        self._unreadable = {name: until for name, until in self._unreadable.items() if until > at}
        lives = [part for number in sorted(self._store.owned) for part in self._readable(self.live(number))]
        runs = [merging.choose(live, self._bounds, self._fan_in) for live in lives]
        runs = [run for run in runs if run and not any(each.id in lacking for each in run)]
        if not runs:
            return ()
        chosen = min(runs, key=lambda run: (run[0].level, sum(each.rows for each in run)))
        size = sum(each.parquet_bytes + each.index_bytes for each in chosen)
        return chosen if self._store.directory.has_room(size) else ()

    def _are_live(self, parts: Sequence[Segment]) -> bool:
        """Return whether parts of a partition still count, with their files, and are this store's. For the store's
        thread."""
        number, lacking = parts[0].partition, self._store.lacking
        live = {each.id for each in self.live(number)}
        return number in self._store.owned and all(each.id in live and each.id not in lacking for each in parts)

    def _readable(self, live: Sequence[Segment]) -> list[list[Segment]]:
        """Return the neighbours that can be read: those behind others that cannot are merged all the same."""
        parts: list[list[Segment]] = [[]]
        for each in live:
            if each.id in self._unreadable:
                parts.append([])
            else:
                parts[-1].append(each)
        return parts

    def _merge(self, parts: Sequence[Segment]) -> Segment:
        segment = _over(parts, level=parts[0].level + 1)
        with_rows = [each for each in parts if each.rows]
        if not with_rows:
            return segment
        return self._store.writer.merge(with_rows, segment, self._payload_before(), self._let_cuts_go_first)

    async def remove_damaged(self, parts: Sequence[Segment]) -> bool:
        """Delete those files that are not the ones that were written, so that they are made anew; return whether there
        are any. It does not wait for a merge, which may wait for the cuts. Raises `OSError`."""
        damaged = await asyncio.to_thread(self._remove_damaged, parts)
        self._store.lacking.update({each.id: each for each in damaged})
        return bool(damaged)

    def _remove_damaged(self, parts: Sequence[Segment]) -> list[Segment]:
        damaged = []
        for each in parts:
            try:
                stored_sums.check(self._store.directory.storage, each)
            except (DamagedSegment, FileNotFoundError) as error:
                get_logger().error("store.damaged", error=str(error))
                damaged.append(each)
                self._store.directory.remove(each.id)
        return damaged

    def _replace(self, kind: Any, parts: Sequence[Segment], segment: Segment) -> None:
        """Append a replacement, if what it replaces is still live."""
        topic = self._store.topic
        assert topic is not None
        catalog = topic.read_on()
        live = {each.id for each in catalog.live(segment.partition)}
        if all(each.id in live for each in parts):
            generation = catalog.generation(segment.partition)
            replaces = tuple(each.id for each in parts)
            topic.append([Manifest(kind=kind, segment=segment, generation=generation, replaces=replaces)])
        else:
            self._store.directory.remove(segment.id)

    # --- repairs ---------------------------------------------------------------------------------------------------

    async def repair_one(self) -> bool:
        """Make one segment anew that lacks its files; return whether there was any. Raises `LogError`, `OSError`."""
        store, loop = self._store, asyncio.get_running_loop()
        repair = await store.call(self._begin_repair)
        if repair is None:
            return False
        old: Segment = repair.segment
        get_logger().warning("store.repairs", partition=old.partition, first=old.start, last=old.end - 1)
        try:
            while await store.call(repair.step, self._payload_before()):
                if old.partition not in store.owned:
                    return True
            made = await loop.run_in_executor(self._thread, repair.finish, self._payload_before())
            if old.partition in store.owned:
                kind = "expired" if made.is_absent else "merged"
                await store.call(self._replace, kind, [old], made)
        except RangeUnknown:
            self._unknown.add(old.id)
            get_logger().error("store.repair_refused", partition=old.partition, first=old.start, last=old.end - 1)
            return True
        finally:
            await loop.run_in_executor(self._thread, repair.clean)
        store.lacking.pop(old.id, None)
        if made.rows == old.rows:
            get_logger().info("store.repaired", partition=old.partition, rows=made.rows)
        else:
            first, last = old.start, old.start + max(repair.lost, 1) - 1
            lost = {"rows": old.rows - made.rows, "first": first, "last": last}
            get_logger().error("store.lost", partition=old.partition, **lost)
        return True

    def _begin_repair(self) -> Repair | None:
        store = self._store
        for old in list(store.lacking.values()):
            live = self.live(old.partition)
            names = [each.id for each in live]
            if old.partition not in store.owned or old.id not in names:
                del store.lacking[old.id]  # it is replaced, or another store's
            elif old.id not in self._unknown and store.directory.has_room(2 * (old.parquet_bytes + old.index_bytes)):
                place = names.index(old.id)
                repair = Repair(store.directory, store.writer, old)
                repair.begin(store.log, live[place - 1].claims_from if place else 0)
                return repair
        return None

    def _payload_before(self) -> int:
        return self._store.clock() - self._payload_retention * DAY if self._payload_retention else 0

    # --- retention --------------------------------------------------------------------------------------------------

    async def expire(self) -> None:
        """Remove the rows of segments whose newest arrival is past retention. Raises `LogError`.

        On the embedded log the worker decides what is past it, by deleting the messages: no wrong clock makes it delete
        more than a few days at a time. On Kafka the messages stay, and the directory can be made anew from them.
        """
        if self._retention:
            await self._store.call(self._expire)

    def _expire(self) -> None:
        for number in sorted(self._store.owned):
            live = self.live(number)
            is_due = self._due(number, live)
            run: list[Segment] = []
            for each in live:
                if each.is_absent or is_due(each):
                    run.append(each)
                else:
                    self._expire_run(run)
                    run = []
            self._expire_run(run)

    def _due(self, number: int, live: Sequence[Segment]) -> Callable[[Segment], bool]:
        """Return what tells whether a segment of a partition is past retention."""
        if not self._store.is_shared:
            first = self._store.first(number)
            return lambda each: each.end <= first
        newest = max((each.arrival_max for each in live), default=0)
        before = min(self._store.clock(), newest) - self._retention * DAY
        return lambda each: each.has_files and each.arrival_max < before

    def _expire_run(self, run: Sequence[Segment]) -> None:
        """Replace neighbours without rows, or whose rows are past their time, by one without."""
        if len(run) > 1 or any(not each.is_absent for each in run):
            get_logger().info("store.expired", partition=run[0].partition, rows=sum(each.rows for each in run))
            self._replace("expired", run, _over(run, is_absent=True))

    # --- what was replaced ------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Delete files and records of segments that count no longer. Raises `LogError`, `OSError`."""
        await self._store.call(self._sweep)

    def _sweep(self) -> None:
        store, topic = self._store, self._store.topic
        if topic is None:
            return
        catalog, owned, at = topic.read_on(), sorted(store.owned), time.monotonic()
        self.remove_unnamed()
        ignored = [each.segment.id for number in owned for each in catalog.ignored(number)]
        replaced = [each.segment for number in owned for each in catalog.replaced(number)]
        since = {each.id: self._replaced.get(each.id, _Replaced(each, at)) for each in replaced}
        self._replaced = since
        due: list[str] = []
        for number in owned:
            for segment in (each for each in replaced if each.partition == number):
                if at - since[segment.id].since < self._kept_for:
                    break  # in the order of the topic: what is behind it stays, too
                due.append(segment.id)
        for name in [*ignored, *due]:
            store.directory.remove(name)
        if ignored or due:
            topic.bury([*ignored, *due])
        topic.compact()

    def remove_unnamed(self, older: float = UNNAMED_AGE) -> None:
        """Delete files of segments whose manifest was never written, as their store was killed: those that are older
        than so many seconds. For the store's thread."""
        topic = self._store.topic
        if topic is None:
            return
        topic.read_on()
        directory = self._store.directory
        names = list(directory.unnamed(topic.known(), self._store.owned, older))
        for name in names:
            directory.storage.delete(name)
        if names:
            get_logger().info("store.swept", files=len(names))


def _over(parts: Sequence[Segment], *, level: int = 0, is_absent: bool = False) -> Segment:
    """Return a segment that covers neighbours, without figures of rows."""
    first, last = parts[0], parts[-1]
    return Segment(
        id=segment_id(first.partition, first.start, last.end),
        partition=first.partition,
        start=first.start,
        end=last.end,
        level=level,
        claims_from=last.claims_from,
        is_absent=is_absent,
    )
