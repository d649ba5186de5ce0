"""One segment of the id index: the file of a hash table of buckets. `probe.py` looks into many of them at a time.

    header (4 KiB) | buckets of 8 ids: 8 x claimed at, 8 x first word of the key | 8 x rest of the key, digest

All words are u32, 7 to an id (28 bytes). One gather of a bucket's first 64 bytes tells, for a whole batch of keys at
once, who may be here and whether there is room; only where the first word of the key agrees is the rest compared.
Buckets instead of single slots keep the number of rounds small (numpy's cost is by the round): at a load of 0.8 a key
lies at most a few buckets from its home.

A place is taken when its "claimed at" (offset - base + 1) is not 0. That word is written last, so a place is whole or
free in whatever state a killed process left the file, and one whose page did not reach the disk before a power cut is
free or without its key: never an id without the offset that claimed it. What is missing then comes back from the
claims log (`index.py`), with the digest of an id of which only the key reached the disk.

The disk space of a segment is taken when the file is made. A hole in the file would be filled by a page fault, and
where a page fault finds the disk full, the process is killed; like this it is an `OSError` from `create`.
"""

import json
import mmap
import os
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

from processor.core.dedupe import U64
from processor.state.arena import Arena

HEADER: Final = 4096
PLACES: Final = 8
"""Ids in a bucket."""
REST: Final = 5
"""Words of an id that are not in the bucket's head: three of the key, two of the digest."""
WORDS: Final = PLACES * (2 + REST)
MAX_LOAD: Final = 0.8
"""Three of a hundred ids are not in their home's bucket then. At 0.75 the disk would have 2.3 bytes an id more."""
MAX_SPAN: Final = 2**32 - 2
"""Offsets one segment can tell apart."""
STEP: Final = 1 << 20
"""Bytes written at a time when a file is filled."""

Words = NDArray[np.uint32]
Numbers = NDArray[np.int64]
Secret = tuple[int, int]
"""Multiplier and twist: where an id lies depends on them, so nobody can choose ids that pile up in one place."""


class Segment:
    """A fixed number of places (a power of two), mapped into an arena."""

    def __init__(self, path: Path, arena: Arena, used: int | None = None) -> None:
        """Open an existing segment; how much of it is `used` is counted, which reads all of it, unless it is known.

        Raises `OSError`, and `ValueError` if it is not whole.
        """
        self.path = path
        self._closing = Lock()
        self._fd: int | None = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        header = json.loads(os.pread(self._fd, HEADER, 0).rstrip(b"\0"))
        self.capacity: int = header["capacity"]
        self.base: int = header["base"]
        self.secret: Secret = header["multiplier"] | 1, header["twist"]
        self.buckets: int = self.capacity // PLACES
        if os.fstat(self._fd).st_size < self.size:
            os.close(self._fd)
            raise ValueError(f"{path} is shorter than its {self.capacity} places")
        self._arena = arena
        self.start = arena.place(self._fd, self.size)
        """Where the file lies in the arena, in bytes."""
        first = (self.start + HEADER) // 4
        self.table: Words = arena.words[first : first + WORDS * self.buckets].reshape(-1, WORDS)
        self.used = int(np.count_nonzero(self.table[:, :PLACES])) if used is None else used

    @classmethod
    def create(cls, path: Path, arena: Arena, capacity: int, base: int, secret: Secret) -> "Segment":
        """Make an empty segment for offsets from `base` on, in a file that is called `.new` until `settle`.

        Its disk space is taken, its pages are in memory. Raises `OSError` when the disk is full. Blocks without the GIL
        but for moments, for as long as it takes to write it.
        """
        draft = path.with_suffix(".new")
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            header = {"capacity": capacity, "base": base, "multiplier": secret[0], "twist": secret[1]}
            fill(fd, json.dumps(header).encode().ljust(HEADER, b"\0"), HEADER + 4 * WORDS * (capacity // PLACES))
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        segment = cls(draft, arena, used=0)
        arena.populate(segment.start, segment.size)
        return segment

    def settle(self) -> None:
        """Give the file of a new segment its name. Only who then syncs the directory knows that it is there."""
        self.path = self.path.rename(self.path.with_suffix(".idx"))

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return HEADER + 4 * WORDS * self.buckets

    @property
    def room(self) -> int:
        """Keys this segment still takes."""
        return int(self.capacity * MAX_LOAD) - self.used

    def spans(self, offset: int) -> bool:
        """Whether a claim at `offset` can be told here."""
        return self.base <= offset < self.base + MAX_SPAN

    def spanned(self, offsets: Numbers) -> int:
        """How many of the first of these can be told here."""
        outside = np.flatnonzero((offsets < self.base) | (offsets >= self.base + MAX_SPAN))
        return int(outside[0]) if len(outside) else len(offsets)

    def keys(self, start: int, stop: int) -> U64:
        """The keys in some of the buckets."""
        some = self.table[start:stop].reshape(-1)
        bucket, place = np.divmod(np.flatnonzero(self.table[start:stop, :PLACES]), PLACES)
        rest = bucket * WORDS + 2 * PLACES + REST * place
        words = np.empty((len(rest), 4), np.uint32)
        words[:, 0] = some[bucket * WORDS + PLACES + place]
        for number in (1, 2, 3):
            words[:, number] = some[rest + (number - 1)]
        return words.view("<u8")

    def claim_space(self) -> None:
        """Fill the holes that older versions left in the file. Raises `OSError` when the disk is full."""
        if self._fd is not None and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._fd, 0, self.size)

    def rest(self) -> None:
        """Nothing is written to it any more. What is read of it is a page here and there: no reading ahead."""
        self.close()
        self._arena.advise(self.start, self.size, mmap.MADV_RANDOM)

    def sync(self) -> None:
        """Flush to the disk. Blocks, without the GIL; may run beside anything else."""
        with self._closing:
            if self._fd is not None:
                os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; it stays mapped. What was not flushed is not flushed by `sync` any more."""
        with self._closing:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None


def fill(fd: int, header: bytes, size: int) -> None:
    """Make a file of `size` bytes, zeros after the header, that occupies its disk space.

    Raises `OSError` when the disk is full. It is flushed before the zeros are written: they are for its pages to be in
    memory, and a file that was given its space has zeros whether they are flushed or not.
    """
    os.pwrite(fd, header, 0)
    reserves = hasattr(os, "posix_fallocate")
    if reserves:
        os.posix_fallocate(fd, 0, size)
        os.fsync(fd)
    zeros = memoryview(bytes(STEP))
    done = len(header)
    while done < size:
        done += os.pwrite(fd, zeros[: size - done], done)
    if not reserves:
        os.fsync(fd)


def words_of(keys: U64) -> Words:
    """The same bits as rows of four 32-bit words."""
    return np.ascontiguousarray(keys).view("<u4").reshape(-1, 4)
