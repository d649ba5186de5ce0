"""The newest ids of an index in the order in which they came, until they are in files: what a tail is written from.

A tail is a file of such entries: the ids since the last segment that is in a file, so that a start does not read the
claims of all of them. It is written once; a small one is replaced by the next, which has its ids, too.
"""

import mmap
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from processor.core.partitioning import U64
from processor.ids.segment_file import DamagedIndex, Numbers, write_file

ENTRY: Final = np.dtype([("key", "<u8", (2,)), ("digest", "<u8"), ("offset", "<i8")])
CHUNK: Final = 1 << 14
"""Entries in one array: half a megabyte."""

Entries = NDArray[Any]


class Tail(NamedTuple):
    """A file of entries, as a checkpoint names it."""

    file: str
    start: int
    """How many ids of the index came before its first."""
    ids: int
    digest: str
    """XXH3 of 128 bits over the file, hex."""

    @property
    def end(self) -> int:
        """How many ids of the index there are up to its last."""
        return self.start + self.ids


class Journal:
    """Entries from the number `start` on. One thread may add while another one reads and drops."""

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
                    # Not of the heap, so that all of it goes back to the system.
                    self._chunks.append(np.frombuffer(mmap.mmap(-1, CHUNK * ENTRY.itemsize), ENTRY))
                count = min(CHUNK - at, len(keys) - done)
                part = self._chunks[-1][at : at + count]
                part["key"] = keys[done : done + count]
                part["digest"] = digests[done : done + count]
                part["offset"] = offsets[done : done + count]
                done += count
                self._end += count

    def read(self, start: int, stop: int) -> list[Entries]:
        """The entries of the numbers `start` to `stop`, which must be there, in parts."""
        with self._lock:
            if not self._start <= start <= stop <= self._end:
                raise ValueError(f"the entries {start} to {stop} are not within {self._start} to {self._end}")
            found = []
            for number, chunk in enumerate(self._chunks):
                begin = self._start + number * CHUNK
                found.append(chunk[max(0, start - begin) : max(0, stop - begin)])
            return [part for part in found if len(part)]

    def drop(self, before: int) -> None:
        """Forget entries below the number `before`, but for a few."""
        with self._lock:
            whole = min((before - self._start) // CHUNK, (self._end - self._start) // CHUNK)
            if whole > 0:
                del self._chunks[:whole]
                self._start += whole * CHUNK


def write_tail(path: Path, start: int, entries: list[Entries]) -> Tail:
    """Write a file of entries; durable but for the directory's entry. Raises `OSError`: then there is none."""
    digest = xxhash.xxh3_128()
    parts = [part.view(np.uint8).data for part in entries]
    for part in parts:
        digest.update(part)
    write_file(path, parts)
    return Tail(path.name, start, sum(map(len, entries)), digest.hexdigest())


def read_tail(directory: Path, tail: Tail) -> Entries:
    """Read one back. Raises `DamagedIndex` if it is not what was written."""
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
