"""One range of addresses with tables side by side, so that one gather reads from all of them.

numpy gathers from one array at a time, and a call costs as much as a hundred keys: with an array for each segment a
batch would pay that for every segment. Here all segments are one array, and a segment is an index into it.

The range is chosen far from where the system puts its own mappings, and is not reserved: a reservation would count
against a limit of the address space (`ulimit -v`). So an index uses only the addresses of its tables. A table is mapped
only if nothing else is at its place.
"""

import ctypes
import errno
import mmap
import os
import resource
import sys
import weakref
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

SIZE: Final = 1 << 38
"""Bytes of a range: addresses, not memory. Enough for seven thousand million ids."""
LEAST: Final = 1 << 32
"""The smallest range that is used where the system has fewer addresses."""
DISTANCE: Final = 4
"""Ranges between the first one and the system's own mappings, which grow downwards."""
ALIGNMENT: Final = 1 << 21
"""Tables begin at multiples of it: the size of a huge page."""
SPARE: Final = 64 << 20
"""Bytes of addresses that an error about a limit recommends beyond what is needed now."""

UNIT: Final = np.dtype((np.void, 32))
"""Half a cache line: the widest item that numpy's `take` copies without a call for each."""
REST: Final = np.dtype((np.void, 20))
"""Five words."""

_MAP_FIXED: Final = 0x10
_FAILED: Final = ctypes.c_void_p(-1).value

_libc: Final = ctypes.CDLL(None, use_errno=True)  # its calls are made without the GIL
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Arena:
    """Tables mapped side by side. Touching an address that is not mapped ends the process.

    The addresses are released when the arena and every array made from it are gone, so no array dangles.
    """

    def __init__(self) -> None:
        """Choose a range. Raises `OSError` if the process has no free range."""
        self._address, self._size = _ranges.acquire()
        self._mapped: list[tuple[int, int]] = []
        block = (ctypes.c_char * self._size).from_address(self._address)
        weakref.finalize(block, _release, self._address, self._mapped).atexit = False
        self.words: NDArray[np.uint32] = np.frombuffer(memoryview(block), "<u4")
        self.units: NDArray[np.void] = np.frombuffer(memoryview(block), UNIT)
        self.rests: NDArray[np.void] = np.ndarray((len(self.words) - 4,), REST, memoryview(block), 0, (4,))
        """Item i is the words i to i + 4. Index it; `take` would make a copy of everything first."""
        self._end = 0

    def allocate(self, length: int) -> int:
        """Map zeroed memory after the last table; return its offset in the arena, in bytes.

        Raises `OSError` if the process may not map that much; the text says how much is needed.
        """
        start = self._place(length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.advise(start, length, mmap.MADV_HUGEPAGE)
        return start

    def map_file(self, descriptor: int, length: int) -> int:
        """Map a file after the last table, read-only; return its offset in the arena, in bytes.

        Raises `OSError`. The file may be closed afterwards; it must keep its length.
        """
        return self._place(length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor)

    def replace(self, start: int, length: int, descriptor: int) -> None:
        """Map a file of the same content over what `allocate` returned, which frees that memory.

        Readers do not notice: the system replaces the mapping in one step. Raises `OSError`.
        """
        _map(self._address + start, length, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor)

    def advise(self, start: int, length: int, advice: int) -> None:
        """Call `madvise` on a table; ignore an error."""
        _libc.madvise(self._address + start, length, advice)

    def _place(self, length: int, protection: int, flags: int, descriptor: int) -> int:
        start = self._end
        if start + length > self._size:
            raise OSError(errno.ENOMEM, f"the id index has no more addresses ({self._size >> 30} GiB)")
        address = self._address + start
        try:
            found = _map(address, length, protection, flags, descriptor)
        except OSError as error:
            raise OSError(error.errno, f"{_need(length)}: {error.strerror}") from error
        if found != address:  # without MAP_FIXED the address is a hint, used if nothing else is mapped there
            _libc.munmap(found, length)
            raise OSError(
                errno.ENOMEM, f"addresses of the id index are taken by something else in this process ({address:#x})"
            )
        self._mapped.append((address, length))
        self._end = -(-(start + length) // ALIGNMENT) * ALIGNMENT
        return start


class _Ranges:
    """Allocates ranges of addresses of this process to arenas."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._free: list[int] = []
        self._size = SIZE
        self._next: int | None = None

    def acquire(self) -> tuple[int, int]:
        """Return the beginning of a free range, and its size."""
        with self._lock:
            if self._free:
                return self._free.pop(), self._size
            if self._next is None:
                self._next = self._first()
            while not self._fits(self._next):
                self._next -= self._size
                if self._next <= 0:
                    raise OSError(errno.ENOMEM, "this process has no range of free addresses for the id index")
            found = self._next
            self._next -= self._size
            return found, self._size

    def release(self, address: int) -> None:
        """Return a range, of which nothing is mapped, to the free ones."""
        with self._lock:
            self._free.append(address)

    def _first(self) -> int:
        """Return where the first range begins; reduces the size of ranges to what this machine's addresses allow."""
        top = _map(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        _libc.munmap(top, mmap.PAGESIZE)
        while self._size >= LEAST:
            first = (top - (DISTANCE + 1) * self._size) // ALIGNMENT * ALIGNMENT
            if first > 0 and self._fits(first):
                return first
            self._size //= 2
        raise OSError(errno.ENOMEM, "this process has no range of free addresses for the id index")

    def _fits(self, address: int) -> bool:
        """Return whether the system maps the first and the last page of the range."""
        for page in (address, address + self._size - mmap.PAGESIZE):
            try:
                found = _map(page, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
            except OSError as error:
                raise OSError(error.errno, f"{_need(mmap.PAGESIZE)}: {error.strerror}") from error
            _libc.munmap(found, mmap.PAGESIZE)
            if found != page:
                return False
        return True


_ranges: Final = _Ranges()


def _release(address: int, mapped: list[tuple[int, int]]) -> None:
    for start, length in mapped:
        _libc.munmap(start, length)
    _ranges.release(address)


def _map(address: int | None, length: int, protection: int, flags: int, descriptor: int) -> int:
    found = _libc.mmap(address, length, protection, flags, descriptor, 0)
    if found == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(found)


def _need(length: int) -> str:
    """What to allow the process so that it can have `length` bytes of addresses more."""
    text = f"the id index needs {_mib(length)} MiB of memory addresses more"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return text
    text += f", and the process may have {_mib(limit)} MiB (ulimit -v)"
    statm = Path("/proc/self/statm")
    if sys.platform == "linux" and statm.exists():
        has = int(statm.read_text().split()[0]) * mmap.PAGESIZE
        text += f", of which it has {_mib(has)}: allow it {_mib(has + length + SPARE)} MiB at least, or no limit"
    return text


def _mib(size: int) -> int:
    return -(-size >> 20)
