"""A hash index in arrays: the number of each key, looked up for a whole batch of keys at a time.

A key is identified by 128 bits of hash; the key itself is not kept. 64 of them are Python's own hash (SipHash, keyed at
random in each process, so that no client can choose keys that collide), 64 are XXH3. Among ten million keys the
probability of a collision is about 10^-25.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from processor.core import growing_arrays
from processor.core.growing_arrays import I64, Records, Segments
from processor.core.kernel.loaded import kernel

HASH: Final = np.dtype([("low", "<u8"), ("high", "<u8")])
LOAD: Final = 0.5
FIRST: Final = 1024
MOVED: Final = 4096
"""Least keys that move to a larger table with each batch, so that growing never pauses."""

_NUMBER: Final = np.uint64(0xFFFF_FFFF)
_HALF: Final = np.uint64(32)
U64 = NDArray[np.uint64]


def hashes_of(keys: Collection[Any], texts: Collection[bytes] | None = None) -> Records:
    """Return the hashes of keys; `texts` are their bytes, if the keys have another type."""
    found = np.empty(len(keys), HASH)
    found["low"] = np.fromiter(map(hash, keys), np.int64, len(keys)).view(np.uint64)
    found["high"] = np.fromiter(map(xxhash.xxh3_64_intdigest, keys if texts is None else texts), np.uint64, len(keys))
    return found


def name_hashes(names: Sequence[str | None]) -> Records:
    """Return the hashes of names; None is another name than the empty one."""
    if kernel is not None:  # 0.03 µs a name instead of 0.25
        return np.frombuffer(kernel.name_hashes(list(names), xxhash.xxh3_64_intdigest), HASH)
    return hashes_of(names, [b"" if name is None else name.encode() for name in names])


class HashIndex:
    """Numbers keys from 0 in the order in which they are added. Open addressing with a step that depends on the key, so
    that the longest probe of a batch stays short. A word of the table is the upper half of a hash and the key's number
    plus 1 (0: empty). 16 to 32 bytes a key, half as much again while it grows, and 16 for the hash."""

    def __init__(self) -> None:
        self._hashes = Segments(np.zeros((), HASH))
        self._table: U64 = np.zeros(FIRST, np.uint64)
        self._old: U64 | None = None  # the table before, while its keys move to the larger one
        self._moved = self._to_move = 0

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, hashes: Records) -> I64:
        """Return the number of each key; -1: unknown."""
        found = self._probe(self._table, hashes)
        if self._old is not None:
            missing = np.flatnonzero(found < 0)
            if len(missing):
                found[missing] = self._probe(self._old, hashes.take(missing))
        return found

    def add(self, hashes: Records) -> I64:
        """Add distinct keys that are not in the index yet; return their numbers."""
        numbers = self._hashes.extend(len(hashes))
        self._hashes.put(numbers, hashes)
        size = len(self._table)
        while len(self) > LOAD * size:
            size *= 2
        if size > len(self._table):
            self._move(self._to_move)
            self._old, self._table = self._table, np.zeros(size, np.uint64)
            self._moved, self._to_move = 0, int(numbers[0])
        self._insert(hashes, numbers)
        self._move(max(MOVED, 4 * len(hashes)))
        return numbers

    def _move(self, count: int) -> None:
        if self._old is None:
            return
        numbers = np.arange(self._moved, min(self._moved + count, self._to_move))
        self._insert(self._hashes.take(numbers), numbers)
        self._moved += len(numbers)
        if self._moved == self._to_move:
            self._old = None

    def _probe(self, table: U64, hashes: Records) -> I64:
        if kernel is not None:  # one pass instead of rounds over all keys
            return np.frombuffer(kernel.probe(table, self._hashes.parts, hashes, growing_arrays.BITS), np.int64)
        return self._probe_by_numpy(table, hashes)

    def _probe_by_numpy(self, table: U64, hashes: Records) -> I64:
        """One round for all keys that are not decided after the round before."""
        found = np.full(len(hashes), -1)
        which = np.arange(len(hashes))
        low = hashes["low"].copy()
        mask = np.uint64(len(table) - 1)
        at, step = low & mask, _steps(hashes)
        while True:
            words = table[at]
            taken = words != 0
            alike = np.flatnonzero(taken & ((words ^ low) >> _HALF == 0))
            if len(alike):
                numbers = (words[alike] & _NUMBER).astype(np.int64) - 1
                kept, wanted = self._hashes.take(numbers), hashes.take(which[alike])
                same = (kept["low"] == wanted["low"]) & (kept["high"] == wanted["high"])
                found[which[alike[same]]] = numbers[same]
                taken[alike[same]] = False
            left = np.flatnonzero(taken)
            if not len(left):
                return found
            which, low, step = which[left], low[left], step[left]
            at = (at[left] + step) & mask

    def _insert(self, hashes: Records, numbers: I64) -> None:
        table = self._table
        if kernel is not None:
            kernel.put(table, hashes, numbers)
            return
        low = hashes["low"]
        words = (low >> _HALF << _HALF) | (numbers.astype(np.uint64) + np.uint64(1))
        mask = np.uint64(len(table) - 1)
        at, step = low & mask, _steps(hashes)
        while len(words):
            free = np.flatnonzero(table[at] == 0)
            table[at[free]] = words[free]  # of several keys for one place the last one gets it
            left = np.flatnonzero(table[at] != words)
            words, step = words[left], step[left]
            at = (at[left] + step) & mask


def _steps(hashes: Records) -> U64:
    """Return an odd step for each key, so that its probe visits every place of the table."""
    steps: U64 = hashes["high"] | np.uint64(1)
    return steps
