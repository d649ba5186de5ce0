"""Noticing that the log's files are not the ones that were opened, or that SQLite's lock on them is gone.

SQLite trusts its locks: a program that closes the file as the last one deletes the write-ahead log. A process that has
lost its lock, or whose files were deleted or replaced under it, writes to where nobody will ever look.
"""

import os
from pathlib import Path
from typing import Final

from processor.log.errors import LogBroken

SHARED_FIRST: Final = 0x4000_0002
"""The first byte that every open connection in WAL mode holds a read lock on (sqlite.org/src, os.h: `SHARED_FIRST`)."""

_LOCKS: Final = Path("/proc/locks")

_File = tuple[int, int]
"""Device and inode."""


class Guard:
    """The files of one SQLite database in WAL mode, as one process has them open."""

    def __init__(self, path: Path) -> None:
        self._paths = [str(path), f"{path}-wal"]
        self._files: list[_File] = []
        self._sees_lock = False

    def begin(self) -> None:
        """Remember the files as they are now: the database has been read, so that both are open. Raises `OSError`."""
        self._files = [_file(path) for path in self._paths]
        self._sees_lock = self._holds_lock()

    def check(self) -> None:
        """Raise `LogBroken` if one of the files has been deleted or replaced. Microseconds."""
        for path, file in zip(self._paths, self._files, strict=True):
            try:
                found: _File | None = _file(path)
            except FileNotFoundError:
                found = None
            if found != file:
                what = "deleted" if found is None else "replaced"
                raise LogBroken(f"{path} was {what} while it was in use: nothing more can be kept in it")

    def check_lock(self) -> None:
        """Raise `LogBroken` if this process no longer holds SQLite's lock. Says nothing where locks cannot be seen."""
        if self._sees_lock and not self._holds_lock():
            raise LogBroken(
                f"the lock on {self._paths[0]} is lost: another part of this process has closed the file. The next "
                "program that looks at it would delete the write-ahead log"
            )

    def _holds_lock(self) -> bool:
        """Whether the kernel lists the lock as this process's own."""
        try:
            lines = _LOCKS.read_text().splitlines()
        except OSError:
            return False
        pid, inode = str(os.getpid()), str(self._files[0][1])
        for line in lines:  # 1: POSIX  ADVISORY  READ 1234 fe:00:5678 1073741826 1073742335
            fields = line.split()
            if fields[1:2] == ["POSIX"] and fields[-4] == pid and fields[-3].rpartition(":")[2] == inode:
                first, last = int(fields[-2]), fields[-1]
                if first <= SHARED_FIRST and (last == "EOF" or int(last) >= SHARED_FIRST):
                    return True
        return False


def _file(path: str) -> _File:
    found = os.stat(path)  # noqa: PTH116 - a tenth of a Path's time, at each commit
    return found.st_dev, found.st_ino
