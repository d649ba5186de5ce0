"""The one reader of the changelog in a worker on Kafka: for the ledger at once, for the users' rows when they are asked
for, since nothing may be applied to those while they are written to the topic.
"""

from collections import deque
from concurrent.futures import Future
from typing import Final, NamedTuple, Protocol, TypeVar

from processor.leases.followed_ledger import FollowedLedger
from processor.log.records import pairs_of
from processor.log.tail import Tail
from processor.view.changelog_batch import Change

MOST_AHEAD: Final = 200_000
"""Records that are read ahead; then the ledger stands still until the rows go on."""

T = TypeVar("T")


class RowsToWrite(Protocol):
    """What the rows of the changelog are applied to (`merged_rows.MergedRows`)."""

    def apply(self, partition: int, records: list[Change]) -> None: ...


class _Ahead(NamedTuple):
    partition: int
    changes: list[Change]
    at: int
    """When the first of them was appended, in microseconds."""


class ChangelogReader:
    """Reads for `rows` and `ledger`. For one thread."""

    def __init__(self, rows: RowsToWrite, ledger: FollowedLedger) -> None:
        self._rows = rows
        self._ledger = ledger
        self._ahead: deque[_Ahead] = deque()
        self._count = 0
        self.oldest: int | None = None
        """When the oldest change was appended that the rows have got since this was set to None; in microseconds."""

    def read(self, tail: Tail) -> None:
        """Read what there is, and apply all of it."""
        self.apply()
        self._poll(tail)
        self.apply()

    def apply(self) -> None:
        """Apply to the rows what was read ahead: then they contain all that the tail has returned."""
        while self._ahead:
            partition, changes, at = self._ahead[0]
            self._rows.apply(partition, changes)
            self._ahead.popleft()
            self._count -= len(changes)
            self.oldest = min(self.oldest or at, at)

    def wait(self, future: "Future[T]", tail: Tail) -> T:
        """Wait for what another thread does, and read ahead meanwhile. Raises what that raises."""
        while not future.done() and self._count < MOST_AHEAD:
            self._poll(tail)
        return future.result()

    def look(self, tail: Tail) -> None:
        """Read ahead, if there is room."""
        if self._count < MOST_AHEAD:
            self._poll(tail)

    def _poll(self, tail: Tail) -> None:
        for tp, records in tail.poll():
            changes = pairs_of(records)
            self._ledger.apply(tp.partition, changes)
            self._ahead.append(_Ahead(tp.partition, list(changes), records[0].at))
            self._count += len(changes)
        if tail.is_current:
            self._ledger.has_read_all.set()
