"""Looking for a batch of keys in any number of segments at once, and putting new ones in."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from processor.core.partitioning import U64
from processor.ids.arena import REST as REST_ITEM
from processor.ids.arena import Arena
from processor.ids.segment_file import HEADER, PLACES, REST, WORDS, CheckedBlocks, Numbers, Segment, words_of

UNITS: Final = WORDS // PLACES
"""A bucket has seven words of each id, and a unit is one word of eight ids."""
FEW: Final = 5
"""Pairs that are not worth another round: at most of the buckets only a few go on to the next, some of them far."""
_ALL: Final = np.uint64(0x0101_0101_0101_0101)
"""`PLACES` booleans that are all true, as one number."""


class Layout(NamedTuple):
    """Where segments lie and how keys are spread in them: an item for each segment."""

    first: Numbers
    """The unit where the buckets begin."""
    wrap: Numbers
    """Number of buckets - 1."""
    shift: U64
    multiplier: U64
    twist: U64
    base: Numbers


class Found(NamedTuple):
    """An item for each pair of a key and a segment."""

    held: Numbers
    """The offset that claimed the key, -1: it is not there."""
    digests: U64
    ends: Numbers
    """The word "claimed at" of the place where the key is, or of the free place where it would be put."""


def layout_of(segments: Sequence[Segment]) -> Layout:
    """The layout of these segments, which do not move."""
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
    """Look for the key in row `rows[i]` of `keys` in the segment `segments[i]`, for all i.

    `checked` sees every bucket before it is read. Raises `DamagedIndex` of it.
    """
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
    """The bucket of each key where the search begins."""
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
    """The same for one key, from a bucket on: (mark, digest, end)."""
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
    """Put keys that are in no segment, no two the same, into one that has room for them and spans their offsets.

    `ends` is what `find` said of them in this segment just now.
    """
    words = words_of(keys)
    rests = np.hstack([words[:, 1:], np.ascontiguousarray(digests).view("<u4").reshape(-1, 2)]).view(REST_ITEM)[:, 0]
    leads = np.ascontiguousarray(words[:, 0])
    marks = (offsets - (int(layout.base[segment]) - 1)).astype(np.uint32)
    left = np.arange(len(keys), dtype=np.uint32)
    while True:
        # Several keys may want one place. Each writes its number there, into a word that says nothing while the place
        # is free; whose number is there afterwards has it, and the others look again.
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
        arena.words[at] = marks[mine]  # the last word: another thread that looks sees all of a claim or none of it
        if not len(lost):
            return
        left = left[lost]
        rows = left.astype(np.int64)
        ends = find(arena, layout, keys, rows, np.full(len(rows), segment, np.int64)).ends
