from collections.abc import Iterable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import DAY, HOUR, parse_timestamp
from processor.core.events.latency import bucket_of, middle
from processor.core.money import PICO
from processor.core.tables.row_sums import RowSums, Totals
from processor.view.listing import Hour
from processor.view.query import Range
from processor.view.view import SMALL
from server.errors import Refused
from server.reads import costs
from server.reads.costs import Costs, Latency, average_cost, cache_hit_rate, forecast, needed, parse_costs, summarise
from server.tenancy.keys import make_key, new_secret
from tests.support.tables import NOON, Usage
from tests.unit.test_reads import KEY, Rig

THIS_HOUR = NOON // HOUR
MAY = parse_timestamp("2026-05-01T00:00:00Z") // HOUR


async def ask(rig: Rig, **params: str) -> Costs:
    return await rig.reads.get_costs(KEY, params, None)


def models(found: Costs) -> list[tuple[str, str, int, int]]:
    return [(row.provider, row.model, row.totals.requests, row.totals.cost) for row in found.by_model]


async def test_a_project_without_events_is_empty() -> None:
    assert await ask(Rig()) == Costs([], [], [], Totals(), 0, 0, 0)


async def test_latencies_by_model_over_the_range() -> None:
    rig = Rig(partitions=3)
    rig.feed(
        *(Usage(number, latency=bucket_of(100), at=NOON) for number in range(97)),
        *(Usage(100 + number, latency=bucket_of(9000), at=NOON - HOUR, environment="test") for number in range(3)),
        Usage(200, latency=bucket_of(50_000), at=NOON - 31 * DAY),
        Usage(201, model="unmeasured"),
    )
    rig.feed(Usage(300, latency=255), key=make_key(new_secret(), at=0, project="other"))
    slow, fast = middle(bucket_of(9000)), middle(bucket_of(100))
    found = {row.model: row.latency for row in (await ask(rig)).by_model}
    assert found == {"gpt-4o": Latency(fast, fast, slow, 100), "unmeasured": None}
    (noon,) = (await ask(rig, start="2026-04-20T12:00:00Z", end="2026-04-20T13:00:00Z")).by_model[:1]
    assert noon.latency == Latency(fast, fast, fast, 97)


async def test_by_model_and_by_day() -> None:
    rig = Rig(partitions=3)
    rig.feed(
        Usage(1, "u1", model="dear", cost=50, at=NOON),
        Usage(2, "u2", model="dear", cost=40, at=NOON - DAY, error=True, environment="test"),
        Usage(3, None, model="cheap", cost=1, at=NOON, cached_tokens=256),
        Usage(4, "u1", model="cheap", provider="custom", cost=1, at=NOON - DAY, unpriced=True),
        Usage(5, "u1", model="old", cost=700, at=NOON - 31 * DAY),
    )
    rig.feed(Usage(6, "theirs", cost=9), key=make_key(new_secret(), at=0, project="other"))
    found = await ask(rig)
    assert models(found) == [("openai", "dear", 2, 90), ("custom", "cheap", 1, 1), ("openai", "cheap", 1, 1)]
    assert [row.totals.errors for row in found.by_model] == [1, 0, 0]
    assert [(row.day - NOON // DAY, row.totals.cost, row.totals.requests) for row in found.daily] == [
        (-1, 41, 2),
        (0, 51, 2),
    ]
    assert [(row.day - NOON // DAY, row.provider, row.model, row.totals.cost) for row in found.daily_by_model] == [
        (-1, "custom", "cheap", 1),
        (-1, "openai", "dear", 40),
        (0, "openai", "cheap", 1),
        (0, "openai", "dear", 50),
    ]
    assert found.total == Totals(4, 1, 4 * 512, 4 * 128, 256, 92, 1)
    assert cache_hit_rate(found.total) == PICO // 8
    assert found.month_to_date == 92
    assert found.as_of == NOON


async def test_numbers_that_fit_no_column_are_exact() -> None:
    rig = Rig(partitions=2)
    big = 2**53 - 1
    rig.feed(*(Usage(n, "u1", cost=10**18, input_tokens=big, at=NOON) for n in range(40)))
    found = await ask(rig)
    assert (found.total.cost, found.total.input_tokens, found.total.requests) == (40 * 10**18, 40 * big, 40)
    assert found.month_to_date == 40 * 10**18


async def test_many_hours_are_added_up_in_a_thread() -> None:
    rig = Rig()
    rig.feed(*(Usage(n, cost=n, at=NOON - n * HOUR) for n in range(SMALL + 100)))
    found = await ask(rig, start="1970-01-01")
    assert found.total.cost == sum(range(SMALL + 100))
    days = {(THIS_HOUR - n) // 24 for n in range(SMALL + 100)}
    assert [row.day for row in found.daily] == sorted(days)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"start": "2026-04-20T12:00:00Z"}, [3, 4]),
        ({"start": "2026-04-20T13:00:00Z"}, [4]),
        ({"end": "2026-04-20T12:00:00Z"}, [1, 2]),
        ({"start": "2026-04-20", "end": "2026-04-20T14:00:00+01:00"}, [2, 3]),
        ({"start": "2026-04-21", "end": "2026-04-20"}, []),
        ({}, [2, 3, 4]),
    ],
)
async def test_ranges_are_whole_hours(params: dict[str, str], expected: list[int]) -> None:
    rig = Rig()
    for n, at in enumerate((NOON - 720 * HOUR - 1, NOON - HOUR, NOON, NOON + HOUR), 1):
        rig.feed(Usage(n, cost=10**n, at=at))
    found = await ask(rig, **params)
    assert found.total.cost == sum(10**n for n in expected)
    assert found.month_to_date == 10**2 + 10**3, "of the month, up to the current hour, whatever the range"
    assert found.forecast == (await ask(rig)).forecast


async def test_the_month_may_reach_further_back_than_thirty_days() -> None:
    rig = Rig()
    rig.now = parse_timestamp("2026-05-31T23:30:00Z")
    rig.feed(Usage(1, cost=5, at=MAY * HOUR), Usage(2, cost=7, at=MAY * HOUR - 1), arrival=rig.now)
    assert (await ask(rig)).month_to_date == 5


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"start": "2026-04-20T12:30:00Z"}, "start must be a whole hour UTC: a project's costs are kept by the hour"),
        ({"end": "noon"}, "end must be an RFC 3339 time with Z, or a date (YYYY-MM-DD)"),
        ({"model": "m"}, "unknown parameter 'model'; known are start, end, projectId, after"),
    ],
)
async def test_a_wrong_parameter_is_named(params: dict[str, str], message: str) -> None:
    with pytest.raises(Refused) as caught:
        await ask(Rig(), **params)
    assert (caught.value.reason, caught.value.message) == ("bad_request", message)


async def test_another_project_is_forbidden() -> None:
    with pytest.raises(Refused) as caught:
        await ask(Rig(), projectId="other")
    assert caught.value.reason == "forbidden"


# --- the forecast ----------------------------------------------------------------------------------------------------


def by_the_book(past: list[int]) -> Fraction:
    """The line of the least squares, as textbooks have it; the days on which it is negative left out."""
    n = len(past)
    mean_x, mean_y = Fraction(n - 1, 2), Fraction(sum(past), n)
    over = sum(((x - mean_x) ** 2 for x in range(n)), Fraction())
    slope = sum(((x - mean_x) * (y - mean_y) for x, y in enumerate(past)), Fraction()) / over
    return sum((max(Fraction(), mean_y + slope * (x - mean_x)) for x in range(n, n + 30)), Fraction())


@given(st.lists(st.integers(0, 10**18), min_size=costs.STEADY, max_size=30))
def test_the_forecast_is_the_line_of_the_least_squares(past: list[int]) -> None:
    assert forecast(past) == round(by_the_book(past))  # Python rounds fractions half-even


def test_forecasts_one_can_do_in_the_head() -> None:
    assert forecast([]) == 0
    assert forecast([5]) == 150
    assert forecast([0, 100]) == 1500, "two days are no trend"
    assert forecast([7] * 30) == 210
    assert forecast(list(range(30))) == sum(range(30, 60))
    assert forecast(list(range(300, 270, -1))) == sum(range(270, 240, -1))
    assert forecast(list(range(30, 0, -1))) == 0, "spending that ends does not turn into income"
    assert forecast(list(range(45, 15, -1))) == sum(range(1, 16))


def hour(at: int, cost: int) -> Hour:
    return Hour(at, "openai", "m", "e", RowSums(requests=1, cost=cost))


def summed(rows: Iterable[Hour]) -> Costs:
    return summarise(rows, Range(0, 0), NOON, 0)


def test_the_forecast_goes_by_the_last_thirty_times_24_hours() -> None:
    steady = [hour(THIS_HOUR - n, 1) for n in range(720)]
    assert summed(steady).forecast == 720, "a day that has only begun does not bend the line"
    assert summed([*steady, hour(THIS_HOUR - 720, 10**9), hour(THIS_HOUR + 1, 10**9)]).forecast == 720
    young = [hour(THIS_HOUR - n, 1) for n in range(240)]
    assert summed(young).forecast == 720, "the days before a project's first are not days without spending"


@given(
    st.none() | st.integers(THIS_HOUR - 2000, THIS_HOUR + 100),
    st.none() | st.integers(THIS_HOUR - 2000, THIS_HOUR + 100),
    st.lists(st.tuples(st.integers(THIS_HOUR - 2000, THIS_HOUR + 100), st.integers(0, 10**12)), max_size=20),
)
def test_what_is_needed_is_enough(start: int | None, end: int | None, rows: list[tuple[int, int]]) -> None:
    hours = Range(start, end)
    all_hours = [hour(*row) for row in rows]
    enough = [row for row in all_hours if row.hour in needed(hours, NOON)]
    assert summarise(enough, hours, NOON, 0) == summarise(all_hours, hours, NOON, 0)


@given(st.integers(0, 10**18), st.integers(1, 10**6))
def test_averages_are_rounded_half_even(cost: int, requests: int) -> None:
    assert average_cost(Totals(requests=requests, cost=cost)) == round(Fraction(cost, requests))


@given(st.integers(0, 10**18), st.integers(1, 10**18))
def test_no_cache_hit_rate_is_above_1(cached: int, inputs: int) -> None:
    rate = cache_hit_rate(Totals(cached_tokens=cached, input_tokens=inputs))
    assert rate == min(round(Fraction(cached * 10**12, inputs)), 10**12)


def test_averages_of_nothing() -> None:
    assert average_cost(Totals()) == 0
    assert cache_hit_rate(Totals(cached_tokens=5)) == 0


def test_the_default_range() -> None:
    assert parse_costs("p", {}, NOON + 5) == Range(THIS_HOUR - 720, None)
