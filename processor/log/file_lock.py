"""Advisory locks on files of the data directory; the kernel frees them when their process ends, however it ends."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
