"""Rows of numbers that several processes of this machine share: a file mapped into each of them, changed under a lock.

A row has a key, given once, and some signed words of 64 bits. A word is written in one store: a process killed in
between leaves the old one or the new one. The lock (`flock`) belongs to the kernel, which frees it with its holder;
it is held for microseconds. Nothing here outlives the processes: the file is made anew when all of them are.

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
"""Bytes of a key, at most; zeros fill it up."""
HEADER: Final = 4096
ROWS: Final = 65_536
"""Rows of a table. The file has room for all of them from the start, and no pages on the disk before they are used."""

PATIENCE: Final = 0.05
"""Seconds in which to get the lock: its holder needs microseconds, unless it is stopped in the middle of them."""
PAUSE: Final = 0.0002

_COUNT: Final = 0
_REUSES: Final = 1


class Busy(Exception):
    """The table cannot be had now: its lock is held by a process that stands still, or it is full."""


class SharedTable:
    """The table in a file that `create` has made. `with table:` holds the lock, or raises `Busy`."""

    def __init__(self, path: Path, words: int, rows: int = ROWS) -> None:
        """Open the file; `words` and `rows` are those it was made with."""
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
        """Make an empty table; one of that name that is still mapped somewhere stays as it is, without a name."""
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.truncate(fd, _size(words, rows))
        os.close(fd)

    def close(self) -> None:
        """Let go of the file."""
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
        raise Busy("another process holds what all of them share, and stands still")

    def __exit__(self, *raised: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    # --- rows -------------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Another number whenever a process has added a row. Cheap, without the lock."""
        return int(self._all[_COUNT] + self._all[_REUSES])

    def find(self, key: bytes) -> int | None:
        """The row of a key. Under the lock."""
        self._learn()
        return self._keys.get(key)

    def where(self, word: int, low: int, high: int) -> list[bytes]:
        """The keys of all rows in which a word is from `low` to `high`. Under the lock."""
        self._learn()
        rows = self._select(self._known, word, low, high)
        return [key for key in map(self._key, rows) if key in self._keys]

    def add(self, key: bytes, words: list[int], stale: int) -> int:
        """A row for a key that has none. Under the lock.

        In a full table it takes the place of a row whose first word is below `stale`; raises `Busy` if there is none.
        """
        if len(key) > KEY or b"\0" in key:
            raise ValueError(f"not a key of a shared table: {key!r}")
        self._learn()
        row = self._known if self._known < self._capacity else self._retire(stale)
        at = self._at(row)
        start = at * WORD
        self._map[start : start + KEY] = key.ljust(KEY, b"\0")
        at += KEY // WORD
        for number, word in reversed(list(enumerate(words))):  # the first one last: until then the row is stale
            self._all[at + number] = word
        self._keys[key] = row
        if row == self._known:
            self._known += 1
            self._all[_COUNT] = self._known
        return row

    def words(self, row: int) -> list[int]:
        """What a row says."""
        at = self._at(row) + KEY // WORD
        found: list[int] = self._all[at : at + self._words].tolist()
        return found

    def get(self, row: int, word: int) -> int:
        """One word of a row."""
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
        """Read the keys of rows that others have added."""
        if self._all[_REUSES] != self._reuses:
            self._reuses, self._known = self._all[_REUSES], 0
            self._keys.clear()
        count = self._all[_COUNT]
        while self._known < count:
            self._keys[self._key(self._known)] = self._known
            self._known += 1

    def _retire(self, stale: int) -> int:
        """A row to be used again; its key is forgotten by everybody."""
        found = self._select(self._capacity, 0, -(2**63), stale - 1)
        row = found[0] if found else -1
        if row < 0:
            raise Busy(f"all {self._capacity} rows of what the processes share are in use")
        self._keys.pop(self._key(row), None)
        self.put(row, 0, stale - 1)
        self._reuses += 1
        self._all[_REUSES] = self._reuses
        return row


def _size(words: int, rows: int) -> int:
    return HEADER + rows * (KEY + words * WORD)
