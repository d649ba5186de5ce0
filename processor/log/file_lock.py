"""Advisory locks on files of the data directory; the kernel frees them when their process ends, however it ends."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from processor.log.errors import Locked


class FileLock:
    """An exclusive lock on a file, held until `close` or the end of the process. The file keeps the holder's pid."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self, what: str, patience: float = 0.0) -> None:
        """Take the lock, waiting up to `patience` seconds; raises `Locked` with `what` in its text. Blocks."""
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(self._fd, 20, 0).decode(errors="replace").strip()
                    raise Locked(f"{what} (process {holder or 'unknown'} holds {self._path})") from None
                time.sleep(0.05)
            else:
                with contextlib.suppress(OSError):  # on a full disk the holder has no name
                    os.ftruncate(self._fd, 0)
                    os.pwrite(self._fd, str(os.getpid()).encode(), 0)
                return

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for a moment, waiting as long as it takes. Blocks, without the GIL."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._fd)


LOOK: Final = 0.2
"""Seconds of patience with which a lock is acquired that others may look at with `holder_of`: far more than a look."""


def holder_of(path: Path) -> int | None:
    """Return the pid of the process that holds the lock on a file; None if none does. Does not block.

    The look itself holds the lock for an instant, so it is to be acquired with the patience of `LOOK`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).strip()
        return int(holder) if holder.isdigit() else None
    finally:
        os.close(fd)
    return None
