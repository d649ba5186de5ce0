"""One stretch of address space in which files are mapped side by side, so that one gather reads from all of them.

numpy gathers from one array at a time, and a call costs as much as a hundred keys: with an array for each segment a
batch would pay that for every segment. Here all of them are one array, and where a segment lies is a number.
"""

import ctypes
import mmap
import os
import sys
import weakref
from typing import Final

import numpy as np
from numpy.typing import NDArray

SIZE: Final = 1 << 38
"""Bytes reserved for an index: addresses, not memory. Seven thousand million ids."""
LEAST: Final = 1 << 32
STEP: Final = 1 << 22
"""Bytes whose pages are entered in the page table in one call, with the address space locked."""

UNIT: Final = np.dtype((np.void, 32))
"""Half a cache line: the widest item that `take` copies without a call for each."""
REST: Final = np.dtype((np.void, 20))
"""Five words."""
UNIT_WORDS: Final = UNIT.itemsize // 4

_PROT_NONE: Final = 0
_MAP_FIXED: Final = 0x10
_MS_SYNC: Final = 4 if sys.platform == "linux" else 16
_MADV_POPULATE_WRITE: Final = 23
_FAILED: Final = ctypes.c_void_p(-1).value

_libc: Final = ctypes.CDLL(None, use_errno=True)  # its calls are made without the GIL
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Arena:
    """Files mapped side by side. What is not mapped must not be touched: that ends the process.

    The addresses are given back when the arena and every array made of it are gone, so none ever dangles.
    """

    def __init__(self, size: int = SIZE) -> None:
        """Reserve `size` bytes of addresses, or as many as the system lets us have; raises `OSError`."""
        self._address, self._size = _reserve(size)
        block = (ctypes.c_char * self._size).from_address(self._address)
        weakref.finalize(block, _libc.munmap, self._address, self._size).atexit = False
        self.words: NDArray[np.uint32] = np.frombuffer(memoryview(block), "<u4")
        self.units: NDArray[np.void] = np.frombuffer(memoryview(block), UNIT)
        self.rests: NDArray[np.void] = np.ndarray((len(self.words) - 4,), REST, memoryview(block), 0, (4,))
        """Item i is the words i to i + 4. Index it; `take` would make a copy of everything first."""
        self._end = 0

    def place(self, descriptor: int, length: int) -> int:
        """Map a file after the last one, shared and writable; returns its distance from the beginning in bytes.

        Raises `OSError`. The file may be closed afterwards; it must keep its length.
        """
        start = self._end
        if start + length > self._size:
            raise MemoryError(f"the id index has no more addresses ({self._size >> 30} GiB)")
        flags = mmap.MAP_SHARED | _MAP_FIXED
        _map(self._address + start, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor)
        self._end = start + -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
        return start

    def populate(self, start: int, length: int) -> None:
        """Enter the pages of a file that is about to be written to in the page table, so that writing does not have to.

        Only a hint: systems that cannot do it have nothing done.
        """
        for done in range(0, length, STEP):
            _libc.madvise(self._address + start + done, min(STEP, length - done), _MADV_POPULATE_WRITE)

    def flush(self, start: int, length: int) -> None:
        """Wait until these bytes are on the disk. Raises `OSError`."""
        begin = start - start % mmap.PAGESIZE
        if _libc.msync(self._address + begin, start + length - begin, _MS_SYNC):
            raise OSError(ctypes.get_errno(), f"msync: {os.strerror(ctypes.get_errno())}")

    def advise(self, start: int, length: int, advice: int) -> None:
        """`madvise` on a file; a refusal is no fault."""
        _libc.madvise(self._address + start, length, advice)


def _reserve(size: int) -> tuple[int, int]:
    """Addresses that nothing may touch yet; fewer where a limit of the process forbids so many."""
    while True:
        try:
            return _map(None, size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1), size
        except OSError:
            size //= 2
            if size < LEAST:
                raise


def _map(address: int | None, *arguments: int) -> int:
    found = _libc.mmap(address, *arguments, 0)
    if found == _FAILED:
        raise OSError(ctypes.get_errno(), f"mmap: {os.strerror(ctypes.get_errno())}")
    return int(found)
