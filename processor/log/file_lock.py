"""Advisory locks on files of the data directory; the kernel releases them when their process ends in any way."""

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
        """Acquire the lock; block for up to `patience` seconds. Raises `Locked` with `what` as its text."""
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
                with contextlib.suppress(OSError):  # on a full disk the file keeps no pid
                    os.ftruncate(self._fd, 0)
                    os.pwrite(self._fd, str(os.getpid()).encode(), 0)
                return

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for the length of the block. Blocks until it is free, without the GIL."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._fd)


LOOK: Final = 0.2
"""Patience, in seconds, for locks that others may examine with `holder_of`, which holds them for an instant."""


def holder_of(path: Path) -> int | None:
    """Return the pid of the process that holds the lock on a file; None if none does. Does not block.

    This call itself holds the lock for an instant, so others have to acquire it with the patience `LOOK`.
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
