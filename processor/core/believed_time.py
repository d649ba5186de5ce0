"""The time to believe when the wall clock jumps: a state machine over pairs of readings.

A reading is the wall clock and a clock that is never set (`CLOCK_BOOTTIME`, which counts the time that the machine
slept), both in microseconds. The believed time advances by the second clock; the wall clock is followed while it agrees
with that. Nothing here reads a clock, and every reading gives a time, so that arrivals can always be stamped.
"""

from typing import Final

from processor.core.clock import MINUTE, SECOND

MAX_STEP: Final = 5 * MINUTE
"""A step of the wall clock that is followed at once, in microseconds: more than clocks drift, and than NTP slews."""

PROOF: Final = MINUTE
"""Microseconds for which a wall clock that has jumped ahead must advance evenly before it is followed."""

WOBBLE: Final = SECOND
"""Microseconds by which an even advance may deviate."""


class BelievedTime:
    """The believed time. The first wall time is believed, as a start has nothing to compare it with.

    - A step ahead of up to `MAX_STEP`, and any step back, is followed at once. What was stamped by a clock that ran
      ahead is wrong already; continuing with that time would only add to it.
    - After a larger step ahead the old time continues, until the wall clock has kept its new time for `PROOF`.
    - A wall clock that steps back, and within `PROOF` returns to the time it came from, is followed at once.
    """

    __slots__ = ("_at", "_even_since", "_former", "_former_until", "_jump", "_uptime", "latest")

    def __init__(self) -> None:
        self._at = 0
        self._uptime: int | None = None
        """The uptime of the last reading; `_at` is the believed time then."""
        self._jump: int | None = None
        """Wall clock less uptime, once that is too far ahead."""
        self._even_since = 0
        """The uptime since when that has not changed."""
        self._former: int | None = None
        """Believed time less uptime before the last step back."""
        self._former_until = 0
        """The uptime at which that is forgotten."""
        self.latest = 0
        """The latest instant that it may be at the last reading, if any of the clocks is right: only later instants are
        certainly in the future."""

    def read(self, wall: int, uptime: int) -> int:
        """Apply a reading and return the time to believe. `uptime` never goes back."""
        believed = wall
        if self._uptime is not None:
            believed = self._next(wall, uptime, self._at + max(uptime - self._uptime, 0))
        self._at, self._uptime = believed, uptime
        self.latest = max(wall, believed)
        if self._former is not None:
            self.latest = max(self.latest, self._former + uptime)
        return believed

    def _next(self, wall: int, uptime: int, due: int) -> int:
        """`due` is the time if all is well."""
        if self._former is not None and uptime >= self._former_until:
            self._former = None
        if wall - due <= MAX_STEP:
            self._jump = None
            if due - wall > MAX_STEP and self._former is None:
                self._former, self._former_until = due - uptime, uptime + PROOF
            return wall
        return self._next_ahead(wall, uptime, due)

    def _next_ahead(self, wall: int, uptime: int, due: int) -> int:
        """The same for a wall clock that is too far ahead."""
        if self._former is not None and abs(wall - (self._former + uptime)) <= MAX_STEP:
            self._jump = self._former = None
            return wall
        jump = wall - uptime
        if self._jump is None or abs(jump - self._jump) > WOBBLE:
            self._jump, self._even_since = jump, uptime
        if uptime - self._even_since < PROOF:
            return due
        self._jump = None
        return wall
