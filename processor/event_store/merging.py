"""Which segments are merged next: decided by the live ones alone.

Fresh segments are small and many. `FAN_IN` neighbours of one level become one of the next, so that every row is
written once a level. Neighbours that are large by then wait for more of each other, `WIDE_FAN_IN` at most, and become
as large as a segment may be in one step: at 50,000 events a second every row is written twice instead of three times.
So a partition has less than `WIDE_FAN_IN` segments of one level, less than `FAN_IN` of those below it, and those which
would become too large, or span too long a time for retention.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from processor.core.clock import DAY
from processor.event_store.manifest import Segment

FAN_IN: Final = 8
WIDE_FAN_IN: Final = 5 * FAN_IN
LARGE: Final = 16
"""The part of the most rows from which on `FAN_IN` segments together are large."""

MAX_ROWS: Final = 2_000_000
"""Rows of one segment."""

MAX_SPAN: Final = 30 * DAY
"""Microseconds between the first and the last arrival of a segment."""

MAX_SPAN_RETAINED: Final = DAY
"""The same where retention is on: a segment goes as a whole, so it may keep an event a day too long."""


class Bounds(NamedTuple):
    """What a merged segment may be at most."""

    rows: int = MAX_ROWS
    span: int = MAX_SPAN


USUAL: Final = Bounds()


def choose(live: Sequence[Segment], bounds: Bounds = USUAL, fan_in: int = FAN_IN) -> Sequence[Segment]:
    """Return neighbours, two at least, of a partition's live segments that should become one; empty: there are none.

    The lowest level comes first: small segments are what makes questions slow.
    """
    for level in sorted({each.level for each in live}):
        for run in _runs(live, level):
            chosen = _prefix(run, bounds, fan_in)
            if chosen:
                return chosen
    return ()


def _runs(live: Sequence[Segment], level: int) -> list[list[Segment]]:
    """Return the longest runs of neighbours of a level, two at least, in their order."""
    runs: list[list[Segment]] = [[]]
    for each in live:
        if each.level == level and not each.is_absent:
            runs[-1].append(each)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if len(run) > 1]


def _prefix(run: Sequence[Segment], bounds: Bounds, fan_in: int) -> Sequence[Segment]:
    """Return the first segments of a run that make a whole one: enough of them, or as many as the bounds allow.

    What is left over in front, because it does not go together with its neighbour, stays as it is.
    """
    for start in range(len(run) - 1):
        end = start + 1
        while not (is_enough := _is_enough(run[start:end], bounds, fan_in)) and end < len(run):
            if not _fits(run[start : end + 1], bounds):
                break
            end += 1
        is_cut_off = end < len(run)  # the next one would not fit
        if is_enough or (is_cut_off and end - start > 1):
            return run[start:end]
        if not is_cut_off:
            return ()
    return ()


def _is_enough(segments: Sequence[Segment], bounds: Bounds, fan_in: int) -> bool:
    if len(segments) == fan_in:
        return sum(each.rows for each in segments) * LARGE <= bounds.rows
    return len(segments) >= fan_in * WIDE_FAN_IN // FAN_IN


def _fits(segments: Sequence[Segment], bounds: Bounds) -> bool:
    rows = [each for each in segments if each.rows]
    if not rows:
        return True
    span = max(each.arrival_max for each in rows) - min(each.arrival_min for each in rows)
    return sum(each.rows for each in rows) <= bounds.rows and span <= bounds.span
