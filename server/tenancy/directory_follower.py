"""The thread that keeps the directory up to date, and whether it is: if not, a revocation may have been missed."""

import asyncio
from collections.abc import Callable
from typing import Final

from processor.log.address import LogAddress
from processor.log.following import FollowerThread
from processor.log.records import TopicPartition
from processor.log.topics import DIRECTORY
from server.errors import Refused
from server.tenancy.directory import Directory
from server.tenancy.directory_mark import DirectoryMark

MAX_AGE: Final = 1.0
"""Seconds by which the directory of a process may be out of date."""

PATIENCE: Final = 0.5
"""Seconds that a request waits for the directory to catch up, as after the process was suspended."""

POLL: Final = 0.01


class DirectoryFreshness:
    """`known_at` gives the moment up to which the directory is known, `monotonic` the present one; both in seconds."""

    def __init__(self, known_at: Callable[[], float], monotonic: Callable[[], float], max_age: float = MAX_AGE) -> None:
        self._known_at = known_at
        self._monotonic = monotonic
        self._max_age = max_age

    @property
    def is_fresh(self) -> bool:
        """True if no change of the directory is older than `max_age` and still unknown here."""
        return self._monotonic() - self._known_at() <= self._max_age

    def check(self) -> None:
        """Raise `Refused("unavailable")` if the directory is out of date."""
        if not self.is_fresh:
            message = "The keys known here may be out of date; retry the request unchanged"
            raise Refused("unavailable", message, retry_after=1)

    async def settle(self, patience: float = PATIENCE) -> None:
        """Wait up to `patience` seconds until the directory is up to date; return either way."""
        deadline = self._monotonic() + patience
        while not self.is_fresh:  # the directory belongs to a thread
            if self._monotonic() >= deadline:
                return
            await asyncio.sleep(POLL)


def always() -> DirectoryFreshness:
    """Return the freshness of a directory that no other process can change."""
    return DirectoryFreshness(lambda: 0.0, lambda: 0.0)


HOME: Final = TopicPartition(DIRECTORY, 0)


LOOK: Final = 0.05
"""Seconds between two polls of the directory. A revocation has to be known within a second; each poll takes the GIL
from the event loop seven times, so more of them would cost ingest."""


class DirectoryFollower(FollowerThread):
    """Tails the directory in a thread of its own, so that revocations do not wait behind the rows of the tables."""

    def __init__(self, address: LogAddress, directory: Directory, mark: DirectoryMark | None = None) -> None:
        super().__init__("directory", address.tail([HOME], LOOK))
        self._directory = directory
        self._mark = mark
        self.known_at = float("-inf")
        """Until when (`time.monotonic`) the directory is known: see `Tail.known_at`."""
        self.end = -1
        """The last offset that was applied."""

    def read_on(self) -> None:
        for _, records in self._tail.poll():
            for record in records:
                self._directory.apply(record.key, record.value, record.offset)
                self.end = record.offset
            if self._mark is not None and records:
                self._mark.advance(records[-1])
        self.known_at = self._tail.known_at(HOME)
        if self.known_at > float("-inf"):
            self.read_all.set()
