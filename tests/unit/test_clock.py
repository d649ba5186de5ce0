from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import (
    DAY,
    EPOCH,
    HOUR,
    MINUTE,
    format_day,
    format_timestamp,
    month_start,
    next_month,
    parse_timestamp,
    window_start,
)


def micros(*parts: int) -> int:
    delta = datetime(*parts, tzinfo=UTC) - EPOCH  # type: ignore[arg-type, misc]
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-04-20T10:00:00Z", micros(2026, 4, 20, 10)),
        ("2026-04-20t10:00:00z", micros(2026, 4, 20, 10)),
        ("2026-04-20T10:00:00.5Z", micros(2026, 4, 20, 10, 0, 0, 500_000)),
        ("2026-04-20T10:00:00.1234569Z", micros(2026, 4, 20, 10, 0, 0, 123_456)),  # cut, not rounded
        ("2026-04-20T10:00:00.99999999999+05:30", micros(2026, 4, 20, 4, 30, 0, 999_999)),
        ("2026-04-20T10:00:00-00:00", micros(2026, 4, 20, 10)),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2016-12-31T23:59:60Z", micros(2016, 12, 31, 23, 59, 59, 999_999)),  # a leap second
        ("2015-06-30t23:59:60.123456789z", micros(2015, 6, 30, 23, 59, 59, 999_999)),
        ("2016-12-31T23:59:60.000Z", micros(2016, 12, 31, 23, 59, 59, 999_999)),
        ("1990-12-31T15:59:60-08:00", micros(1990, 12, 31, 23, 59, 59, 999_999)),
        ("2017-01-01T05:29:60+05:30", micros(2016, 12, 31, 23, 59, 59, 999_999)),
        ("9999-12-31T23:59:60Z", micros(9999, 12, 31, 23, 59, 59, 999_999)),
        ("0001-01-01T00:00:00Z", micros(1, 1, 1)),
        ("9999-12-31T23:59:59.999999Z", micros(9999, 12, 31, 23, 59, 59, 999_999)),
    ],
)
def test_reads_rfc_3339(text: str, at: int) -> None:
    assert parse_timestamp(text) == at


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-04-20",
        "2026-04-20T10:00:00",
        "2026-04-20T10:00Z",
        "2026-04-20T10:00:00+0530",
        "2026-04-20T10:00:00+24:00",
        "2026-04-20T24:00:00Z",
        "2026-02-30T10:00:00Z",
        "2026-04-20T10:00:00.Z",
        "2026-04-20T10:00:00,5Z",
        "2026-04-20T10:00:60Z",
        "2026-04-30T23:59:60Z",  # a leap second, but not where there can be one
        "2016-12-31T22:59:60Z",
        "2016-12-31T23:58:60Z",
        "2016-12-31T23:59:61Z",
        "2016-12-31T23:59:60-08:00",
        "2016-12-31T23:59:60",
        "2016-12-31T23:59:60.Z",
        "2016-12-32T23:59:60Z",
        "20260420T100000Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-00:01",
        "1713607200",
        "x" * 40,
        "2026-04-20T10:00:00.123456789",
    ],
)
def test_refuses_anything_else(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_timestamp(text)


@given(st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_what_is_written_is_read_back(moment: datetime) -> None:
    at = parse_timestamp(moment.isoformat())
    assert parse_timestamp(format_timestamp(at)) == at


def test_writes_milliseconds_unless_there_is_more() -> None:
    assert format_timestamp(micros(2026, 4, 20, 10)) == "2026-04-20T10:00:00.000Z"
    assert format_timestamp(micros(2026, 4, 20, 10, 0, 0, 1)) == "2026-04-20T10:00:00.000001Z"
    assert format_day(micros(2026, 4, 20) // DAY) == "2026-04-20"
    assert format_day(micros(1, 1, 1) // DAY) == "0001-01-01"


def test_windows_tumble_by_the_calendar() -> None:
    at = micros(2024, 2, 29, 23, 59, 59, 999_999)
    assert window_start("minute", at) == micros(2024, 2, 29, 23, 59)
    assert window_start("hour", at) == micros(2024, 2, 29, 23)
    assert window_start("day", at) == micros(2024, 2, 29)
    assert window_start("month", at) == month_start(at) == micros(2024, 2, 1)
    assert next_month(at) == micros(2024, 3, 1)
    assert next_month(micros(2026, 12, 31)) == micros(2027, 1, 1)


@given(st.integers(min_value=-(10**16), max_value=10**17))
def test_a_window_contains_its_instant(at: int) -> None:
    for kind, size in (("minute", MINUTE), ("hour", HOUR), ("day", DAY)):
        start = window_start(kind, at)  # type: ignore[arg-type]
        assert start <= at < start + size
    assert month_start(at) <= at < next_month(at)
