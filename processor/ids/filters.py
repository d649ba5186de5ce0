"""Bloom filters of many segments, read for all of them at once: which of the older segments may have an id.

A filter is an array of rows, and bit j of every row belongs to one segment: the `&` of an id's four rows has a bit for
every segment that may have the id. So a new id costs four gathers, be it for eight segments or for sixty-four. Each
segment gives a false positive once in a hundred times. The four rows are within one page of memory.

A filter that lacked an id would let an event count twice, so a bit is trusted only when it is known to be complete:

- A segment gets its bit, from its table and in a separate thread, once it is in a file that a checkpoint names; until
  then every search looks into the segment itself.
- The filter is flushed before a checkpoint names the bit, with a digest of the rows under all bits that it names
  (`digest`). A filter whose rows do not have that digest at the next start is deleted and made again from its segments.
  A bit that no checkpoint names is not in the digest and not trusted: bits are only ever set, so leftover bits can only
  add false positives.
- One segment's bits do not depend on those of others: a page of which the disk has the older state, or half of each,
  has all bits of the segments that were named before.
"""

import json
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from processor.core.partitioning import U64
from processor.ids.id_segment import HEADER, Numbers, Secret

WIDTHS: Final = (16, 64)
"""Segments of the first filter, and of each later one. A filter costs a search four gathers whatever its width; its
file has ten bits an id for all of its segments from the start.
"""
ROWS_PER_PLACE: Final = 8
"""Rows for each place of the largest segment: ten bits an id."""
SPOTS: Final = 4
"""Rows that an id sets."""
BLOCK: Final = 512
"""Rows of a block; the rows of one id are within one block. With 64 bits a row it is a page."""
_BLOCK_BITS: Final = BLOCK.bit_length() - 1
_READ: Final = 1 << 22
"""Bytes read at a time when a file is opened."""
_PART: Final = 1 << 19
"""Rows that are hashed together, and zeros that are written together."""


class Filter:
    """A filter in a file: `rows` rows, a power of two, of `width` bits. One thread may set bits while others read."""

    def __init__(self, path: Path) -> None:
        """Open an existing file. Raises `OSError`, `ValueError`, `KeyError` or `TypeError` if it is not a filter."""
        with path.open("r+b", buffering=0) as file:
            header = json.loads(file.read(HEADER).rstrip(b"\0"))
            self.path = path
            self.width: int = header["width"]
            self.secret: Secret = header["multiplier"], header["twist"]
            self.header = header
            rows: int = header["rows"]
            while file.read(_READ):  # a read error raises here; in a page fault it would end the process
                pass
            mapped = mmap.mmap(file.fileno(), HEADER + rows * self.width // 8)
        self._rows: NDArray[Any] = np.frombuffer(mapped, f"<u{self.width // 8}", rows, HEADER)

    @classmethod
    def create(cls, path: Path, rows: int, width: int, secret: Secret) -> "Filter":
        """Make an empty filter; it appears at `path` whole or not at all. Raises `OSError` when the disk is full."""
        draft = path.with_name(path.name + ".new")
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            header = {"rows": rows, "width": width, "multiplier": secret[0] | 1, "twist": secret[1]}
            _fill(fd, json.dumps(header).encode().ljust(HEADER, b"\0"), HEADER + rows * width // 8)
            draft.rename(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        return cls(path)

    def agrees(self, other: "Filter") -> bool:
        """Return whether every key has the same rows in both filters."""
        return (len(self._rows), self.secret) == (len(other._rows), other.secret)  # noqa: SLF001 - of its own class

    def spots(self, keys: U64) -> list[Numbers]:
        """Return the `SPOTS` rows of each key, the same in all filters that agree with this one."""
        multiplier, twist = np.uint64(self.secret[0]), np.uint64(self.secret[1])
        mixed = (keys[:, 0] ^ (keys[:, 1] * multiplier) ^ twist) * multiplier
        mixed ^= mixed >> np.uint64(32)
        mixed *= multiplier
        block_bits = len(self._rows).bit_length() - 1 - _BLOCK_BITS
        block = (mixed >> np.uint64(64 - block_bits)) << np.uint64(_BLOCK_BITS)
        shifts = range(64 - block_bits - _BLOCK_BITS, 0, -_BLOCK_BITS)
        within = np.uint64(BLOCK - 1)
        return [(block | (mixed >> np.uint64(shift) & within)).view(np.int64) for shift in shifts[:SPOTS]]

    def look(self, spots: list[Numbers], trusted: int) -> tuple[Numbers, Numbers]:
        """Return two arrays: numbers of keys, and for each a trusted bit whose segment may have that key."""
        mask = self._rows.take(spots[0])
        for each in spots[1:]:
            mask &= self._rows.take(each)
        mask &= mask.dtype.type(trusted)
        some = np.flatnonzero(mask)
        flat = np.flatnonzero(np.unpackbits(mask[some].view(np.uint8), bitorder="little"))
        return some[flat // self.width], flat % self.width

    def add(self, keys: U64, bit: int) -> None:
        """Set a bit for these keys."""
        value = self._rows.dtype.type(1 << bit)
        for each in self.spots(keys):
            self._rows[each] |= value

    def digest(self, trusted: int) -> str:
        """Return a hex digest of the header and of all rows under the trusted bits. Other bits may change meanwhile."""
        found = xxhash.xxh3_128(json.dumps(self.header, sort_keys=True).encode())
        mask = self._rows.dtype.type(trusted)
        for start in range(0, len(self._rows), _PART):
            found.update((self._rows[start : start + _PART] & mask).data)
        return found.hexdigest()

    def sync(self) -> None:
        """Flush to the disk. Blocks without holding the GIL, unlike `mmap.flush`.

        Raises `OSError`: then a later process must not trust any bit of the file.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def next_place(taken: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Return the filter and the bit for the next segment, after those in `taken`."""
    number, bit = max(taken, default=(0, -1))
    return (number, bit + 1) if bit + 1 < width_of(number) else (number + 1, 0)


def width_of(number: int) -> int:
    """Return how many segments the filter of this number is for."""
    return WIDTHS[min(number, len(WIDTHS) - 1)]


def _fill(fd: int, header: bytes, size: int) -> None:
    """Make a file of `size` bytes, zeros after the header, with all of its disk space allocated.

    Raises `OSError` when the disk is full. A sparse file would be allocated by page faults, and one that finds the disk
    full kills the process.
    """
    os.pwrite(fd, header, 0)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    zeros = memoryview(bytes(_PART))
    done = len(header)
    while done < size:
        done += os.pwrite(fd, zeros[: size - done], done)
    os.fsync(fd)
