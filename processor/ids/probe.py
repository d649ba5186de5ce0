"""Find a batch of keys in any number of segments at once, and insert new ones."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from processor.core.kernel.loaded import kernel
from processor.core.partitioning import U64
from processor.ids.arena import REST as REST_ITEM
from processor.ids.arena import Arena
from processor.ids.id_segment import HEADER, PLACES, REST, WORDS, CheckedBlocks, IdSegment, Numbers, words_of

UNITS: Final = WORDS // PLACES
"""Units of a bucket: a unit is one word of each of its eight ids."""
FEW: Final = 5
"""With so few pairs left, the rest is searched one by one: a round of numpy calls costs more."""
_ALL: Final = np.uint64(0x0101_0101_0101_0101)
"""`PLACES` booleans that are all true, as one number."""


class Layout(NamedTuple):
    """Where segments lie in the arena and how keys are hashed in them: arrays with an item for each segment."""

    first: Numbers
    """The unit at which the buckets begin."""
    wrap: Numbers
    """Number of buckets - 1."""
    shift: U64
    multiplier: U64
    twist: U64
    base: Numbers


class Found(NamedTuple):
    """The result of a search: arrays with an item for each pair of a key and a segment."""

    held: Numbers
    """The offset that claimed the key; -1: the segment does not have it."""
    digests: U64
    ends: Numbers
    """The index of the word "claimed at" of the key's place, or of the free place where it would be inserted."""


def layout_of(segments: Sequence[IdSegment]) -> Layout:
    """Return the layout of these segments. It stays valid: segments do not move."""
    return Layout(
        np.array([(each.start + HEADER) // 32 for each in segments], np.int64),
        np.array([each.buckets - 1 for each in segments], np.int64),
        np.array([64 - (each.buckets.bit_length() - 1) for each in segments], np.uint64),
        np.array([each.secret[0] for each in segments], np.uint64),
        np.array([each.secret[1] for each in segments], np.uint64),
        np.array([each.base for each in segments], np.int64),
    )


def find(
    arena: Arena, layout: Layout, keys: U64, rows: Numbers, segments: Numbers, checked: CheckedBlocks | None = None
) -> Found:
    """Find the key in row `rows[i]` of `keys` in the segment `segments[i]`, for all i.

    `checked` checks every bucket before it is read; raises its `DamagedIndex`. The compiled kernel looks at one pair
    after the other, where it runs and nothing is to be checked.
    """
    if kernel is None or checked is not None or len(rows) <= FEW:
        return _find_by_numpy(arena, layout, keys, rows, segments, checked)
    held, digests, ends = kernel.find(arena.words, *layout, np.ascontiguousarray(keys), rows, segments)
    return Found(np.frombuffer(held, np.int64), np.frombuffer(digests, np.uint64), np.frombuffer(ends, np.int64))


def _find_by_numpy(
    arena: Arena, layout: Layout, keys: U64, rows: Numbers, segments: Numbers, checked: CheckedBlocks | None
) -> Found:
    """`find` in rounds. Each looks at one bucket of every pair that is still open: it compares the first word of the
    key with all eight places, then the rest where that agrees. A pair goes on to the next bucket while its bucket is
    full and does not have the key."""
    count = len(rows)
    marks = np.zeros(count, np.int64)
    digests = np.zeros(count, np.uint64)
    ends = np.zeros(count, np.int64)
    words = words_of(keys)
    leads = words[:, 0].take(rows)
    buckets = _homes(layout, keys, rows, segments)
    first, wrap = layout.first.take(segments), layout.wrap.take(segments)
    left = np.arange(count)
    while len(left) > FEW:
        if checked is not None:
            checked.check(segments.take(left), buckets)
        units = first + UNITS * buckets
        claimed = arena.units.take(units).view("<u4").reshape(-1, PLACES)
        alike = arena.units.take(units + 1).view("<u4").reshape(-1, PLACES) == leads[:, None]
        taken = claimed != 0
        alike &= taken
        ends[left] = units * PLACES + taken.argmin(axis=1)
        on = taken.view(np.uint64)[:, 0] == _ALL
        hits = np.flatnonzero(alike)
        if len(hits):
            row, place = hits // PLACES, hits % PLACES
            rest = arena.rests[(units[row] + 2) * PLACES + REST * place].view("<u4").reshape(-1, REST)
            unlike = rest[:, :3] ^ words[rows[left[row]], 1:]
            same = np.flatnonzero((unlike[:, 0] | unlike[:, 1] | unlike[:, 2]) == 0)
            row = row[same]
            pair = left[row]
            marks[pair] = claimed.reshape(-1)[hits[same]]
            digests[pair] = np.ascontiguousarray(rest[same, 3:]).view("<u8")[:, 0]
            ends[pair] = units[row] * PLACES + hits[same] % PLACES
            on[row] = False
        keep = np.flatnonzero(on)
        left, leads, first, wrap = left[keep], leads[keep], first[keep], wrap[keep]
        buckets = (buckets[keep] + 1) & wrap
    for each, bucket, begin, last in zip(left.tolist(), buckets.tolist(), first.tolist(), wrap.tolist(), strict=True):
        check = None if checked is None else partial(_check_one, checked, segments[each : each + 1])
        marks[each], digests[each], ends[each] = _find_one(
            arena, words[rows[each]].tolist(), begin, last, bucket, check
        )
    held = np.where(marks, marks + (layout.base.take(segments) - 1), -1)
    return Found(held, digests, ends)


def _homes(layout: Layout, keys: U64, rows: Numbers, segments: Numbers) -> Numbers:
    """Return the home bucket of each key, where the search begins."""
    multiplier = layout.multiplier.take(segments)
    mixed = keys[:, 1].take(rows) * multiplier
    mixed ^= keys[:, 0].take(rows)
    mixed ^= layout.twist.take(segments)
    mixed *= multiplier
    mixed >>= layout.shift.take(segments)
    return mixed.view(np.int64)


def _check_one(checked: CheckedBlocks, segment: Numbers, bucket: int) -> None:
    checked.check(segment, np.array([bucket], np.int64))


def _find_one(
    arena: Arena, word: list[int], first_unit: int, wrap: int, bucket: int, check: Callable[[int], None] | None
) -> tuple[int, int, int]:
    """Find one key from a bucket on; return (mark, digest, end)."""
    lead, *key = word
    while True:
        if check is not None:
            check(bucket)
        at = (first_unit + UNITS * bucket) * PLACES
        head = arena.words[at : at + 2 * PLACES].tolist()
        claimed = head[:PLACES]
        if lead in head[PLACES:]:
            for place, mark in enumerate(claimed):
                if mark and head[PLACES + place] == lead:
                    rest = at + 2 * PLACES + REST * place
                    *same, low, high = arena.words[rest : rest + REST].tolist()
                    if same == key:
                        return mark, high << 32 | low, at + place
        if 0 in claimed:
            return 0, 0, at + claimed.index(0)
        bucket = (bucket + 1) & wrap


def insert(
    arena: Arena, layout: Layout, segment: int, keys: U64, digests: U64, offsets: Numbers, ends: Numbers
) -> None:
    """Insert distinct keys that are in no segment into one that has room for them and spans their offsets.

    `ends` is what `find` has just returned for them in this segment.

    The compiled kernel inserts one key after the other, where it runs: the first of several for one place gets it.
    """
    if kernel is None:
        _insert_by_numpy(arena, layout, segment, keys, digests, offsets, ends)
        return
    first, wrap, base = (int(each[segment]) for each in (layout.first, layout.wrap, layout.base))
    arrays = (np.ascontiguousarray(each) for each in (keys, digests, offsets, ends))
    kernel.insert(arena.words, first, wrap, base, *arrays)


def _insert_by_numpy(
    arena: Arena, layout: Layout, segment: int, keys: U64, digests: U64, offsets: Numbers, ends: Numbers
) -> None:
    """`insert` in rounds."""
    words = words_of(keys)
    rests = np.hstack([words[:, 1:], np.ascontiguousarray(digests).view("<u4").reshape(-1, 2)]).view(REST_ITEM)[:, 0]
    leads = np.ascontiguousarray(words[:, 0])
    marks = (offsets - (int(layout.base[segment]) - 1)).astype(np.uint32)
    left = np.arange(len(keys), dtype=np.uint32)
    while True:
        # Several keys may want one place. Each writes its number into the place's key word, which is unused while the
        # place is free. The key whose number is there afterwards gets the place; the others search again.
        arena.words[ends + PLACES] = left
        lost = np.flatnonzero(arena.words[ends + PLACES] != left)
        if len(lost):
            won = np.flatnonzero(arena.words[ends + PLACES] == left)
            mine, at = left[won], ends[won]
        else:
            mine, at = left, ends
        place = at % PLACES
        arena.rests[at - place + 2 * PLACES + REST * place] = rests[mine]
        arena.words[at + PLACES] = leads[mine]
        arena.words[at] = marks[mine]  # last: a thread that reads meanwhile sees all of a claim or none of it
        if not len(lost):
            return
        left = left[lost]
        rows = left.astype(np.int64)
        ends = find(arena, layout, keys, rows, np.full(len(rows), segment, np.int64)).ends
