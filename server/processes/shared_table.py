"""A table of integers that several processes of this machine share: a file mapped into each of them, with a lock.

A row has a key, set once, and signed words of 64 bits. A word is written in one store: a process that is killed leaves
the old value or the new one. The lock (`flock`) is released by the kernel when its holder ends; it is held for
microseconds. The content does not outlive the processes: the file is made anew when all of them are started.

One thread of a process uses a table.
"""

import fcntl
import mmap
import os
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

WORD: Final = 8
KEY: Final = 128
"""Most bytes of a key; zeros fill it up."""
HEADER: Final = 4096
ROWS: Final = 65_536
"""Rows of a table. The file has its full size from the start, but is sparse: only used pages are on the disk."""

PATIENCE: Final = 0.05
"""Seconds to wait for the lock: its holder needs microseconds, unless it is suspended meanwhile."""
PAUSE: Final = 0.0002

_COUNT: Final = 0
_REUSES: Final = 1


class Busy(Exception):
    """The table cannot be used now: a suspended process holds its lock, or it is full."""


class SharedTable:
    """The table in a file that `create` has made. `with table:` holds the lock, or raises `Busy`."""

    def __init__(self, path: Path, words: int, rows: int = ROWS) -> None:
        """Open the file; `words` (in a row) and `rows` are those of `create`."""
        self._width = KEY // WORD + words
        self._words = words
        self._capacity = rows
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._map = mmap.mmap(self._fd, _size(words, rows))
        self._all: Any = memoryview(self._map).cast("q")
        self._keys: dict[bytes, int] = {}
        self._known = 0
        self._reuses = 0

    @staticmethod
    def create(path: Path, words: int, rows: int = ROWS) -> None:
        """Make an empty table in place of an older file; processes that still map that one keep it."""
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.truncate(fd, _size(words, rows))
        os.close(fd)

    def close(self) -> None:
        """Unmap and close the file."""
        self._all.release()
        self._map.close()
        os.close(self._fd)

    # --- the lock ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            time.sleep(PAUSE)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return
        raise Busy("another API process holds the lock of the table they share, and does not run")

    def __exit__(self, *raised: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    # --- rows -------------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """A number that changes whenever a process has added a row. Cheap; needs no lock."""
        return int(self._all[_COUNT] + self._all[_REUSES])

    def find(self, key: bytes) -> int | None:
        """Return the row of a key; None: it has none. Call it under the lock."""
        self._learn()
        return self._keys.get(key)

    def where(self, word: int, low: int, high: int) -> list[bytes]:
        """Return the keys of all rows in which `word` is from `low` to `high`. Call it under the lock."""
        self._learn()
        rows = self._select(self._known, word, low, high)
        return [key for key in map(self._key, rows) if key in self._keys]

    def add(self, key: bytes, words: list[int], stale: int) -> int:
        """Add a row for a key that has none, and return it. Call it under the lock.

        In a full table it replaces a row whose first word is below `stale`; raises `Busy` if there is none.
        """
        if len(key) > KEY or b"\0" in key:
            raise ValueError(f"not a key of a shared table: {key!r}")
        self._learn()
        row = self._known if self._known < self._capacity else self._retire(stale)
        at = self._at(row)
        start = at * WORD
        self._map[start : start + KEY] = key.ljust(KEY, b"\0")
        at += KEY // WORD
        for number, word in reversed(list(enumerate(words))):  # the first word last: until then the row counts as stale
            self._all[at + number] = word
        self._keys[key] = row
        if row == self._known:
            self._known += 1
            self._all[_COUNT] = self._known
        return row

    def words(self, row: int) -> list[int]:
        """Return all words of a row."""
        at = self._at(row) + KEY // WORD
        found: list[int] = self._all[at : at + self._words].tolist()
        return found

    def get(self, row: int, word: int) -> int:
        """Return one word of a row."""
        found: int = self._all[self._at(row) + KEY // WORD + word]
        return found

    def put(self, row: int, word: int, value: int) -> None:
        """Write one word."""
        self._all[self._at(row) + KEY // WORD + word] = value

    def _at(self, row: int) -> int:
        return HEADER // WORD + row * self._width

    def _key(self, row: int) -> bytes:
        start = self._at(row) * WORD
        return self._map[start : start + KEY].rstrip(b"\0")

    def _select(self, rows: int, word: int, low: int, high: int) -> list[int]:
        if not rows:
            return []
        every = np.frombuffer(self._map, np.int64, rows * self._width, HEADER).reshape(rows, self._width)
        column = every[:, KEY // WORD + word]
        found: list[int] = np.flatnonzero((column >= low) & (column <= high)).tolist()
        return found

    def _learn(self) -> None:
        """Read the keys of rows that other processes have added."""
        if self._all[_REUSES] != self._reuses:
            self._reuses, self._known = self._all[_REUSES], 0
            self._keys.clear()
        count = self._all[_COUNT]
        while self._known < count:
            self._keys[self._key(self._known)] = self._known
            self._known += 1

    def _retire(self, stale: int) -> int:
        """Free a stale row and return it; all processes forget its key."""
        found = self._select(self._capacity, 0, -(2**63), stale - 1)
        row = found[0] if found else -1
        if row < 0:
            raise Busy(f"all {self._capacity} rows of the table that the API processes share are in use")
        self._keys.pop(self._key(row), None)
        self.put(row, 0, stale - 1)
        self._reuses += 1
        self._all[_REUSES] = self._reuses
        return row


def _size(words: int, rows: int) -> int:
    return HEADER + rows * (KEY + words * WORD)
