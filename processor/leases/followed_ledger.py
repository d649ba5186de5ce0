"""The ledger of what one thread reads of the changelog, for another one: so that a worker reads it once."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from processor.leases.ledger import Ledger

_KINDS = ("window", "progress")
"""Of the rows that `Ledger.apply` uses."""


class FollowedLedger:
    """A ledger that grows while it is not looked at."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._lock = threading.Lock()
        self.has_read_all = threading.Event()
        """Set once everything that the changelog had at the start has been read. Of a changelog that is compacted while
        it is read, the ledger may lack some until then."""
        self.changes = 0
        """Counts up with each change."""

    def apply(self, partition: int, rows: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Apply what matters of keys and values of one changelog partition, in the order of the log; the same rows may
        come again. Raises `ValueError` for another format."""
        kinds = tuple(b'[%d,"%s"' % (partition, kind.encode()) for kind in _KINDS)
        chosen = [row for row in rows if row[0].startswith(kinds)]
        if not chosen:
            return
        with self._lock:
            for key, value in chosen:
                self._ledger.apply(partition, key, value)
            self.changes += 1

    @contextmanager
    def held(self) -> Iterator[Ledger]:
        """The ledger, which does not change until the block ends."""
        with self._lock:
            yield self._ledger
