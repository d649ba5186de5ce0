"""Arrivals under way: what API processes have stamped with its arrival and not appended yet.

Whoever says up to which arrival the log has been read must not pass over these. Each process has a file of eight bytes
in the data directory: the earliest arrival of its batches that are under way, 0 if there are none. The file is locked
as long as its process lives, and one without a lock counts no longer.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

FOLDER: Final = "arrivals"
"""In the data directory."""
_WORD: Final = 8
_DRAFT: Final = ".new"


class ArrivalsUnderWay:
    """Stamps arrivals, and shows the earliest that is under way to other processes. For one thread."""

    def __init__(self, clock: Callable[[], int], data_dir: Path | None = None) -> None:
        """`clock` gives the present in microseconds; without a directory nobody else is shown anything.

        On a full disk others are shown it as soon as there is room, with the next arrival: before that nothing can be
        appended. Raises `OSError` for anything else.
        """
        self._clock = clock
        self._held: dict[int, int] = {}
        """Number -> arrival, in the order in which they were held."""
        self._next = 0
        self._is_mixed = False
        """Whether the clock was set back while some were held, so that the first is not the earliest."""
        self._shown: Any = memoryview(bytearray(_WORD)).cast("q")
        self._unshared: Path | None = None
        """The folder in which there was no room for a file yet."""
        if data_dir is not None:
            self._unshared = data_dir / FOLDER
            self._share(self._unshared)

    def _share(self, folder: Path) -> None:
        path = folder / secrets.token_hex(8)
        draft = path.with_suffix(_DRAFT)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, _WORD)  # to write to a mapped page without a block would end the process
            except OSError:
                os.close(file)
                raise
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            return
        fcntl.flock(file, fcntl.LOCK_EX)  # before it has its name: a reader deletes files without a lock
        shown = memoryview(mmap.mmap(file, _WORD)).cast("q")  # `file` stays open, and locked, as long as the process
        shown[0] = self._shown[0]
        draft.replace(path)
        self._shown, self._unshared = shown, None

    @property
    def shown(self) -> int:
        """The earliest arrival that is under way; 0: none is."""
        found: int = self._shown[0]
        return found

    @contextmanager
    def stamped(self) -> Iterator[int]:
        """Give an arrival, which is under way until the block ends, or as long as it is held besides."""
        number = self.hold(self._clock())  # shown first: whoever does not see it has looked before the stamp
        try:
            yield max(self._clock(), self._held[number])
        finally:
            self.release(number)

    def hold(self, arrival: int) -> int:
        """Count an arrival as under way until `release` of the number that is returned."""
        if self._unshared is not None:
            self._share(self._unshared)
        number = self._next = self._next + 1
        if not self._held:
            self._is_mixed = False
        elif arrival < next(reversed(self._held.values())):
            self._is_mixed = True
        self._held[number] = arrival
        if len(self._held) == 1 or arrival < self._shown[0]:
            self._shown[0] = arrival
        return number

    def release(self, number: int) -> None:
        """End what `hold` began; again is nothing."""
        arrival = self._held.pop(number, None)
        if arrival is not None and arrival == self._shown[0]:
            values = self._held.values()
            self._shown[0] = min(values, default=0) if self._is_mixed else next(iter(values), 0)


def earliest(data_dir: Path) -> int | None:
    """Return the earliest arrival that is under way in any process of this machine; None: there is none.

    Files of processes that have ended are deleted. Raises `OSError`.
    """
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(data_dir / FOLDER) as entries:
        for entry in entries:
            if not entry.name.endswith(_DRAFT):
                with contextlib.suppress(FileNotFoundError):
                    found += _shown_in(entry.path)
    return min(found, default=None)


def _shown_in(path: str) -> list[int]:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        word = int.from_bytes(os.pread(file, _WORD, 0), sys.byteorder)
        return [word] if word else []
    else:
        Path(path).unlink(missing_ok=True)
        return []
    finally:
        os.close(file)
