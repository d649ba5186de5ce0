"""One segment of the id index: a hash table of buckets. `probe.py` searches many of them at a time.

    header (4 KiB) | buckets of 8 ids: 8 x claimed at, 8 x first word of the key | 8 x rest of the key, digest
                   | checksums of the blocks of buckets, 8 bytes each

All words are u32, 7 for each id (28 bytes). One gather of a bucket's first 64 bytes shows, for a whole batch of keys at
once, which keys may be here and whether there is a free place; the rest of a key is compared only where its first word
agrees. Buckets instead of single slots keep the number of rounds small (numpy's cost is by the round): at a load of 0.8
a key lies at most a few buckets from its home. A place is occupied when its "claimed at" (offset - base + 1) is not 0.

A segment that still grows is in memory only. When it is full it is written to a file, once, and the file is mapped in
its place. A later process uses a block of the file only after comparing its checksum (XXH3, 64 bits; `CheckedBlocks`).
Header and checksums are compared when the file is opened, with a digest that the checkpoint keeps.
"""

import errno
import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from processor.core.partitioning import U64
from processor.ids.arena import Arena

HEADER: Final = 4096
PLACES: Final = 8
"""Ids in a bucket."""
REST: Final = 5
"""Words of an id after the bucket's head: three of the key, two of the digest."""
WORDS: Final = PLACES * (2 + REST)
MAX_LOAD: Final = 0.8
"""The part of the places that is filled. Three ids in a hundred are then not in their home bucket. 0.75 would cost 2.3
bytes more on the disk for each id."""
MAX_SPAN: Final = 2**32 - 2
"""Distinct offsets that one segment can hold."""
BLOCK_BITS: Final = 6
BLOCK: Final = 1 << BLOCK_BITS
"""Buckets with one checksum: 14 KiB, read and checked with the first id that is looked up there."""
BLOCK_BYTES: Final = 4 * WORDS * BLOCK

Words = NDArray[np.uint32]
Numbers = NDArray[np.int64]
Secret = tuple[int, int]
"""Multiplier and twist of the hash function: random, so that no client can choose ids that collide."""


class DamagedIndex(OSError):
    """A file of the index is not what was written: no part of the index may be used any more."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EIO, f"the id index is damaged: {path}, {reason}")
        self.path = path
        self.reason = reason


class IdSegment:
    """A fixed number of places (a power of two) in an arena: memory until `write`, then a file that never changes."""

    def __init__(self, arena: Arena, start: int, capacity: int, base: int, secret: Secret, used: int) -> None:
        """Use `create` or `open`. `start` is the offset in the arena, in bytes."""
        self.start = start
        self.capacity = capacity
        self.base = base
        self.secret = secret
        self.used = used
        self.path: Path | None = None
        """The file; None: it is in memory, and `write` has not succeeded yet."""
        self.digest = ""
        """The hex digest of the file's header and checksums, which a checkpoint keeps."""
        self.buckets: int = capacity // PLACES
        self._arena = arena
        self._checksums: U64 | None = None
        self._checked: NDArray[np.bool_] | None = None
        """Which blocks have been checked; None: all need no check, as this process made them."""
        first = (start + HEADER) // 4
        self.table: Words = arena.words[first : first + WORDS * self.buckets].reshape(-1, WORDS)

    @classmethod
    def create(cls, arena: Arena, capacity: int, base: int, secret: Secret) -> "IdSegment":
        """Make an empty segment for offsets from `base` on. Raises `OSError` if the memory cannot be had."""
        return cls(arena, arena.allocate(_size(capacity)), capacity, base, secret, 0)

    @classmethod
    def open(cls, path: Path, arena: Arena, digest: str) -> "IdSegment":
        """Open a file of which a checkpoint has kept `digest`. Raises `DamagedIndex` if it is not that file."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DamagedIndex(path, "the file is missing") from None
        try:
            header, checksums, found = _read_frame(fd, path, digest)
            capacity: int = header["capacity"]
            secret: Secret = header["multiplier"], header["twist"]
            start = arena.map_file(fd, _size(capacity))
            segment = cls(arena, start, capacity, header["base"], secret, header["used"])
        finally:
            os.close(fd)  # there may be more segments than a process may open files
        segment.path, segment.digest = path, found
        segment._checksums, segment._checked = checksums, np.zeros(len(checksums), np.bool_)
        segment._read_at_random()
        return segment

    def write(self, path: Path, *, durable: bool = True) -> None:
        """Write the segment, which must be full, to a file and map that in its place. With `durable` the file is
        flushed; its directory entry is not.

        Blocks for as long as the disk takes, without the GIL; may run beside searches. Raises `OSError`: then there is
        no file, and the segment stays in memory.
        """
        header = {
            "capacity": self.capacity,
            "base": self.base,
            "multiplier": self.secret[0],
            "twist": self.secret[1],
            "used": self.used,
        }
        first = json.dumps(header).encode().ljust(HEADER, b"\0")
        blocks = [self._block(number) for number in range(_blocks(self.buckets))]
        checksums = np.array([xxhash.xxh3_64_intdigest(block) for block in blocks], "<u8").tobytes()
        write_file(path, [first, self.table.data.cast("B"), checksums], durable=durable)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._arena.replace(self.start, _size(self.capacity), fd)
        finally:
            os.close(fd)
        self.digest = xxhash.xxh3_128_hexdigest(first + checksums)
        self.path = path
        self._read_at_random()

    def _read_at_random(self) -> None:
        """Advise the system that the file is read at random pages: no read-ahead."""
        self._arena.advise(self.start, _size(self.capacity), mmap.MADV_RANDOM)

    @property
    def room(self) -> int:
        """How many more keys fit."""
        return int(self.capacity * MAX_LOAD) - self.used

    def spans(self, offset: int) -> bool:
        """Return whether this segment can hold a claim at `offset`."""
        return self.base <= offset < self.base + MAX_SPAN

    def spanned(self, offsets: Numbers) -> int:
        """Return how many of the offsets, from the first on, this segment can hold."""
        outside = np.flatnonzero((offsets < self.base) | (offsets >= self.base + MAX_SPAN))
        return int(outside[0]) if len(outside) else len(offsets)

    def keys(self, start: int, stop: int) -> U64:
        """Return the keys in the buckets `start` to `stop`. Raises `DamagedIndex`."""
        if self._checked is not None:
            self.check(np.arange(start >> BLOCK_BITS, -(-min(stop, self.buckets) // BLOCK)))
        some = self.table[start:stop].reshape(-1)
        bucket, place = np.divmod(np.flatnonzero(self.table[start:stop, :PLACES]), PLACES)
        rest = bucket * WORDS + 2 * PLACES + REST * place
        words = np.empty((len(rest), 4), np.uint32)
        words[:, 0] = some[bucket * WORDS + PLACES + place]
        for number in (1, 2, 3):
            words[:, number] = some[rest + (number - 1)]
        return words.view("<u8")

    # --- checksums --------------------------------------------------------------------------------------------------

    @property
    def unchecked(self) -> int:
        """Blocks whose checksums have not been compared yet."""
        return 0 if self._checked is None else len(self._checked) - int(np.count_nonzero(self._checked))

    def check(self, blocks: Numbers) -> int:
        """Compare the checksums of those of these blocks that are unchecked; return how many those were.

        Raises `DamagedIndex`, and another `OSError` where the process may open no more files.
        """
        if self._checked is None or self._checksums is None:
            return 0
        new: list[int] = np.unique(blocks[~self._checked[blocks]]).tolist()
        if not new:
            return 0
        assert self.path is not None
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise DamagedIndex(self.path, f"it cannot be opened: {error}") from error
        try:
            for number in new:
                self._check_block(self.path, fd, number, int(self._checksums[number]))
                self._checked[number] = True
        finally:
            os.close(fd)
        return len(new)

    def _check_block(self, path: Path, fd: int, number: int, checksum: int) -> None:
        begin = HEADER + number * BLOCK_BYTES
        length = min(BLOCK_BYTES, _size(self.capacity) - begin)
        where = f"block {number} (bytes {begin} to {begin + length})"
        try:  # by `pread`: a read error in a page fault would end the process
            read = os.pread(fd, length, begin)
        except OSError as error:
            raise DamagedIndex(path, f"{where}: {error}") from error
        if xxhash.xxh3_64_intdigest(read) != checksum:
            raise DamagedIndex(path, f"{where}: its checksum does not match")

    def _block(self, number: int) -> Any:
        return self.table[number << BLOCK_BITS : (number + 1) << BLOCK_BITS].data.cast("B")


class CheckedBlocks:
    """Compares checksums before a search uses blocks of files that an earlier process wrote."""

    def __init__(self, segments: Sequence[IdSegment]) -> None:
        """`segments`: the first ones of an index, all of them opened from files."""
        self._segments = segments
        self.left = sum(segment.unchecked for segment in segments)
        """Blocks that have not been compared yet; 0: no search needs a check any more."""

    def check(self, segments: Numbers, buckets: Numbers) -> None:
        """Check the buckets `buckets[i]` of the segments `segments[i]` before they are read. Raises `DamagedIndex`."""
        blocks = buckets >> BLOCK_BITS
        for number in np.unique(segments).tolist():
            if number < len(self._segments):
                self.left -= self._segments[number].check(blocks[segments == number])


def write_file(path: Path, parts: Sequence[Any], *, durable: bool = True) -> None:
    """Write a file, or replace it, as a whole. With `durable` it is flushed; its directory entry is not.

    Raises `OSError`: then nothing of the new file is left. A draft that could not be flushed is deleted, as its content
    is unknown then (fsync(2)).
    """
    draft = path.with_name(path.name + ".new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            for part in parts:
                left = memoryview(part)
                while left:
                    left = left[os.write(fd, left) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def words_of(keys: U64) -> Words:
    """Return keys as rows of four 32-bit words, the same bits."""
    return np.ascontiguousarray(keys).view("<u4").reshape(-1, 4)


def _size(capacity: int) -> int:
    """Return the bytes of header and buckets."""
    return HEADER + 4 * WORDS * (capacity // PLACES)


def _blocks(buckets: int) -> int:
    return -(-buckets // BLOCK)


def _read_frame(fd: int, path: Path, digest: str) -> tuple[dict[str, int], U64, str]:
    """Return header and checksums of a file, and the digest of both. Raises `DamagedIndex`."""
    try:
        first = os.pread(fd, HEADER, 0)
        size = os.fstat(fd).st_size
        header = json.loads(first.rstrip(b"\0"))
        body = _size(header["capacity"])
        checksums = os.pread(fd, 8 * _blocks(header["capacity"] // PLACES), body)
    except OSError as error:
        raise DamagedIndex(path, f"it cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, OverflowError):
        raise DamagedIndex(path, "its header cannot be read") from None
    found = xxhash.xxh3_128_hexdigest(first + checksums)
    if found != digest or size != body + len(checksums):
        raise DamagedIndex(path, "its header or its checksums are not those that the checkpoint names")
    return header, np.frombuffer(checksums, "<u8"), found
