"""The id index: every claim of one partition, for ever, on disk.

The claims log is authoritative; the index is derived from it. It consists of segments of growing size; only the newest
one, which is in memory, gets new ids. Files never change once they are written: full segments, the newest ids since
(`journal.py`), and a checkpoint that names these files and the position in the claims log up to which they go
(`manifest.py`). A file has no id whose claim is not durable in the claims log. A start compares the checkpoint with the
log and every file with its checksums. Files that are not named are deleted. If anything does not agree, all files are
deleted and the claims log is read from its beginning; else from the checkpoint on.

From a quarter of a million ids on there are filters (`filters.py`), so that a new id is searched in the newest segment
only. They are filled in a thread.
"""

import errno
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from processor.core.partitioning import U64
from processor.core.tables.history import OffsetRange
from processor.ids import index_checkpoint, probe
from processor.ids.arena import Arena
from processor.ids.filters import ROWS_PER_PLACE, Filter, next_place, width_of
from processor.ids.id_segment import MAX_SPAN, CheckedBlocks, DamagedIndex, IdSegment, Numbers, Secret
from processor.ids.index_checkpoint import NOTHING, Covered, IndexCheckpoint, NamedSegment, Unusable
from processor.ids.journal import Journal, TailFile, read_tail, write_tail
from processor.ids.probe import Found, Layout
from processor.log.durable_names import sync_directory
from processor.structured_log import get_logger

FIRST_CAPACITY: Final = 1 << 16
GROWTH: Final = 4
MAX_CAPACITY: Final = 1 << 21
"""Most places of a segment: 56 MiB of memory for the newest one, 1.7 million ids."""
TAIL: Final = 1 << 17
"""Ids since the last file after which a checkpoint is made: 4 MiB."""
RECORDS: Final = 20_000
"""Claims records since the last checkpoint after which one is made, however few ids they have."""
MAX_WAITING: Final = 4
"""Full segments that may wait in memory to be written; with more, new ids are refused."""
STEP: Final = 2048
"""Buckets whose ids are put into a filter together: `claim` may have to wait for that, a fraction of a millisecond."""
LOADED: Final = 1 << 16
"""Ids of a tail that are inserted together."""

DigestOf = Callable[[int], str | None]
"""The digest of the claims record at an offset of the claims log; None: there is none."""


class _Place(NamedTuple):
    """The filter and the bit of a segment."""

    filter: int
    bit: int


class _View(NamedTuple):
    """What a search uses, replaced as a whole when anything changes."""

    layout: Layout
    unfiltered: tuple[int, ...]
    """Segments that every search has to look into, the newest first."""
    filters: tuple[tuple[Filter, int, Numbers], ...]
    """Filter, its bits that are trusted, and each bit's segment."""
    checked: CheckedBlocks


class IdIndex:
    """A `ClaimIndex` of segments in a directory.

    One thread claims and finds. `sync` may run in another one beside it.
    """

    def __init__(
        self,
        directory: Path,
        identity: str,
        digest_of: DigestOf | None = None,
        *,
        void: Sequence[OffsetRange] = (),
        first_capacity: int = FIRST_CAPACITY,
        max_capacity: int = MAX_CAPACITY,
    ) -> None:
        """Open or make the index of the claims log with this `identity`.

        An index in the directory that does not agree with that log is deleted, with a line in the program's log that
        says why; then `covered` is `NOTHING`. Without `digest_of` the index is temporary: files in the directory are
        deleted, and segments are written only to free memory. `void` are the offsets of events whose claims do not
        count; an index made with others is deleted.

        Capacities are powers of two, at least 64; `max_capacity` must not change. Raises `OSError` if memory cannot be
        had or the directory cannot be written, and what `digest_of` raises.
        """
        self._directory = directory
        self._identity = identity
        self._void = list(void)
        self._scratch = digest_of is None
        self._first_capacity = first_capacity
        self._max_capacity = max_capacity
        self._lock = Lock()
        """Held while the view changes."""
        self._files = Lock()
        """Held while files are written and named in a checkpoint."""
        self._closing = Event()
        self._thread: ThreadPoolExecutor | None = None
        self._damage: DamagedIndex | None = None
        self._distrusted = False
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._clear()
        if digest_of is not None:
            try:
                self._load_checkpoint(digest_of)
            except (Unusable, DamagedIndex) as reason:
                get_logger().warning("index.discarded", directory=str(directory), reason=_text(reason))
                self.close()
                self._closing.clear()
                self._clear()
        self._sweep()
        self._view = self._make_view()
        self._fill_filters_later()

    def _load_checkpoint(self, digest_of: DigestOf) -> None:
        """Load what the checkpoint names, if there is one. Raises `Unusable` or `DamagedIndex`."""
        found = index_checkpoint.read(self._directory, self._identity, digest_of, self._void)
        if found is not None:
            self._load(found)
        elif any(self._directory.iterdir()):
            raise Unusable(f"it has no {index_checkpoint.NAME}")

    def _clear(self) -> None:
        self._arena = Arena()
        self._segments: list[IdSegment] = []
        self._count = 0
        self._journal = Journal()
        self._named = IndexCheckpoint(index_checkpoint.FORMAT, self._identity, NOTHING, [], [], {}, self._void)
        """The newest checkpoint."""
        self._filters: dict[int, Filter] = {}
        self._places: Mapping[int, _Place] = {}
        """Number of a segment -> its place in the filters."""
        self._digests: dict[int, str] = {}
        """Number of a filter -> its digest under the bits of `_places`."""
        self._view = self._make_view()

    def __len__(self) -> int:
        return self._count

    @property
    def covered(self) -> Covered:
        """What the newest checkpoint covers: a start would find that before it reads the claims log."""
        return self._named.covered

    @property
    def checkpointed(self) -> int:
        """The offset from which a start would read the claims log."""
        return self._named.covered.claims

    @property
    def waits(self) -> bool:
        """Whether a full segment has not been written yet: the next `sync` writes it, if its claims are durable."""
        return len(self._segments) > 1 and self._segments[-2].path is None

    def claim(self, keys: U64, digests: U64, offset: int | Numbers) -> tuple[NDArray[np.int64], U64]:
        """See `ClaimIndex.claim`.

        Raises `DamagedIndex` when a file is not what was written, and any other `OSError` if memory cannot be had or
        too many segments could not be written: then some of the keys may be claimed.
        """
        offsets = np.broadcast_to(np.int64(offset) if isinstance(offset, int) else offset, len(keys))
        rows, found = self._search(keys)
        held, kept = _best(len(keys), rows, found)
        missing = np.flatnonzero(held < 0)
        if len(missing):
            # The first results are those of the newest segment, unless it is full and written.
            taking = self._segments and self._segments[-1].path is None
            ends = found.ends[missing] if taking else None
            self._insert(keys[missing], digests[missing], offsets[missing], ends)
            held[missing] = offsets[missing]
            kept[missing] = digests[missing]
        return held, kept

    def find(self, keys: U64) -> tuple[NDArray[np.int64], U64]:
        """Return for each key the offset that claimed it (-1: none) and the digest kept with it.

        Raises `DamagedIndex`.
        """
        return _best(len(keys), *self._search(keys))

    def _search(self, keys: U64) -> tuple[Numbers, Found]:
        """Search all segments that may have a key; return the number of the key for each, and what was found there."""
        if self._damage is not None:
            raise self._damage
        view = self._view
        everyone = np.arange(len(keys))
        rows = [everyone for _ in view.unfiltered]
        segments = [np.full(len(keys), each) for each in view.unfiltered]
        if view.filters:
            spots = view.filters[0][0].spots(keys)
            for each, trusted, numbers in view.filters:
                maybe, bits = each.look(spots, trusted)
                rows.append(maybe)
                segments.append(numbers[bits])
        checked = view.checked if view.checked.left else None
        try:
            if not rows:
                return everyone[:0], probe.find(self._arena, view.layout, keys, everyone[:0], everyone[:0])
            pairs = np.concatenate(rows)
            return pairs, probe.find(self._arena, view.layout, keys, pairs, np.concatenate(segments), checked)
        except DamagedIndex as damage:
            self._give_up(damage)
            raise

    def _insert(self, keys: U64, digests: U64, offsets: Numbers, ends: Numbers | None) -> None:
        """Insert new keys. `ends`: their free places in the segment that was the newest when they were searched."""
        looked_into = len(self._segments) - 1
        done = 0
        while done < len(keys):
            newest = self._newest(int(offsets[done]))
            number = len(self._segments) - 1
            layout = self._view.layout
            count = min(newest.room, newest.spanned(offsets[done:]))
            part = slice(done, done + count)
            some = keys[part]
            if ends is not None and number == looked_into:
                at = ends[part]
            else:
                at = probe.find(self._arena, layout, some, np.arange(count), np.full(count, number)).ends
            probe.insert(self._arena, layout, number, some, digests[part], offsets[part], at)
            if not self._scratch:
                self._journal.add(some, digests[part], offsets[part])
            newest.used += count
            self._count += count
            done += count

    # --- growing ----------------------------------------------------------------------------------------------------

    def _newest(self, offset: int) -> IdSegment:
        """Return the segment for new claims at `offset`; make one if the newest is full or cannot hold the offset."""
        last = self._segments[-1] if self._segments else None
        if last is not None and last.path is None and last.room > 0 and last.spans(offset):
            return last
        return self._begin_segment(last, offset)

    def _begin_segment(self, last: IdSegment | None, offset: int) -> IdSegment:
        """Begin a segment behind the `last` one, for claims at `offset` and many before and after it."""
        if last is None:
            capacity = self._first_capacity
        else:
            capacity = self._after(last) if last.room <= 0 else min(last.capacity, self._max_capacity)
        self._check_room()
        secret = self._segments[0].secret if self._segments else _new_secret()
        # A replay may go back before this offset, so the base leaves half of the span below it.
        base = max(0, offset - MAX_SPAN // 2)
        segment = IdSegment.create(self._arena, capacity, base, secret)
        self._segments.append(segment)
        self._publish()
        if self._scratch and len(self._segments) > 1:
            self._in_thread().submit(self._spill)
        return segment

    def _after(self, last: IdSegment) -> int:
        return min(last.capacity * GROWTH, self._max_capacity)

    def _check_room(self) -> None:
        waiting = sum(segment.path is None for segment in self._segments)
        if waiting > MAX_WAITING:
            raise OSError(
                errno.ENOSPC, f"{waiting} segments of the id index wait to be written to {self._directory}: make room"
            )

    def _spill(self) -> None:
        """Write the full segments of a temporary index."""
        with self._files:
            try:
                self._write_segments(self._count, sync=False)
            except OSError as error:
                get_logger().warning("index.spill_failed", directory=str(self._directory), error=str(error))
        self._fill_filters()

    # --- filters ----------------------------------------------------------------------------------------------------

    def _fill_filters_later(self) -> None:
        """Start to put the segments in files into filters, once segments have their full size."""
        if self._segments and self._after(self._segments[-1]) == self._max_capacity and self._unfiltered():
            self._in_thread().submit(self._fill_filters)

    def _unfiltered(self) -> list[int]:
        """Return the segments that should be in a filter and are not: of those that a checkpoint names."""
        count = len(self._named.segments)
        if self._scratch:
            count = sum(segment.path is not None for segment in self._segments)
        return [number for number in range(count) if number not in self._places]

    def _fill_filters(self) -> None:
        if not self._segments or self._after(self._segments[-1]) != self._max_capacity:
            return
        for number in self._unfiltered():
            if self._closing.is_set():
                return
            try:
                self._fill_filter(number)
                if not self._scratch:
                    with self._files:
                        if self._damage is None:
                            self._name(self._named.covered, len(self._named.segments), self._named.tails)
            except DamagedIndex as damage:
                self._give_up(damage)
                return
            except (OSError, MemoryError) as error:  # until it works, every search looks into the segment
                get_logger().warning("index.filter_failed", segment=f"{number:04d}.idx", error=str(error))

    def _fill_filter(self, segment: int) -> None:
        """Put a segment into a filter. The order of the steps makes it safe, see `filters.py`."""
        number, bit = next_place(self._places.values())
        if number not in self._filters:
            secret = next(iter(self._filters.values())).secret if self._filters else _new_secret()
            rows = ROWS_PER_PLACE * self._max_capacity
            made = Filter.create(self._directory / _filter_name(number), rows, width_of(number), secret)
            self._filters = {**self._filters, number: made}
        chosen = self._filters[number]
        table = self._segments[segment]
        for start in range(0, table.buckets, STEP):
            if self._closing.is_set():
                return
            chosen.add(table.keys(start, start + STEP), bit)
        places = {**self._places, segment: _Place(number, bit)}
        if not self._scratch:
            try:
                chosen.sync()
            except OSError:
                self._forget_filter(number)
                raise
        trusted = sum(1 << place.bit for place in places.values() if place.filter == number)
        digest = "" if self._scratch else chosen.digest(trusted)
        with self._lock:
            self._places = places
            self._digests = {**self._digests, number: digest}
            self._view = self._make_view()

    def _forget_filter(self, number: int) -> None:
        """Drop a filter whose file must not be trusted any more."""
        with self._lock:
            forgotten = self._filters[number].path
            self._filters = {each: kept for each, kept in self._filters.items() if each != number}
            self._digests = {each: kept for each, kept in self._digests.items() if each != number}
            self._places = {each: place for each, place in self._places.items() if place.filter != number}
            self._view = self._make_view()
        forgotten.unlink(missing_ok=True)

    def _publish(self) -> None:
        with self._lock:
            self._view = self._make_view()

    def _make_view(self) -> _View:
        segments = list(self._segments)
        unfiltered = []
        numbers: dict[int, Numbers] = {}
        trusted = dict.fromkeys(self._filters, 0)
        for number in range(len(segments)):
            place = self._places.get(number)
            if place is None:
                unfiltered.append(number)
                continue
            trusted[place.filter] |= 1 << place.bit
            numbers.setdefault(place.filter, np.zeros(64, np.int64))[place.bit] = number
        return _View(
            probe.layout_of(segments),
            tuple(reversed(unfiltered)),
            tuple((self._filters[each], trusted[each], numbers[each]) for each in sorted(numbers)),
            CheckedBlocks(segments),
        )

    def _in_thread(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "index")
        return self._thread

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def sync(self, covered: Covered, *, final: bool = False) -> None:
        """Make a checkpoint of what is `covered` by durable claims if a segment is full or there are `TAIL` new ids or
        `RECORDS` new records since the last one; with `final`, if there are any.

        Blocks, mostly without the GIL; may run beside `claim`. Raises `OSError`: then the last checkpoint stays valid.
        """
        with self._files:
            named = self._named.covered
            over = self._distrusted or self._damage is not None or self._closing.is_set()
            if over or self._scratch or covered.claims <= named.claims:
                return
            enough = covered.ids - named.ids >= TAIL or covered.claims - named.claims >= RECORDS or final
            first = len(self._named.segments)
            full = len(self._segments) - 1 > first and self._ends()[first] <= covered.ids
            if not (enough or full):
                return
            count = self._write_segments(covered.ids)
            self._name(covered, count, self._write_tails(covered, count))
        self._fill_filters_later()

    def _ends(self) -> list[int]:
        """Return for each segment how many ids the index has up to its last."""
        ends: list[int] = np.cumsum([segment.used for segment in list(self._segments)]).tolist()
        return ends

    def _write_segments(self, ids: int, *, sync: bool = True) -> int:
        """Write the full segments that have only ids among the first `ids` of the index; return how many segments,
        from the first on, are in files then."""
        segments = self._segments[:-1]
        count = 0
        for number, (segment, end) in enumerate(zip(segments, self._ends(), strict=False)):
            if end > ids:
                break
            if segment.path is None:
                segment.write(self._directory / f"{number:04d}.idx", durable=sync)
            count = number + 1
        return count

    def _write_tails(self, covered: Covered, segments: int) -> list[TailFile]:
        """Write the covered ids that are not in the first `segments` to a tail; return all tails."""
        start = self._ends()[segments - 1] if segments else 0
        tails = [tail for tail in self._named.tails if tail.end > start]
        if tails and tails[-1].ids < TAIL:
            tails.pop()
        start = max(start, tails[-1].end) if tails else start
        if start < covered.ids:
            number = 1 + max((int(Path(tail.file).stem) for tail in self._named.tails), default=0)
            entries = self._journal.read(start, covered.ids)
            tails.append(write_tail(self._directory / f"{number:08d}.tail", start, entries))
        return tails

    def _name(self, covered: Covered, segments: int, tails: list[TailFile]) -> None:
        """Write a checkpoint that names the first `segments`, these tails, and the filters of those segments."""
        with self._lock:
            places, digests = self._places, self._digests
        named = []
        for number, segment in enumerate(self._segments[:segments]):
            assert segment.path is not None
            place = places.get(number, _Place(-1, -1))
            named.append(NamedSegment(segment.path.name, segment.digest, place.filter, place.bit))
        filters = {_filter_name(number): digest for number, digest in digests.items()}
        found = IndexCheckpoint(index_checkpoint.FORMAT, self._identity, covered, named, tails, filters, self._void)
        sync_directory(self._directory)  # the files have to exist whenever a checkpoint that names them does
        found.write(self._directory)
        sync_directory(self._directory)
        before, self._named = self._named, found
        for tail in before.tails:
            if tail not in tails:
                (self._directory / tail.file).unlink(missing_ok=True)
        last = tails[-1] if tails else None
        self._journal.drop(last.start if last is not None and last.ids < TAIL else covered.ids)

    def _load(self, found: IndexCheckpoint) -> None:
        """Load the files that a checkpoint names. Raises `DamagedIndex`, `Unusable`."""
        for each in found.segments:
            self._segments.append(IdSegment.open(self._directory / each.file, self._arena, each.digest))
            self._count += self._segments[-1].used
        self._load_filters(found)
        self._publish()
        named = self._count
        self._journal = Journal(named)
        for tail in found.tails:
            entries = read_tail(self._directory, tail)[max(0, named - tail.start) :]
            for start in range(0, len(entries), LOADED):
                some = entries[start : start + LOADED]
                self._insert(np.ascontiguousarray(some["key"]), some["digest"], some["offset"], None)
            if self._count != max(named, tail.end):
                raise Unusable(f"{tail.file} does not begin where the files before it end")
            if tail.ids >= TAIL:
                self._journal.drop(tail.end)
        if self._count != found.covered.ids:
            raise Unusable(f"its files have {self._count} ids and its checkpoint says {found.covered.ids}")
        self._named = found

    def _load_filters(self, found: IndexCheckpoint) -> None:
        """Open the filters. A missing or damaged one is made again later."""
        for name, digest in found.filters.items():
            path = self._directory / name
            number = int(path.stem)
            places = {
                segment: _Place(each.filter, each.bit)
                for segment, each in enumerate(found.segments)
                if each.filter == number
            }
            try:
                opened = Filter(path)
                if opened.digest(sum(1 << place.bit for place in places.values())) != digest:
                    raise ValueError("its checksum does not match")
            except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
                get_logger().warning("index.filter_damaged", file=str(path), error=str(error))
                path.unlink(missing_ok=True)
                continue
            if opened.agrees(next(iter(self._filters.values()), opened)):
                self._filters[number] = opened
                self._digests[number] = digest
                self._places = {**self._places, **places}

    def _sweep(self) -> None:
        """Delete every file that the checkpoint does not name."""
        named = {segment.file for segment in self._named.segments} | {tail.file for tail in self._named.tails}
        named |= {filter_.path.name for filter_ in self._filters.values()}
        if self._named.covered.claims:
            named.add(index_checkpoint.NAME)
        checkpoint = self._directory / index_checkpoint.NAME
        if checkpoint.name not in named and checkpoint.exists():  # first, and durably: it must not name deleted files
            checkpoint.unlink()
            sync_directory(self._directory)
        for path in self._directory.iterdir():
            if path.name not in named and path.is_file():
                path.unlink()

    def _give_up(self, damage: DamagedIndex) -> None:
        """Stop using the index, and make the next start build it from the claims log."""
        with self._lock:
            if self._damage is not None:
                return
            self._damage = damage
        get_logger().error("index.damaged", file=str(damage.path), reason=damage.reason)
        try:
            with self._files:
                (self._directory / index_checkpoint.NAME).unlink(missing_ok=True)
                sync_directory(self._directory)
        except OSError as error:
            get_logger().error("index.not_discarded", directory=str(self._directory), error=str(error))

    def distrust(self) -> None:
        """Make no more checkpoints: memory has ids that no table will contain. No file has them yet."""
        self._distrusted = True

    def close(self) -> None:
        """Stop the thread, wait for it, and drop the segments."""
        self._closing.set()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
        with self._files:
            self._segments = []
            self._filters, self._places = {}, {}
            self._view = self._make_view()


def _best(count: int, rows: Numbers, found: Found) -> tuple[Numbers, U64]:
    """Return for each of `count` keys the offset (-1: none) and digest from the one segment that has it."""
    held = np.full(count, -1, np.int64)
    kept = np.zeros(count, np.uint64)
    hits = np.flatnonzero(found.held >= 0)
    held[rows[hits]] = found.held[hits]
    kept[rows[hits]] = found.digests[hits]
    return held, kept


def _new_secret() -> Secret:
    return secrets.randbits(64) | 1, secrets.randbits(64)


def _filter_name(number: int) -> str:
    return f"{number:04d}.filter"


def _text(reason: Unusable | DamagedIndex) -> str:
    return f"{reason.path}: {reason.reason}" if isinstance(reason, DamagedIndex) else str(reason)
