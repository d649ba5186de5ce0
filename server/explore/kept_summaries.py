"""What row groups add up to, kept for the next question: the files of segments never change."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

MOST_BYTES: Final = 32 << 20
"""Of all that is kept."""
FIXED: Final = 500
"""Bytes of an entry besides what it says of itself."""


class SummaryKey(NamedTuple):
    """Which rows, and what of them."""

    segment: str
    group: int
    project: str
    what: tuple[str | int | None, ...]


class KeptSummaries:
    """The most recently used summaries; for any threads, which do not change them."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.most = most
        """Bytes."""
        self._items: OrderedDict[SummaryKey, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, key: SummaryKey) -> Any:
        """Return what is kept, or None."""
        with self._lock:
            found = self._items.get(key)
            if found is None:
                return None
            self._items.move_to_end(key)
            return found[0]

    def keep(self, key: SummaryKey, summary: Any, size: int) -> None:
        """Keep a summary of about `size` bytes in place of an earlier one."""
        with self._lock:
            _, freed = self._items.pop(key, (None, 0))
            self.bytes -= freed
            if size + FIXED > self.most:
                return
            self._items[key] = summary, size + FIXED
            self.bytes += size + FIXED
            while self.bytes > self.most:
                _, (_, freed) = self._items.popitem(last=False)
                self.bytes -= freed

    def keep_only(self, segments: Iterable[str]) -> None:
        """Forget those of all other segments."""
        wanted = set(segments)
        with self._lock:
            for key in [each for each in self._items if each.segment not in wanted]:
                self.bytes -= self._items.pop(key)[1]
