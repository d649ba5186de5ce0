"""Intervals of time zones: what the zone's clocks and calendar show, against a walk in small steps."""

from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import DAY, EPOCH, HOUR, LAST, MINUTE, SECOND
from server.explore.time_buckets import (
    INTERVALS,
    LONGEST,
    Interval,
    coarser,
    next_start,
    slot_size,
    slot_table,
    start_of,
)

ZONES: Final = (
    "UTC",
    "America/New_York",
    "Europe/Berlin",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Pacific/Chatham",
    "Australia/Lord_Howe",  # clocks are set by half an hour
    "America/Sao_Paulo",  # they were set at midnight
    "America/St_Johns",  # and here at a minute past midnight
    "Pacific/Apia",  # without a 30 December 2011
    "Africa/Monrovia",  # 44 min 30 s behind UTC until 1972
    "America/Toronto",  # set from 23:30 to 00:30 in 1919
)

zones = st.sampled_from(ZONES)
intervals = st.sampled_from(INTERVALS)
instants = st.integers(-70 * 365 * DAY, 80 * 365 * DAY)
calendar = st.sampled_from([each for each in INTERVALS if each not in {"minute", "hour"}])


def at(text: str) -> int:
    """Microseconds of an instant."""
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


def local(instant: int, zone: ZoneInfo) -> datetime:
    """What the clocks show."""
    return (EPOCH + timedelta(microseconds=instant)).astimezone(zone).replace(tzinfo=None, fold=0)


def text(instant: int) -> str:
    """The instant in UTC."""
    return (EPOCH + timedelta(microseconds=instant)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@given(instants, intervals, zones)
def test_intervals_follow_each_other_without_a_gap(instant: int, interval: Interval, tz: str) -> None:
    zone = ZoneInfo(tz)
    start = start_of(instant, interval, zone)
    end = next_start(start, interval, zone)
    assert start <= instant < end
    assert 0 < end - start <= LONGEST[interval]
    for inside in (start, (start + end) // 2, end - 1):
        assert start_of(inside, interval, zone) == start
    assert start_of(end, interval, zone) == end
    assert start_of(start - 1, interval, zone) < start


@given(instants, calendar, zones)
def test_a_day_is_what_the_calendar_says(instant: int, interval: Interval, tz: str) -> None:
    zone = ZoneInfo(tz)
    start = start_of(instant, interval, zone)
    day, first = local(instant, zone).date(), local(start, zone)
    if tz == "America/St_Johns" and 1986 < day.year < 2012:
        return  # the hour after midnight was turned back belongs to the new day: see below
    begins = {"day": day, "week": day - timedelta(days=day.weekday()), "month": day.replace(day=1)}[interval]
    assert first.date() == begins or (first.date() > begins and local(start - 1, zone).date() < begins)
    assert local(start - 1, zone).date() < begins


@given(instants, zones)
def test_hours_begin_where_the_clocks_show_them(instant: int, tz: str) -> None:
    zone = ZoneInfo(tz)
    start = start_of(instant, "hour", zone)
    before, shown = local(start - SECOND, zone), local(start, zone)
    was_set = shown - before != timedelta(seconds=1)
    assert was_set or (shown.minute, shown.second, shown.microsecond) == (0, 0, 0)


@given(st.lists(st.integers(-2_000_000, 2_000_000), max_size=20), intervals, zones)
def test_slots_lead_to_the_intervals(numbers: list[int], interval: Interval, tz: str) -> None:
    zone, size = ZoneInfo(tz), slot_size(interval)
    table = slot_table(sorted(set(numbers)), interval, tz)
    covered = [0] * len(numbers)
    for number, since, until, start in zip(table.numbers, table.since, table.until, table.starts, strict=True):
        assert number * size <= since < until <= (number + 1) * size
        assert start_of(since, interval, zone) == start_of(until - 1, interval, zone) == start
        covered[numbers.index(number)] += until - since
    assert sum(covered) == size * len(set(numbers))


@pytest.mark.parametrize("tz", ZONES)
@pytest.mark.parametrize("interval", INTERVALS)
def test_all_slots_of_a_present_month_are_plain(interval: Interval, tz: str) -> None:
    first = at("2026-10-10T00:00:00+00:00") // slot_size(interval)
    table = slot_table(range(first, first + 30 * 96), interval, tz)
    assert table.is_plain
    assert len(table.numbers) == 30 * 96


def test_days_of_23_and_25_hours() -> None:
    zone = ZoneInfo("America/New_York")
    spring = start_of(at("2026-03-08T12:00:00+00:00"), "day", zone)
    autumn = start_of(at("2026-11-01T12:00:00+00:00"), "day", zone)
    assert (text(spring), next_start(spring, "day", zone) - spring) == ("2026-03-08T05:00:00Z", 23 * HOUR)
    assert (text(autumn), next_start(autumn, "day", zone) - autumn) == ("2026-11-01T04:00:00Z", 25 * HOUR)


def test_an_hour_comes_twice_where_clocks_are_turned_back() -> None:
    zone = ZoneInfo("America/New_York")
    for moment in ("2026-11-01T05:30:00+00:00", "2026-11-01T06:30:00+00:00"):
        assert start_of(at(moment), "hour", zone) == at(moment) - 30 * MINUTE


def test_the_last_microsecond_of_a_day_is_in_it() -> None:
    zone = ZoneInfo("Asia/Kolkata")
    midnight = at("2026-04-20T18:30:00+00:00")
    assert start_of(midnight - 1, "day", zone) == midnight - DAY
    assert start_of(midnight, "day", zone) == midnight


def test_weeks_begin_on_monday() -> None:
    zone = ZoneInfo("Europe/Berlin")
    assert text(start_of(at("2026-11-29T12:00:00+00:00"), "week", zone)) == "2026-11-22T23:00:00Z"
    assert text(start_of(at("2026-10-25T12:00:00+00:00"), "week", zone)) == "2026-10-18T22:00:00Z"


def test_months_of_a_zone() -> None:
    zone = ZoneInfo("Pacific/Chatham")
    start = start_of(at("2026-04-15T00:00:00+00:00"), "month", zone)
    assert text(start) == "2026-03-31T10:15:00Z"
    assert text(next_start(start, "month", zone)) == "2026-04-30T11:15:00Z"


def test_a_day_that_begins_at_one_o_clock() -> None:
    zone = ZoneInfo("America/Sao_Paulo")
    assert text(start_of(at("2018-11-04T12:00:00+00:00"), "day", zone)) == "2018-11-04T03:00:00Z"


def test_a_day_that_there_was_not() -> None:
    zone = ZoneInfo("Pacific/Apia")
    start = start_of(at("2011-12-30T00:00:00+00:00"), "day", zone)
    assert local(start, zone).date().isoformat() == "2011-12-29"
    assert local(next_start(start, "day", zone), zone).date().isoformat() == "2011-12-31"


def test_an_hour_that_is_turned_back_over_midnight_is_of_the_new_day() -> None:
    zone = ZoneInfo("America/St_Johns")
    start = start_of(at("2010-11-07T02:45:00+00:00"), "day", zone)
    assert text(start) == "2010-11-07T02:30:00Z"
    assert next_start(start, "day", zone) - start == 25 * HOUR


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("tz", ZONES)
@pytest.mark.parametrize("instant", [at("0001-01-01T00:00:00+00:00"), LAST])
def test_the_first_and_the_last_year(instant: int, tz: str, interval: Interval) -> None:
    start = start_of(instant, interval, ZoneInfo(tz))
    assert start <= instant < next_start(start, interval, ZoneInfo(tz))
    assert set(slot_table([instant // slot_size(interval)], interval, tz).starts) <= {start}


def test_the_next_coarser_interval() -> None:
    assert [coarser(each) for each in INTERVALS] == ["hour", "day", "week", "month", None]
