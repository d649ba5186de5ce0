"""The API processes of one `serve`: which of them this one is, and the tables that they share.

There are three tables in the data directory (`shared_table`), made anew when all of the processes are started. Each
process holds a lock on them while it runs, so a server that is started while a process of the earlier one is still
ending waits for it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from processor.log.errors import LogError
from processor.log.file_lock import FileLock

if TYPE_CHECKING:  # every command reads the settings, which read this module; few need numpy
    from server.processes.shared_table import SharedTable

VARIABLE: Final = "SPENDSTREAM_API_CREW"
"""The variable in which the supervisor passes number/count/epoch to its children."""

MAX_PROCESSES: Final = 16

PATIENCE: Final = 5.0
"""Seconds within which processes end whose supervisor has ended."""

REQUESTS: Final = "requests"
QUOTAS: Final = "quotas"
DOORS: Final = "doors"

_FOLDER: Final = "apis"
_LOCK: Final = "apis.lock"


class ApiSibling(Struct, frozen=True):
    """One of several API processes."""

    data_dir: Path
    number: int
    """From 0. A process that is started again has the number of its predecessor."""
    count: int
    epoch: str
    """A name for this run of the supervisor, shared by all of its processes."""

    @classmethod
    def create_all(cls, data_dir: Path, count: int) -> list[ApiSibling]:
        """Make the tables for `count` processes, and return their places. Only for the holder of the directory's lock.

        Blocks for up to `PATIENCE` seconds. Raises `LogError` if processes of an earlier server do not end by then.
        """
        from server.processes.shared_table import SharedTable

        lock = FileLock(data_dir / _LOCK)
        try:
            lock.acquire("API processes of an earlier server have not ended", PATIENCE)
            folder = data_dir / _FOLDER
            folder.mkdir(mode=0o700, exist_ok=True)
            for name, words in _words(count).items():
                SharedTable.create(folder / name, words)
        finally:
            lock.close()
        epoch = secrets.token_hex(4)
        return [cls(data_dir, number, count, epoch) for number in range(count)]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], data_dir: Path) -> ApiSibling | None:
        """Return the place of this process; None: it is the only one."""
        said = environment.get(VARIABLE)
        if said is None:
            return None
        number, count, epoch = said.split("/")
        return cls(data_dir, int(number), int(count), epoch)

    @property
    def variable(self) -> str:
        """The value of `VARIABLE`."""
        return f"{self.number}/{self.count}/{self.epoch}"

    @property
    def is_first(self) -> bool:
        """True for the one process that does the tasks of which there is one for all."""
        return self.number == 0

    def name(self, number: int) -> str:
        """Return the name under which the tables count a process's events (`Source.lease`)."""
        return f"{self.epoch}-{number}"

    def hold(self) -> int:
        """Lock the tables, shared, until the returned file descriptor is closed. Raises `LogError`."""
        fd = os.open(self.data_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise LogError("another server is being started on the data directory") from None
        return fd

    def table(self, name: str) -> SharedTable:
        """Open one of the tables: `REQUESTS`, `QUOTAS` or `DOORS`."""
        from server.processes.shared_table import SharedTable

        return SharedTable(self.data_dir / _FOLDER / name, _words(self.count)[name])


def _words(count: int) -> dict[str, int]:
    """Return the tables, and the words in a row of each."""
    return {REQUESTS: 1, QUOTAS: 1 + count, DOORS: 1 + count}
