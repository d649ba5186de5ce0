"""The newest ids of an index in the order of their claims, kept until they are in files: tails are written from it.

A tail is a file of such entries: the ids since the last segment that is in a file, so that a start need not read all of
their claims. It is written once; a small one is replaced by the next, which contains its ids.
"""

import mmap
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from processor.core.partitioning import U64
from processor.ids.id_segment import DamagedIndex, Numbers, write_file

ENTRY: Final = np.dtype([("key", "<u8", (2,)), ("digest", "<u8"), ("offset", "<i8")])
CHUNK: Final = 1 << 14
"""Entries in one array: half a megabyte."""

Entries = NDArray[Any]


class TailFile(NamedTuple):
    """A tail's file, as a checkpoint names it."""

    file: str
    start: int
    """How many ids of the index come before its first."""
    ids: int
    digest: str
    """XXH3 of 128 bits over the file, hex."""

    @property
    def end(self) -> int:
        """How many ids of the index there are up to its last."""
        return self.start + self.ids


class Journal:
    """Entries from the number `start` on. One thread may add while another reads and drops."""

    def __init__(self, start: int = 0) -> None:
        self._lock = Lock()
        self._chunks: list[Entries] = []
        self._start = self._end = start

    def add(self, keys: U64, digests: U64, offsets: Numbers) -> None:
        """Append ids."""
        done = 0
        with self._lock:
            while done < len(keys):
                at = (self._end - self._start) % CHUNK
                if at == 0:
                    # A mapping, not the heap, so that freeing it returns all of it to the system.
                    self._chunks.append(np.frombuffer(mmap.mmap(-1, CHUNK * ENTRY.itemsize), ENTRY))
                count = min(CHUNK - at, len(keys) - done)
                part = self._chunks[-1][at : at + count]
                part["key"] = keys[done : done + count]
                part["digest"] = digests[done : done + count]
                part["offset"] = offsets[done : done + count]
                done += count
                self._end += count

    def read(self, start: int, stop: int) -> list[Entries]:
        """Return the entries `start` to `stop` (exclusive), in parts. Raises `ValueError` if they are not there."""
        with self._lock:
            if not self._start <= start <= stop <= self._end:
                raise ValueError(f"the entries {start} to {stop} are not within {self._start} to {self._end}")
            found = []
            for number, chunk in enumerate(self._chunks):
                begin = self._start + number * CHUNK
                found.append(chunk[max(0, start - begin) : max(0, stop - begin)])
            return [part for part in found if len(part)]

    def drop(self, before: int) -> None:
        """Drop the entries below the number `before`, in whole chunks."""
        with self._lock:
            whole = min((before - self._start) // CHUNK, (self._end - self._start) // CHUNK)
            if whole > 0:
                del self._chunks[:whole]
                self._start += whole * CHUNK


def write_tail(path: Path, start: int, entries: list[Entries]) -> TailFile:
    """Write a tail; flushed, but not its directory entry. Raises `OSError`: then there is no file."""
    digest = xxhash.xxh3_128()
    parts = [part.view(np.uint8).data for part in entries]
    for part in parts:
        digest.update(part)
    write_file(path, parts)
    return TailFile(path.name, start, sum(map(len, entries)), digest.hexdigest())


def read_tail(directory: Path, tail: TailFile) -> Entries:
    """Read a tail. Raises `DamagedIndex` if it is not what was written."""
    path = directory / tail.file
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DamagedIndex(path, "the file is missing") from None
    except OSError as error:
        raise DamagedIndex(path, f"it cannot be read: {error}") from error
    if xxhash.xxh3_128_hexdigest(content) != tail.digest or len(content) != tail.ids * ENTRY.itemsize:
        raise DamagedIndex(path, "its checksum does not match")
    return np.frombuffer(content, ENTRY)
