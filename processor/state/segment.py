"""One segment of the id index: a hash table of buckets in a memory-mapped file, probed a batch at a time.

    header (4 KiB) | buckets of 8 ids: 8 x claimed at, 8 x first word of the key | 8 x rest of the key, digest

All words are u32, 7 to an id (28 bytes). One gather of a bucket's first 64 bytes tells, for a whole batch of keys at
once, who may be here and whether there is room; only where the first word of the key agrees is the rest compared.
Buckets instead of single slots keep the number of rounds small (numpy's cost is by the round): at a load of 0.75 a key
lies at most a few buckets from its home.

A place is taken when its "claimed at" (offset - base + 1) is not 0. That word is written last, so a place is whole or
free in whatever state a killed process left the file, and one whose page did not reach the disk before a power cut is
free or without its key: never an id without the offset that claimed it. What is missing then comes back from the
claims log (`index.py`).
"""

import json
import mmap
import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from processor.core.dedupe import U64, Mask

HEADER: Final = 4096
PLACES: Final = 8
"""Ids in a bucket."""
REST: Final = 5
"""Words of an id that are not in the bucket's head: three of the key, two of the digest."""
WORDS: Final = PLACES * (2 + REST)
MAX_LOAD: Final = 0.75
MAX_SPAN: Final = 2**32 - 2
"""Offsets one segment can tell apart."""

_UNIT: Final = np.dtype((np.void, 4 * PLACES))
"""One word of each id in a bucket."""
_REST: Final = np.dtype((np.void, 4 * REST))
UNITS: Final = WORDS // PLACES
FEW: Final = 8
"""Keys that are not worth another round: at most of the buckets only a few go on to the next, some of them far."""
_ALL: Final = np.uint64(0x0101_0101_0101_0101)
"""`PLACES` booleans that are all true, as one number."""

Words = NDArray[np.uint32]
Numbers = NDArray[np.int64]


class Segment:
    """A fixed number of places (a power of two). Not safe for two threads at once."""

    def __init__(self, path: Path) -> None:
        """Open an existing segment."""
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        header = json.loads(os.pread(self._fd, HEADER, 0).rstrip(b"\0"))
        self.capacity: int = header["capacity"]
        self.base: int = header["base"]
        self._multiplier = np.uint64(header["multiplier"] | 1)
        self._twist = np.uint64(header["twist"])
        buckets = self.capacity // PLACES
        self._map = mmap.mmap(self._fd, HEADER + 4 * WORDS * buckets)
        self._table: Words = np.frombuffer(self._map, "<u4", WORDS * buckets, HEADER).reshape(buckets, WORDS)
        # Two more views of the same bytes, to copy a whole bucket's words, or all the rest of an id, as one item.
        self._units = np.frombuffer(self._map, _UNIT, UNITS * buckets, HEADER)
        self._rests = np.ndarray(
            (buckets, PLACES), _REST, self._map, HEADER + 2 * _UNIT.itemsize, (4 * WORDS, _REST.itemsize)
        )
        self._mask = np.int64(buckets - 1)
        self._shift = np.uint64(64 - (buckets.bit_length() - 1))
        self.used = int(np.count_nonzero(self._table[:, :PLACES]))

    @classmethod
    def create(cls, path: Path, capacity: int, base: int) -> "Segment":
        """Make an empty segment for offsets from `base` on; it appears under its name whole or not at all."""
        draft = path.with_suffix(".new")
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            secrets = np.frombuffer(os.urandom(16), "<u8").tolist()
            header = {"capacity": capacity, "base": base, "multiplier": secrets[0], "twist": secrets[1]}
            os.pwrite(fd, json.dumps(header).encode(), 0)
            os.ftruncate(fd, HEADER + 4 * WORDS * (capacity // PLACES))
            os.fsync(fd)
        finally:
            os.close(fd)
        draft.rename(path)
        return cls(path)

    @property
    def room(self) -> int:
        """Keys this segment still takes."""
        return int(self.capacity * MAX_LOAD) - self.used

    def _homes(self, keys: U64) -> Numbers:
        # The twist and the multiplier are secret, so nobody can choose ids that pile up in one place.
        mixed = (keys[:, 0] ^ (keys[:, 1] * self._multiplier) ^ self._twist) * self._multiplier
        return (mixed >> self._shift).astype(np.int64)

    def find(self, keys: U64) -> tuple[Numbers, U64]:
        """For each key the offset that claimed it (-1: not here) and the digest kept with it."""
        held = np.full(len(keys), -1, np.int64)
        digests = np.zeros(len(keys), np.uint64)
        words = _words(keys)
        buckets = self._homes(keys)
        left = np.arange(len(keys))
        while len(left) > FEW:
            claimed, taken = self._claimed(buckets)
            hits = np.flatnonzero(taken & (self._unit(buckets, 1) == words[left, :1]))
            on = taken.view(np.uint64)[:, 0] == _ALL
            if len(hits):
                row, place = np.divmod(hits, PLACES)
                rest = self._rests[buckets[row], place].view("<u4").reshape(-1, REST)
                same = (rest[:, :3] == words[left[row], 1:]).all(axis=1)
                row, place = row[same], place[same]
                held[left[row]] = claimed[row, place].astype(np.int64) + (self.base - 1)
                digests[left[row]] = np.ascontiguousarray(rest[same, 3:]).view("<u8")[:, 0]
                on[row] = False
            left = left[on]
            buckets = (buckets[on] + 1) & self._mask
        for number, bucket in zip(left.tolist(), buckets.tolist(), strict=True):
            held[number], digests[number] = self._find_one(words[number], bucket)
        return held, digests

    def _find_one(self, word: Words, bucket: int) -> tuple[int, int]:
        """The same for one key, from a bucket on."""
        first, *rest = word.tolist()
        while True:
            head = self._table[bucket, : 2 * PLACES].tolist()
            claimed = head[:PLACES]
            if first in head[PLACES:]:
                for place, mark in enumerate(claimed):
                    *same, low, high = self._table[bucket, 2 * PLACES + REST * place :][:REST].tolist()
                    if mark and [head[PLACES + place], *same] == [first, *rest]:
                        return mark + self.base - 1, high << 32 | low
            if 0 in claimed:
                return -1, 0
            bucket = (bucket + 1) & int(self._mask)

    def _unit(self, buckets: Numbers, number: int) -> Words:
        """One word of each id in `buckets`: 0 is "claimed at", 1 the first word of the key."""
        return self._units.take(buckets * UNITS + number).view("<u4").reshape(-1, PLACES)

    def _claimed(self, buckets: Numbers) -> tuple[Words, Mask]:
        claimed = self._unit(buckets, 0)
        return claimed, claimed != 0

    def insert(self, keys: U64, digests: U64, offset: int) -> None:
        """Add keys that are in no segment, no two the same; the caller has seen to the room."""
        words = _words(keys)
        rests = np.hstack([words[:, 1:], np.ascontiguousarray(digests).view("<u4").reshape(-1, 2)]).view(_REST)[:, 0]
        firsts = words[:, 0]
        buckets = self._homes(keys)
        mark = np.uint32(offset - self.base + 1)
        while len(buckets):
            _, taken = self._claimed(buckets)
            has_room = taken.view(np.uint64)[:, 0] != _ALL
            place = taken.argmin(axis=1)
            # Several keys may want one place: one has it, the others look again in the next round.
            wanted = buckets * PLACES + place
            order = wanted.argsort()
            alone = np.ones(len(order), np.bool_)
            alone[order[1:]] = wanted[order[1:]] != wanted[order[:-1]]
            won = alone & has_room
            at, chosen = buckets[won], place[won]
            self._table[at, PLACES + chosen] = firsts[won]
            self._rests[at, chosen] = rests[won]
            self._table[at, chosen] = mark
            lost = ~won
            firsts, rests = firsts[lost], rests[lost]
            buckets = (buckets + ~has_room)[lost] & self._mask
        self.used += len(keys)

    def sync(self) -> None:
        """Flush to the disk. Blocks, without the GIL; may run in another thread than the rest."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Unmap the file."""
        del self._table, self._units, self._rests
        self._map.close()
        os.close(self._fd)


def _words(keys: U64) -> Words:
    """The same bits as rows of four 32-bit words."""
    return np.ascontiguousarray(keys).view("<u4").reshape(-1, 4)
