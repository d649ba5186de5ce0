"""Instants as whole microseconds since the epoch (UTC), and the calendar arithmetic on them.

Nothing here reads a clock: an instant always comes in as an argument.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO = timedelta(microseconds=1)

LAST: Final = (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) - EPOCH) // _MICRO
"""The last instant that can be written."""
_MIN = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // _MICRO

Kind = Literal["minute", "hour", "day", "month"]
KINDS: tuple[Kind, ...] = ("minute", "hour", "day", "month")

_Aware = Annotated[datetime, msgspec.Meta(tz=True)]
_convert = msgspec.convert


def parse_timestamp(text: str) -> int:
    """Read RFC 3339 with `Z` or an offset as microseconds since the epoch; further digits are truncated.

    Raises `ValueError` for any other form. A leap second, `23:59:60` UTC on the last day of June or December (RFC 3339,
    5.7), has no instant of its own: it is the last microsecond before it ends, of `23:59:59`.
    """
    if len(text) == 24 and text[23] == "Z":  # 2026-04-20T10:00:00.000Z
        minute = _minutes.get(text[:17])
        if minute is not None:
            second, milli = _SECONDS.get(text[17:20]), _MILLIS.get(text[20:23])
            if second is not None and milli is not None:
                return minute + second + milli
    micros = _parse(text)
    if len(text) == 24 and text[16] == ":" and text[19] == "." and text[23] == "Z":
        if len(_minutes) >= MAX_MINUTES:
            _minutes.clear()
        _minutes[text[:17]] = micros - micros % MINUTE
    return micros


MAX_MINUTES = 4096
_minutes: dict[str, int] = {}
"""A cache of recent minutes: `2026-04-20T10:00:` -> microseconds. Most events have a time within the last few."""
_started: dict[int, str] = {}
"""The same the other way: minutes since the epoch -> `2026-04-20T10:00`."""
_SECONDS = {f"{second:02d}.": second * SECOND for second in range(60)}
_MILLIS = {f"{milli:03d}": milli * 1000 for milli in range(1000)}


def _parse(text: str) -> int:
    sent = text
    if len(text) > 26:
        text = _cut(text)
    if text[-1:] not in "Zz" and text[-3:-2] != ":":  # the decoder below also takes +0530, which RFC 3339 does not
        raise ValueError("must be an RFC 3339 timestamp with Z or an offset")
    try:
        moment = _convert(text, _Aware)
    except msgspec.ValidationError:
        leap = _LEAP(sent)
        if leap is not None:
            return _leap_second(leap[1] + "59" + leap[2])
        raise ValueError("must be an RFC 3339 timestamp with Z or an offset") from None
    delta = moment - EPOCH
    micros = (delta.days * 86_400 + delta.seconds) * SECOND + delta.microseconds
    if not _MIN <= micros <= LAST:
        raise ValueError("must lie between the years 1 and 9999 in UTC")
    return micros


_LEAP = re.compile(r"(.{10}[Tt ][0-9]{2}:[0-9]{2}:)60(?:\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})").fullmatch


def _leap_second(before: str) -> int:
    """Return the last microsecond of the second `before`, if a leap second can follow it."""
    at = _parse(before)
    moment = EPOCH + timedelta(microseconds=at)
    if at % DAY != DAY - SECOND or (moment.month, moment.day) not in _LEAP_DAYS:
        raise ValueError(
            "must be an RFC 3339 timestamp: a second is 60 only at 23:59:60 UTC on the last day of June or December"
        )
    return at + SECOND - 1


_LEAP_DAYS = {(6, 30), (12, 31)}


def _cut(text: str) -> str:
    """Drop the digits of the fraction after the sixth."""
    end = 20
    while end < len(text) and text[end] in "0123456789":
        end += 1
    return text[:26] + text[end:] if text[19] == "." and end > 26 else text


def format_timestamp(micros: int) -> str:
    """Write an instant as RFC 3339 UTC with `Z`: milliseconds, or microseconds where it has them."""
    minute, within = divmod(micros, MINUTE)
    started = _started.get(minute)
    if started is None:
        moment = EPOCH + timedelta(minutes=minute)
        if len(_started) >= MAX_MINUTES:
            _started.clear()
        started = _started[minute] = moment.replace(tzinfo=None).isoformat(timespec="minutes")
    second, fraction = divmod(within, SECOND)
    if fraction % 1000:
        return f"{started}:{second:02d}.{fraction:06d}Z"
    return f"{started}:{second:02d}.{fraction // 1000:03d}Z"


def format_day(day: int) -> str:
    """Write a day number (days since the epoch) as `YYYY-MM-DD`."""
    return (EPOCH + timedelta(days=day)).strftime("%Y-%m-%d").rjust(10, "0")


def window_start(kind: Kind, at: int) -> int:
    """Start of the tumbling window of `kind` that contains `at`; calendar windows in UTC."""
    if kind == "month":
        return month_start(at)
    size = {"minute": MINUTE, "hour": HOUR, "day": DAY}[kind]
    return at - at % size


def month_start(at: int) -> int:
    """First instant of the UTC calendar month of `at`."""
    moment = EPOCH + timedelta(microseconds=at)
    return (moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0) - EPOCH) // _MICRO


def next_month(at: int) -> int:
    """First instant of the UTC calendar month after that of `at`."""
    return month_start(month_start(at) + 32 * DAY)
