"""Which segments are merged next: decided by the live ones alone.

Fresh segments are small and many. `FAN_IN` neighbours of one level become one of the next, so that every row is
written once a level and a partition has at most `FAN_IN` segments of each level but the last. The last level is that of
segments which would become too large, or span too long a time for retention.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from processor.core.clock import DAY
from processor.event_store.manifest import Segment

FAN_IN: Final = 16
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
    """Return the first segments of a run that make a whole one: `fan_in` of them, or as many as the bounds allow.

    What is left over in front, because it does not go together with its neighbour, stays as it is.
    """
    for start in range(len(run) - 1):
        end = start + 1
        while end < len(run) and end - start < fan_in and _fits(run[start : end + 1], bounds):
            end += 1
        is_cut_off = end < len(run)  # the next one would not fit, or there are enough
        if end - start == fan_in or (is_cut_off and end - start > 1):
            return run[start:end]
        if not is_cut_off:
            return ()
    return ()


def _fits(segments: Sequence[Segment], bounds: Bounds) -> bool:
    rows = [each for each in segments if each.rows]
    if not rows:
        return True
    span = max(each.arrival_max for each in rows) - min(each.arrival_min for each in rows)
    return sum(each.rows for each in rows) <= bounds.rows and span <= bounds.span


def are_contiguous(segments: Sequence[Segment]) -> bool:
    """Return whether the segments follow each other without a gap."""
    return all(former.end == latter.start for former, latter in pairwise(segments))
