"""The thread that keeps the directory up to date."""

from typing import Final

from processor.log.address import LogAddress
from processor.log.following import FollowerThread
from processor.log.records import TopicPartition
from processor.log.topics import DIRECTORY
from server.tenancy.directory import Directory
from server.tenancy.directory_mark import DirectoryMark

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

    def _round(self) -> None:
        for _, records in self._tail.poll():
            for record in records:
                self._directory.apply(record.key, record.value, record.offset)
                self.end = record.offset
            if self._mark is not None and records:
                self._mark.advance(records[-1])
        self.known_at = self._tail.known_at(HOME)
        if self.known_at > float("-inf"):
            self.read_all.set()
