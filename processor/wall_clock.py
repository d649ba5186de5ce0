"""The one place that asks the operating system what time it is; see `processor.core.believed_time`.

All of a process goes by the same `now`: arrivals, the records of the log, months of quotas, minutes of rate limits, the
end of a key. A wall clock that jumps ahead for a moment moves none of them.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Final

from processor.core.believed_time import BelievedTime

_UPTIME: Final = time.CLOCK_MONOTONIC if sys.platform == "darwin" else time.CLOCK_BOOTTIME
"""macOS has no clock that counts sleep and cannot be set: after one of more than five minutes a minute is stamped by
the time before it."""

_uptime: Final = partial(time.clock_gettime_ns, _UPTIME)

_MAX_SPREAD: Final = 1_000_000
"""Nanoseconds between which the clocks of one reading are read."""

_ATTEMPTS: Final = 10


class WallClock:
    """The believed time of a process; may be asked from any thread. Costs about a microsecond.

    `wall` and `uptime` give nanoseconds.
    """

    def __init__(self, wall: Callable[[], int] = time.time_ns, uptime: Callable[[], int] = _uptime) -> None:
        self._wall = wall
        self._uptime = uptime
        self._believed = BelievedTime()
        self._lock = Lock()

    def now(self) -> int:
        """The believed time, in microseconds since the epoch."""
        with self._lock:
            before, wall, after = self._uptime(), self._wall(), self._uptime()
            attempts = 1
            while after - before > _MAX_SPREAD and attempts < _ATTEMPTS:
                # This process stood still in between: the two do not belong together.
                before, wall, after = after, self._wall(), self._uptime()
                attempts += 1
            return self._believed.read(wall // 1000, after // 1000)

    def latest(self) -> int:
        """The last instant that it may have been when `now` was last asked for (`BelievedTime.latest`)."""
        return self._believed.latest


_clock: Final = WallClock()

now: Final = _clock.now
"""See `WallClock.now`: of this process."""

latest: Final = _clock.latest
"""See `WallClock.latest`: of this process."""


def running() -> int:
    """For how long this machine has been awake, in microseconds: what is compared is the time between two calls."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
