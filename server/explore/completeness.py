"""Up to which arrival the event store is complete.

The ends of the log's partitions are noted from time to time. Once the store has reached the ends of a moment, it has
everything that had arrived by then, whatever the records' own times say.
"""

import threading
from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from processor.core.clock import SECOND
from processor.leases.stated_arrivals import SILENT

KEPT: Final = 4096
"""Moments that are kept; of more every second one is dropped, so that a first build of days still has some."""

DISORDER: Final = round(SILENT * SECOND)
"""Microseconds by which one arrival may be before another that comes earlier in its partition: as long as it may take
from the stamp to the log."""


class _Moment(NamedTuple):
    """What had arrived by an instant."""

    at: int
    """Microseconds since the epoch."""
    ends: Mapping[int, int]
    """Partition -> its next offset."""


class Completeness:
    """Says how far the store is behind. Times are microseconds; for any threads."""

    def __init__(self) -> None:
        self._moments: deque[_Moment] = deque()
        self._covered: _Moment | None = None
        self._lock = threading.Lock()

    def note(self, at: int, ends: Mapping[int, int]) -> None:
        """Note that what had arrived by a moment is before these offsets. What was so before is so now: `at` may be
        earlier than at the last call, as of a process that was not known then."""
        with self._lock:
            newest = self._moments[-1] if self._moments else self._covered
            at = max(at, newest.at if newest is not None else 0)
            if self._moments and newest is not None and newest.ends == ends:
                self._moments.pop()
            self._moments.append(_Moment(at, dict(ends)))
            if len(self._moments) > KEPT:
                kept = list(self._moments)
                self._moments = deque([*kept[:-1:2], kept[-1]])

    def as_of(self, reached: Mapping[int, int], arrivals: Mapping[int, int]) -> int:
        """Return the latest moment that is known to be covered by a store that has reached these offsets.

        `arrivals` has the newest arrival in the store by partition, for a store that has not reached any moment yet, or
        begins anew. It says nothing exact: others may have been longer on their way.
        """
        with self._lock:
            if self._covered is not None and not _covers(reached, self._covered.ends):  # it begins anew
                self._moments.appendleft(self._covered)
                self._covered = None
            while self._moments and _covers(reached, self._moments[0].ends):
                self._covered = self._moments.popleft()
            if self._covered is not None:
                return self._covered.at
            if not self._moments:
                return 0
            by_arrival = min(arrivals.get(each, 0) for each in _behind(reached, self._moments[0].ends))
            return max(min(by_arrival - DISORDER, self._moments[0].at), 0)


def _covers(reached: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    return all(reached.get(partition, 0) >= end for partition, end in ends.items())


def _behind(reached: Mapping[int, int], ends: Mapping[int, int]) -> list[int]:
    return [partition for partition, end in ends.items() if reached.get(partition, 0) < end]
