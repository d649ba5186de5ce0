"""How far a round of retention may go: no wrong clock can make it delete more than a few days of arrivals at a time.

The target is the horizon (`processor.core.tables.horizon`) less the retention. Rounds approach it in steps from where
the last one ended: at most four days of arrivals in a day of running time, and three days in a round. Events that were
past their time when retention first ran with its present setting are not limited by the running time: a log with years
of events gets there in as many rounds as it has steps. A log that has had retention from the beginning has none.
"""

from typing import Final

from msgspec import Struct

from processor.core.clock import DAY

STEP: Final = 3 * DAY
"""Arrivals that go in one round at most, in microseconds."""

PACE: Final = 4
"""How many times faster than time passes arrivals may go."""


class Retained(Struct, frozen=True):
    """How far the last round went, and when. All in microseconds."""

    before: int
    """What was written to the log before this instant may have been deleted."""
    running: int
    """The running time at which that was."""
    kept_for: int
    """The retention that was asked for."""
    first: int
    """How far the first look with it wanted to go."""

    @classmethod
    def of(cls, numbers: list[int]) -> "Retained":
        """From `value`. Raises `ValueError` for numbers of another format."""
        before, running, kept_for, first = numbers
        return cls(before, running, kept_for, first)

    def value(self) -> list[int]:
        """As it is kept."""
        return [self.before, self.running, self.kept_for, self.first]


def begin(last: Retained | None, oldest: int, horizon: int, running: int, kept_for: int) -> Retained:
    """What a look goes by if the retention is `kept_for`: `last`, unless that was of another one or there is none.

    The oldest message is of `oldest`; `running` is the running time of the partition.
    """
    if last is not None and last.kept_for == kept_for:
        return last
    wanted = horizon - kept_for
    return Retained(min(oldest, wanted) if last is None else last.before, running, kept_for, wanted)


def advance(last: Retained, oldest: int, horizon: int, running: int) -> Retained:
    """How far a round may go, after `last`."""
    start = max(last.before, oldest)  # where nothing is, nothing goes
    step = STEP if start < last.first else min(STEP, PACE * max(running - last.running, 0))
    before = max(last.before, min(horizon - last.kept_for, start + step))
    return Retained(before, running, last.kept_for, last.first)
