"""Noticing that the log's files are not the ones that were opened, or that SQLite's lock on them is gone.

SQLite trusts its locks: a program that closes the file as the last one deletes the write-ahead log. A process that has
lost its lock, or whose files were deleted or replaced under it, writes to a file that is never read again.
"""

import errno
import os
from pathlib import Path
from typing import Final

from processor.log.errors import LogBroken, LogUnavailable

SHARED_FIRST: Final = 0x4000_0002
"""The first byte that every open connection in WAL mode holds a read lock on (sqlite.org/src, os.h: `SHARED_FIRST`)."""

_DESCRIPTORS: Final = Path("/proc/self/fd")
_LOCKS_OF: Final = "/proc/self/fdinfo/{}"
"""Of one open file the kernel lists the locks at one moment; the list of all, /proc/locks, misses some while it is
read."""

_File = tuple[int, int]
"""Device and inode."""


class Guard:
    """The files of one SQLite database in WAL mode, as one process has them open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._paths: list[str] = []
        self._files: list[_File] = []
        self._holder: int | None = None
        """The descriptor through which SQLite holds the lock; None: locks cannot be seen here."""
        self._has_looked = False

    def begin(self) -> None:
        """Remember the files as they are now: the database has been read, so that all are open. Raises `OSError`.

        The index of the write-ahead log (`-shm`) is one of them: who opens the database after it was deleted makes a
        new one, and two processes that do not see each other's frames write over them.
        """
        wal = wal_of(self._path)
        self._paths = [str(self._path), str(wal), str(wal.with_name(f"{wal.name.removesuffix('-wal')}-shm"))]
        self._files = [_file(path) for path in self._paths]
        self._has_looked = False

    def check(self) -> None:
        """Raise `LogBroken` if one of the files has been deleted or replaced. Microseconds.

        Raises `LogUnavailable` where that cannot be told now.
        """
        for path, file in zip(self._paths, self._files, strict=True):
            try:
                found = _file(path)
            except OSError as error:
                raise _lost(path, error) from error
            if found != file:
                raise LogBroken(f"{path} was replaced while it was in use: nothing more can be kept in it")

    def check_lock(self) -> None:
        """Raise `LogBroken` if this process no longer holds SQLite's lock. The first call finds out who holds it.

        Says nothing where locks cannot be seen, or not now: a process may have no descriptor left to look with.
        """
        try:
            if not self._has_looked:
                self._holder = self._find_holder()
                self._has_looked = True
            if self._holder is None or self._holds(self._holder):
                return
            found = self._find_holder()  # another connection's, perhaps
        except OSError:
            return
        if found is None:
            raise LogBroken(
                f"the lock on {self._paths[0]} is lost: another part of this process has closed the file. The next "
                "program that looks at it would delete the write-ahead log"
            )
        self._holder = found

    def _find_holder(self) -> int | None:
        """Look through all open files. 1 µs each. Raises `OSError`: some of it cannot be told."""
        for name in os.listdir(_DESCRIPTORS):  # noqa: PTH208 - the names are all that is needed
            try:
                found = os.fstat(int(name))
            except OSError as error:
                if error.errno == errno.EBADF:  # closed meanwhile
                    continue
                raise
            if (found.st_dev, found.st_ino) == self._files[0] and self._holds(int(name)):
                return int(name)
        return None

    def _holds(self, descriptor: int) -> bool:
        """Whether the lock was taken through this descriptor, and is still there. Raises `OSError`: cannot be told."""
        try:
            lines = Path(_LOCKS_OF.format(descriptor)).read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it is closed
            return False
        for line in lines:  # lock:   1: POSIX  ADVISORY  READ 1234 fe:00:5678 1073741826 1073742335
            fields = line.split()
            if fields[:1] == ["lock:"] and fields[2] == "POSIX" and fields[-3].endswith(f":{self._files[0][1]}"):
                first, last = int(fields[-2]), fields[-1]
                if first <= SHARED_FIRST and (last == "EOF" or int(last) >= SHARED_FIRST):
                    return True
        return False


def wal_of(path: Path) -> Path:
    """The write-ahead log of a database. SQLite puts it beside the file that a symbolic link leads to."""
    target = path.resolve()
    return target.with_name(target.name + "-wal")


def _file(path: str) -> _File:
    found = os.stat(path)  # noqa: PTH116 - a tenth of a Path's time, at each commit
    return found.st_dev, found.st_ino


def _lost(path: str, error: OSError) -> LogUnavailable:
    """Why nothing is written where one of the files cannot be looked at."""
    if isinstance(error, FileNotFoundError):
        return LogBroken(f"{path} was deleted while it was in use: nothing more can be kept in it")
    return LogUnavailable(f"cannot look at {path}: {error}")
