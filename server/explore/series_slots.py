"""The intervals of a series as a table for the engine: which slots the events may lie in, and where intervals begin."""

from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from processor.core.clock import DAY
from server.errors import Refused
from server.explore import time_buckets
from server.explore.engine import ADVICE, Engine
from server.explore.questions import Interval as Asked
from server.explore.questions import Times
from server.explore.snapshot import Relation
from server.explore.time_buckets import Interval, slot_size, slot_table

MAX_INTERVALS: Final = 2000
"""Of the series of one group."""
MAX_POINTS: Final = 200_000
"""Of all series of an answer."""

FEW: Final = 60_000
"""Slots that are listed without looking which of them have events."""
MOST: Final = 1_000_000
"""Slots that have events; there are 400,000 of 15 minutes in as many days as a project has by default."""

SHIFT: Final = 720_000 * DAY
"""What is added to times before they are divided: the engine rounds towards 0, and there are times before 1970."""


class Slots(Struct, frozen=True):
    """What a statement joins events with to get their intervals, as the column `interval_start` (microseconds)."""

    table: str
    params: list[Any]
    condition: str
    starts: list[int]
    """Where the intervals begin, ascending."""


def slots_of(engine: Engine, relation: Relation, project: str, times: Times, interval: Asked, tz: str) -> Slots | None:
    """Return the intervals of the events of a relation; None: there are no events.

    Raises `Refused`: range_too_wide, query_too_heavy.
    """
    if interval == "none":
        return None
    found = _range(relation, project, times)
    if found is None:
        return None
    size = slot_size(interval)
    first, last = found[0] // size, found[1] // size
    numbers = range(first, last + 1) if last - first < FEW else _with_events(engine, relation, interval)
    return _slots(numbers, interval, tz)


def _range(relation: Relation, project: str, times: Times) -> tuple[int, int] | None:
    """Return the first and the last time that an event may have."""
    sums = [each for segment in relation.segments for each in segment.projects if each.project == project]
    if not sums:
        return None
    first, last = min(each.time_min for each in sums), max(each.time_max for each in sums)
    if times.start is not None:
        first = max(first, times.start)
    if times.end is not None:
        last = min(last, times.end - 1)
    return (first, last) if first <= last else None


def _with_events(engine: Engine, relation: Relation, interval: Interval) -> list[int]:
    size = slot_size(interval)
    most = MAX_POINTS if interval == "minute" else MOST
    rows = engine.rows(
        f"SELECT DISTINCT {_number(size, 'epoch_us(timestamp)')} FROM ({relation.sql}) LIMIT ?",
        [*relation.params, most + 1],
    )
    if len(rows) > most:
        if interval == "minute":
            raise too_many_points(interval, f"{most:,} points in all")
        raise Refused("query_too_heavy", f"The events are spread over too many days; {ADVICE}")
    return sorted(row[0] - SHIFT // size for row in rows)


def _number(size: int, micros: str) -> str:
    return f"({micros} + {SHIFT}) // {size}"


def _slots(numbers: Iterable[int], interval: Interval, tz: str) -> Slots:
    table = slot_table(numbers, interval, tz)
    shift = SHIFT // table.size
    columns = {"number": [number + shift for number in table.numbers], "interval_start": table.starts}
    condition = f"slots.number = {_number(table.size, 'epoch_us(timestamp)')}"
    if not table.is_plain:
        columns |= {"since": table.since, "until": table.until}
        condition += " AND epoch_us(timestamp) >= slots.since AND epoch_us(timestamp) < slots.until"
    lists = ", ".join(f"unnest(?::BIGINT[]) AS {name}" for name in columns)
    return Slots(f"(SELECT {lists}) AS slots", [*columns.values()], condition, sorted({*table.starts}))


def too_many_points(interval: Asked, bound: str) -> Refused:
    """Return the refusal of a series that is too long, which names the next longer interval."""
    longer = None if interval == "none" else time_buckets.coarser(interval)
    advice = "ask for a shorter time (start, end)"
    if longer is not None:
        advice = f"ask for interval={longer}, or {advice.removeprefix('ask ')}"
    details = {"interval": longer} if longer is not None else {}
    return Refused("range_too_wide", f"interval={interval} gives more than {bound}; {advice}", details=details)
