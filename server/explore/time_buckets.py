"""The intervals of a time zone's calendar, and the table of slots by which a statement finds them.

Intervals follow each other without a gap. A day begins at the first instant of its date, so that one has 23, 24 or 25
hours; a week begins with its Monday, a month with its first day. Hours and minutes are those of the zone's clocks:
where they are turned back by an hour, the hour comes twice; where they are set by less, one hour is shorter.

The engine knows no time zones. It takes the slot of an event, `timestamp // size`, and looks up in which interval it
lies. All times are microseconds since the epoch.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo

from msgspec import Struct

from processor.core.clock import DAY, EPOCH, HOUR, LAST, MINUTE, SECOND

Interval = Literal["minute", "hour", "day", "week", "month"]

INTERVALS: Final[tuple[Interval, ...]] = ("minute", "hour", "day", "week", "month")

LONGEST: Final[dict[Interval, int]] = {
    "minute": MINUTE,
    "hour": HOUR,
    "day": 2 * DAY,
    "week": 9 * DAY,
    "month": 33 * DAY,
}
"""No interval of a kind is longer."""

_CLOCK: Final[dict[Interval, int]] = {"minute": MINUTE, "hour": HOUR}
"""Intervals of the clock, with their length; the others are of the calendar."""

_END: Final = LAST + 1
_FIRST: Final = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
_EDGE: Final = 60 * DAY
"""So near the first and the last year that can be written, a zone's offset could lead out of it: all is UTC there."""
_UTC: Final = ZoneInfo("UTC")


class SlotTable(Struct, frozen=True):
    """Parts of slots, each of which lies in one interval: an item each in every list."""

    size: int
    """Microseconds of a slot."""
    numbers: list[int]
    since: list[int]
    until: list[int]
    starts: list[int]
    """Where the interval of each part begins."""

    @property
    def is_plain(self) -> bool:
        """Whether every slot lies in one interval, so that its number says which."""
        return len(set(self.numbers)) == len(self.numbers)


def slot_size(interval: Interval) -> int:
    """Return the microseconds of a slot. Offsets from UTC are multiples of 15 minutes today, so that no interval begins
    inside a slot; past ones were not, and a slot then has parts."""
    return MINUTE if interval == "minute" else 15 * MINUTE


def slot_table(numbers: Iterable[int], interval: Interval, tz: str) -> SlotTable:
    """Return the parts of the slots with these numbers, in ascending order."""
    zone, size = ZoneInfo(tz), slot_size(interval)
    table = SlotTable(size, [], [], [], [])
    start = end = _FIRST - 1
    for number in numbers:
        at, until = number * size, (number + 1) * size
        while at < until:
            if not start <= at < end:
                start = start_of(at, interval, zone)
                end = next_start(start, interval, zone)
            part = end if at < end < until else until
            table.numbers.append(number)
            table.since.append(at)
            table.until.append(part)
            table.starts.append(start)
            at = part
    return table


def coarser(interval: Interval) -> Interval | None:
    """Return the next longer kind of interval, None after the month."""
    place = INTERVALS.index(interval) + 1
    return INTERVALS[place] if place < len(INTERVALS) else None


def start_of(at: int, interval: Interval, zone: ZoneInfo) -> int:
    """Return where the interval begins that `at` lies in."""
    zone = _near(at, zone)
    if interval in _CLOCK:
        return _clock_start(at, _CLOCK[interval], zone)
    first = _first_day(_local(at, zone).date(), interval)
    while True:  # more than once only where clocks were turned back over midnight: that hour is of the new day
        following = _next_day(first, interval)
        if following is None or _beginning(following, zone) > at:
            return _beginning(first, zone)
        first = following


def next_start(start: int, interval: Interval, zone: ZoneInfo) -> int:
    """Return where the interval ends that begins at `start`."""
    zone = _near(start, zone)
    if interval in _CLOCK:
        return _clock_end(start, _CLOCK[interval], zone)
    following: date | None = _first_day(_local(start, zone).date(), interval)
    while following is not None:
        end = _beginning(following, zone)
        if end > start:
            return end
        following = _next_day(following, interval)
    return _END


# --- intervals of the calendar ---------------------------------------------------------------------------------------


def _first_day(day: date, interval: Interval) -> date:
    if interval == "month":
        return day.replace(day=1)
    return day - timedelta(days=day.weekday()) if interval == "week" else day


def _next_day(first: date, interval: Interval) -> date | None:
    """Return the first day of the next interval; None: it cannot be written."""
    try:
        if interval == "month":
            return (first + timedelta(days=32)).replace(day=1)
        return first + timedelta(days=7 if interval == "week" else 1)
    except OverflowError:
        return None


def _beginning(day: date, zone: ZoneInfo) -> int:
    """Return the first instant at which the zone's clocks show midnight of `day` or later."""
    midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - compared with what the clocks show
    found = _instant(midnight.replace(tzinfo=zone))
    if _local(found, zone) == midnight:
        return found
    # Clocks were set forward over midnight: somewhere between the two instants that it would have had.
    return _change(_instant(midnight.replace(tzinfo=zone, fold=1)), found, lambda at: _local(at, zone) >= midnight)


# --- intervals of the clock ------------------------------------------------------------------------------------------


def _clock_start(at: int, length: int, zone: ZoneInfo) -> int:
    offset = _offset(at, zone)
    start = at - (at + offset) % length
    if (_offset(start, zone) - offset) % length == 0:
        return start
    return _change(start, at, lambda moment: _offset(moment, zone) == offset)


def _clock_end(start: int, length: int, zone: ZoneInfo) -> int:
    offset = _offset(start, zone)
    end = start - (start + offset) % length + length
    if (_offset(end - 1, zone) - offset) % length == 0:
        return end
    return _change(start, end, lambda moment: _offset(moment, zone) != offset)


# --- a zone's clocks -------------------------------------------------------------------------------------------------


def _near(at: int, zone: ZoneInfo) -> ZoneInfo:
    return zone if _FIRST + _EDGE <= at <= LAST - _EDGE else _UTC


def _local(at: int, zone: ZoneInfo) -> datetime:
    """Return what the zone's clocks show, without the zone."""
    return (EPOCH + timedelta(microseconds=at)).astimezone(zone).replace(tzinfo=None, fold=0)


def _offset(at: int, zone: ZoneInfo) -> int:
    found = (EPOCH + timedelta(microseconds=at)).astimezone(zone).utcoffset() or timedelta()
    return found // timedelta(microseconds=1)


def _instant(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def _change(before: int, after: int, is_past: Callable[[int], bool]) -> int:
    """Return the first whole second from `before` to `after` at which `is_past`; clocks are set at whole seconds."""
    seconds = range(before // SECOND, after // SECOND + 1)
    return seconds[0] * SECOND + SECOND * bisect_left(seconds, True, key=lambda second: is_past(second * SECOND))
