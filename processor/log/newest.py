"""Reading a long changelog back: the newest record of each key is enough, as after compaction.

The embedded log is read from its end, so that what was replaced is only looked at: by the hash of its key, thousands at
a time. A broker hands records out in the other direction only.
"""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np

from processor.core import packed
from processor.log.store import Block, Log, Record, TopicPartition
from processor.view.hash_index import HashIndex, hashes_of

FOLD: Final = 1_000_000
"""Keys kept at a time, about 400 bytes each."""

BLOCK: Final = 5000
"""Records looked at together."""


def keep_newest(kept: dict[bytes, Record], records: Iterable[Record]) -> None:
    """Take in the next records of one partition; what is kept stays in the order of the log."""
    pop = kept.pop
    for record in records:
        key = record.key or b""
        pop(key, None)
        kept[key] = record


class Row(NamedTuple):
    """The newest record of a key."""

    offset: int
    key: bytes
    value: bytes | None


class Found(NamedTuple):
    """What some records of a partition come to, the newest first."""

    offsets: list[int]
    """Of sums in their packed form."""
    keys: list[bytes]
    values: list[bytes]
    others: list[Row]
    """The progress among them. Who follows a log that grows applies them when it has read on to its end: what was
    replaced and compacted meanwhile is there."""
    replaced: list[int]
    """Offsets of records that say nothing any more."""


def newest(log: Log, tp: TopicPartition, start: int, end: int) -> Iterator[Found]:
    """The newest record of each key between two offsets, from the last one on downwards.

    About 1 µs a record that was replaced.
    """
    seen = HashIndex()
    while (block := log.block_before(tp, start, end, BLOCK)) is not None:
        hashes = hashes_of(block.keys)
        unknown = np.flatnonzero(seen.find(hashes) < 0).tolist()
        first = {block.keys[place]: place for place in reversed(unknown)}
        places = list(first.values())
        seen.add(hashes.take(places))
        yield _found(block, places)
        end = block.offsets[-1]


def _found(block: Block, places: list[int]) -> Found:
    """Sort out those of a block that are at these places."""
    offsets, keys, lengths, values = block
    ends = list(accumulate(length or 0 for length in lengths))
    found = Found([], [], [], [], np.delete(np.array(offsets), places).tolist())
    packed_at: list[int] = []
    other_at: list[int] = []
    for place in places:
        is_packed = lengths[place] == packed.SIZE and values.startswith(packed.MARK, ends[place] - packed.SIZE)
        (packed_at if is_packed else other_at).append(place)
    found.offsets.extend([offsets[place] for place in packed_at])
    found.keys.extend([keys[place] for place in packed_at])
    found.values.extend([values[ends[place] - packed.SIZE : ends[place]] for place in packed_at])
    for place in other_at:
        length = lengths[place]
        value = None if length is None else values[ends[place] - length : ends[place]]
        found.others.append(Row(offsets[place], keys[place], value))
    return found


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection inside: of millions of objects that are made to stay, it would look at all again and again.

    Saves a quarter of the time of reading back.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
