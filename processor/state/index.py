"""The id index: every claim of one partition, for ever, on disk.

The claims log is the truth; the index is a picture of it that is never rewritten: segments of growing size, of which
only the newest takes new ids. `checkpoint` remembers up to where in the claims log everything is known to be on disk;
after any crash the claims from there on are put in again, which changes nothing where they are there already.

From a quarter of a million ids on there are filters (`filters.py`), so that a new id is looked for in the newest
segment only. The next segment is made ahead, and filters are filled, in a thread: `claim` waits for it only if ids come
faster than files can be made.
"""

import json
import os
import secrets
from collections.abc import Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from structlog.stdlib import get_logger

from processor.core.dedupe import U64
from processor.state import probe
from processor.state.arena import Arena
from processor.state.filters import ROWS_PER_PLACE, Filter, next_place, width_of
from processor.state.probe import Found, Layout
from processor.state.segment import MAX_LOAD, MAX_SPAN, Numbers, Secret, Segment

FIRST_CAPACITY: Final = 1 << 16
GROWTH: Final = 4
MAX_CAPACITY: Final = 1 << 22
"""112 MiB, 3.4 million ids. What a checkpoint has to write is at most the newest segment."""
AHEAD: Final = 0.5
"""How full the newest segment is when the next one is made."""
STEP: Final = 2048
"""Buckets whose ids go into a filter at a time: what `claim` may have to wait for, a fraction of a millisecond."""


class _Sealed(NamedTuple):
    """A segment that is on the disk, and in a filter that is."""

    used: int
    filter: int
    bit: int


class _View(NamedTuple):
    """What a search needs, as of one moment."""

    layout: Layout
    unfiltered: tuple[int, ...]
    """Segments that every search looks into, the newest first."""
    filters: tuple[tuple[Filter, int, Numbers], ...]
    """Filter, its bits that are trusted, and each bit's segment."""


class IdIndex:
    """A `ClaimIndex` of memory-mapped segments in a directory."""

    def __init__(
        self,
        directory: Path,
        identity: str,
        *,
        first_capacity: int = FIRST_CAPACITY,
        max_capacity: int = MAX_CAPACITY,
    ) -> None:
        """Open or make the index of the log called `identity`; segments of another log are thrown away.

        Capacities are powers of two, 64 at least; `max_capacity` must be the same every time.
        """
        self._directory = directory
        self._identity = identity
        self._first_capacity = first_capacity
        self._max_capacity = max_capacity
        self._arena = Arena()
        self._lock = Lock()
        self._closing = Event()
        self._thread: ThreadPoolExecutor | None = None
        self._next: Future[Segment] | None = None
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.checkpointed, self._sealed = self._read_checkpoint()
        if self.checkpointed is None:
            for path in (*directory.glob("*.idx"), *directory.glob("*.filter")):
                path.unlink()
            self.checkpointed = 0
            self._write_checkpoint(0)
        for path in directory.glob("*.new"):
            path.unlink()
        paths = sorted(directory.glob("*.idx"))
        self._filters = self._open_filters({path.stem for path in paths[:-1]})
        self._segments: list[Segment] = []
        for path in paths:
            sealed = self._sealed.get(path.stem)
            self._segments.append(Segment(path, self._arena, None if sealed is None else sealed.used))
            if sealed is not None:
                self._segments[-1].rest()
        if self._segments:
            self._segments[-1].claim_space()
        self._view = self._make_view()
        self._seal_later()

    def __len__(self) -> int:
        return sum(segment.used for segment in self._segments)

    def claim(self, keys: U64, digests: U64, offset: int | Numbers) -> tuple[NDArray[np.int64], U64]:
        """See `ClaimIndex.claim`. Raises `OSError` when there is no room on the disk: then some may be claimed."""
        offsets = np.broadcast_to(np.int64(offset) if isinstance(offset, int) else offset, len(keys))
        rows, found = self._search(keys)
        held, kept = _best(len(keys), rows, found)
        again = np.flatnonzero(held == offsets)
        if len(again):  # a replay
            self._mend(rows, found, again, kept, digests)
        missing = np.flatnonzero(held < 0)
        if len(missing):
            ends = found.ends[missing] if self._segments else None  # the newest segment was looked into first
            self._insert(keys[missing], digests[missing], offsets[missing], ends)
            held[missing] = offsets[missing]
            kept[missing] = digests[missing]
        return held, kept

    def find(self, keys: U64) -> tuple[NDArray[np.int64], U64]:
        """For each key the offset that claimed it (-1: none did) and the digest kept with it."""
        return _best(len(keys), *self._search(keys))

    def _search(self, keys: U64) -> tuple[Numbers, Found]:
        """All places where a key may be: its number for each, and what was found there."""
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
        if not rows:
            return everyone[:0], probe.find(self._arena, view.layout, keys, everyone[:0], everyone[:0])
        pairs = np.concatenate(rows)
        return pairs, probe.find(self._arena, view.layout, keys, pairs, np.concatenate(segments))

    def _insert(self, keys: U64, digests: U64, offsets: Numbers, ends: Numbers | None) -> None:
        """`ends`: where they would be in the segment that was the newest when they were looked for."""
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
            probe.insert(
                self._arena, layout, number, some, digests[done : done + count], offsets[done : done + count], at
            )
            newest.used += count
            done += count
        self._look_ahead(int(offsets[-1]))

    def _mend(self, rows: Numbers, found: Found, again: Numbers, kept: U64, digests: U64) -> None:
        """Complete digests of which a word is missing: in a power cut the disk may have got the key's sector only."""
        has = kept[again].view(np.uint32).reshape(-1, 2)
        should = digests[again].view(np.uint32).reshape(-1, 2)
        torn = again[((has == 0) | (has == should)).all(axis=1) & (has != should).any(axis=1)]
        if len(torn):
            kept[torn] = digests[torn]
            there = np.flatnonzero((found.held >= 0) & np.isin(rows, torn))
            probe.mend(self._arena, found.ends[there], digests[rows[there]])

    # --- growing ----------------------------------------------------------------------------------------------------

    def _newest(self, offset: int) -> Segment:
        """The segment that takes claims at `offset`."""
        if self._segments:
            last = self._segments[-1]
            if last.room > 0 and last.spans(offset):
                return last
            capacity = self._after(last) if last.room <= 0 else min(last.capacity, self._max_capacity)
        else:
            capacity = self._first_capacity
        segment = self._made_ahead(capacity, offset) or self._create(capacity, offset)
        segment.settle()
        self._segments.append(segment)
        self._publish()
        self._seal_later()
        return segment

    def _after(self, last: Segment) -> int:
        return min(last.capacity * GROWTH, self._max_capacity)

    def _create(self, capacity: int, offset: int) -> Segment:
        number = int(self._segments[-1].path.stem) + 1 if self._segments else 0
        secret = self._segments[0].secret if self._segments else _new_secret()
        # A replay may go back before the offset at hand, so the base leaves half of the span below it.
        base = max(0, offset - MAX_SPAN // 2)
        return Segment.create(self._directory / f"{number:04d}", self._arena, capacity, base, secret)

    def _look_ahead(self, offset: int) -> None:
        last = self._segments[-1]
        if self._next is None and last.used >= AHEAD * MAX_LOAD * last.capacity:
            self._next = self._in_thread().submit(self._create, self._after(last), offset)

    def _made_ahead(self, capacity: int, offset: int) -> Segment | None:
        """The segment that was made ahead, if it will do."""
        if self._next is None:
            return None
        try:
            segment = self._next.result()
        except OSError:  # the disk was full then; perhaps it is not now
            return None
        finally:
            self._next = None
        if segment.capacity == capacity and segment.spans(offset):
            return segment
        _discard(segment)
        return None

    # --- filters ----------------------------------------------------------------------------------------------------

    def _open_filters(self, full: Set[str]) -> Mapping[int, Filter]:
        """Open the filters; what the checkpoint says of segments that are not `full`, or of lost filters, is void."""
        found: dict[int, Filter] = {}
        for path in sorted(self._directory.glob("*.filter")):
            try:
                opened = Filter(path)
            except (OSError, ValueError, KeyError):
                path.unlink()
                continue
            if opened.agrees(next(iter(found.values()), opened)):
                found[int(path.stem)] = opened
        self._sealed = {
            name: sealed for name, sealed in self._sealed.items() if name in full and sealed.filter in found
        }
        return found

    def _seal_later(self) -> None:
        """Have the segments that take no more ids put into filters, once that is worth a filter's disk space."""
        if self._segments and self._after(self._segments[-1]) == self._max_capacity and self._unsealed():
            self._in_thread().submit(self._seal_all)

    def _unsealed(self) -> list[Segment]:
        """Those that should be in a filter. Too large for one are some that older versions made."""
        return [
            segment
            for segment in self._segments[:-1]
            if segment.path.stem not in self._sealed and segment.capacity <= self._max_capacity
        ]

    def _seal_all(self) -> None:
        for segment in self._unsealed():
            try:
                self._seal(segment)
            except (OSError, MemoryError) as error:  # looked into by every search until it works
                get_logger().warning("index.filter_failed", segment=segment.path.name, error=str(error))
            if self._closing.is_set():
                return

    def _seal(self, segment: Segment) -> None:
        """Put a segment into a filter. The order of the steps is what makes it safe (`filters.py`)."""
        segment.sync()
        number, bit = next_place((each.filter, each.bit) for each in self._sealed.values())
        if number not in self._filters:
            secret = next(iter(self._filters.values())).secret if self._filters else _new_secret()
            path = self._directory / f"{number:04d}.filter"
            made = Filter.create(path, ROWS_PER_PLACE * self._max_capacity, width_of(number), secret)
            self._filters = {**self._filters, number: made}
        chosen = self._filters[number]
        for start in range(0, segment.buckets, STEP):
            if self._closing.is_set():
                return
            chosen.add(segment.keys(start, start + STEP), bit)
        chosen.sync()
        with self._lock:
            self._sealed = {**self._sealed, segment.path.stem: _Sealed(segment.used, number, bit)}
        segment.rest()
        self._publish()

    def _publish(self) -> None:
        with self._lock:
            self._view = self._make_view()

    def _make_view(self) -> _View:
        segments, sealed = list(self._segments), self._sealed
        unfiltered = []
        numbers: dict[int, Numbers] = {}
        trusted = dict.fromkeys(self._filters, 0)
        for number, segment in enumerate(segments):
            found = sealed.get(segment.path.stem)
            if found is None:
                unfiltered.append(number)
                continue
            trusted[found.filter] |= 1 << found.bit
            numbers.setdefault(found.filter, np.zeros(64, np.int64))[found.bit] = number
        return _View(
            probe.layout_of(segments),
            tuple(reversed(unfiltered)),
            tuple((self._filters[each], trusted[each], numbers[each]) for each in sorted(numbers)),
        )

    def _in_thread(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "index")
        return self._thread

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def sync(self, claims_offset: int) -> None:
        """Flush to the disk and remember that the claims log is contained up to `claims_offset` (exclusive).

        The claims below it must have been put in before the call. Blocks, without the GIL; may run beside `claim`.
        """
        for segment in list(self._segments):
            if segment.path.stem not in self._sealed:
                segment.sync()
        self._sync_directory()
        self._write_checkpoint(claims_offset)
        self.checkpointed = claims_offset

    @property
    def _checkpoint_path(self) -> Path:
        return self._directory / "checkpoint.json"

    def _read_checkpoint(self) -> tuple[int | None, Mapping[str, _Sealed]]:
        """Up to where the claims log is contained (None: nothing is known), and what is in filters."""
        try:
            found = json.loads(self._checkpoint_path.read_text())
            if found["log"] != self._identity:
                return None, {}
            sealed = {name: _Sealed(*map(int, each)) for name, each in found.get("sealed", {}).items()}
            return int(found["claims"]), sealed
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None, {}

    def _write_checkpoint(self, claims_offset: int) -> None:
        draft = self._checkpoint_path.with_suffix(".tmp")
        with draft.open("w") as file:
            json.dump({"log": self._identity, "claims": claims_offset, "sealed": self._sealed}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._checkpoint_path)
        self._sync_directory()

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def distrust(self) -> None:
        """Have the next one who opens the index throw it away and build it again from the claims log."""
        self._checkpoint_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close all files and stop the thread, which finishes the file that it is making."""
        self._closing.set()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            if self._next is not None and not self._next.cancelled() and self._next.exception() is None:
                _discard(self._next.result())
        for segment in self._segments:
            segment.close()
        self._segments = []
        self._filters, self._sealed = {}, {}
        self._view = self._make_view()


def _best(count: int, rows: Numbers, found: Found) -> tuple[Numbers, U64]:
    """The one place of each key where it is, if there is one."""
    held = np.full(count, -1, np.int64)
    kept = np.zeros(count, np.uint64)
    hits = np.flatnonzero(found.held >= 0)
    held[rows[hits]] = found.held[hits]
    kept[rows[hits]] = found.digests[hits]
    return held, kept


def _discard(segment: Segment) -> None:
    segment.close()
    segment.path.unlink(missing_ok=True)


def _new_secret() -> Secret:
    return secrets.randbits(64) | 1, secrets.randbits(64)
