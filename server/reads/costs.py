"""The costs of a project: by model, by day, this month so far, and a forecast of the next 30 days.

All is computed from the project's hours, by the events' own time. Sums are exact; quotients (averages, rates and the
forecast) are rounded half-even to 12 places, as intake rounds a cost.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from processor.core.clock import HOUR, month_start
from processor.core.events.latency import percentile
from processor.core.money import PICO
from processor.core.tables.row_sums import Totals
from processor.view.listing import Hour
from processor.view.query import Range
from server.errors import Refused
from server.reads.params import check_names, parse_instant

DAYS: Final = 30
"""Days of the default range, of the past that a forecast is made from, and of the forecast itself."""
HOURS: Final = 24
STEADY: Final = 7
"""Least days of history for a forecast by trend. With fewer a trend is noise, and the forecast is their mean."""


class Latency(Struct):
    """The latency of requests in milliseconds: percentiles of a histogram, less than 5 % off from 1 ms on."""

    p50: float
    p95: float
    p99: float
    measured: int
    """Requests with a latency above 0."""


class ModelCost(Struct):
    """One model over the whole range."""

    provider: str
    model: str
    totals: Totals
    latency: Latency | None = None
    """None if no request was measured."""


class DayCost(Struct):
    """One UTC day (since the epoch) that has events."""

    day: int
    totals: Totals


class ModelDay(Struct):
    """One model's share of one UTC day."""

    day: int
    provider: str
    model: str
    totals: Totals


class Costs(Struct):
    """The answer of the costs read. Costs are in picodollars."""

    by_model: list[ModelCost]
    """The most expensive first."""
    daily: list[DayCost]
    """The oldest first, as in `daily_by_model`."""
    daily_by_model: list[ModelDay]
    total: Totals
    """Of the whole range."""
    month_to_date: int
    """From the start of the UTC month to the end of the current hour, whatever the range."""
    forecast: int
    """The forecast of the next 30 days, whatever the range."""
    as_of: int


def parse_costs(project: str, params: Mapping[str, str], now: int) -> Range:
    """Return the range of the parameters, in hours since the epoch; by default the last 30 days. Raises `Refused`."""
    check_names(params, ("start", "end", "projectId"), project)
    hours = Range(_hour(params, "start"), _hour(params, "end"))
    return Range(now // HOUR - DAYS * HOURS, None) if hours.is_all_time else hours


def _hour(params: Mapping[str, str], name: str) -> int | None:
    if name not in params:
        return None
    hour, rest = divmod(parse_instant(name, params[name]), HOUR)
    if rest:
        raise Refused("bad_request", f"{name} must be a whole hour UTC: a project's costs are kept by the hour")
    return hour


def needed(hours: Range, now: int) -> Range:
    """Return the hours that `summarise` needs: those of the range, of this month, and of the last 30 days."""
    recent = min(month_start(now) // HOUR, now // HOUR - DAYS * HOURS + 1)
    start = None if hours.start is None else min(hours.start, recent)
    end = None if hours.end is None else max(hours.end, now // HOUR + 1)
    return Range(start, end)


def summarise(
    rows: Iterable[Hour],
    hours: Range,
    now: int,
    as_of: int,
    latencies: Mapping[tuple[str, str], Mapping[int, int]] = MappingProxyType({}),
) -> Costs:
    """Sum up the hours of a project, at least those of `needed`. `latencies`: (provider, model) -> bucket -> events."""
    this_hour, month = now // HOUR, month_start(now) // HOUR
    cells: dict[tuple[int, str, str], Totals] = {}
    nothing = Totals()
    recent = [0] * DAYS
    """Costs of the last 24 hours, of the 24 before, ..."""
    oldest = -1
    month_to_date = 0
    for row in rows:
        cost = row.sums.cost
        if month <= row.hour <= this_hour:
            month_to_date += cost
        age = (this_hour - row.hour) // HOURS
        if 0 <= age < DAYS:
            recent[age] += cost
            oldest = max(oldest, age)
        if row.hour in hours:
            key = (row.hour // HOURS, row.provider, row.model)
            cells[key] = cells.get(key, nothing).plus(row.sums)
    days: dict[int, Totals] = {}
    models: dict[tuple[str, str], Totals] = {}
    total = nothing
    for (day, provider, name), cell in cells.items():
        days[day] = days.get(day, nothing).plus(cell)
        models[provider, name] = models.get((provider, name), nothing).plus(cell)
        total = total.plus(cell)
    by_model = [ModelCost(*model, sums, _latency(latencies.get(model))) for model, sums in models.items()]
    return Costs(
        sorted(by_model, key=lambda row: (-row.totals.cost, row.provider, row.model)),
        [DayCost(day, sums) for day, sums in sorted(days.items())],
        [ModelDay(*key, cell) for key, cell in sorted(cells.items())],
        total,
        month_to_date,
        forecast(recent[oldest::-1] if oldest >= 0 else []),
        as_of,
    )


def _latency(counts: Mapping[int, int] | None) -> Latency | None:
    if not counts:
        return None
    p50, p95, p99 = (percentile(counts, percent) for percent in (50, 95, 99))
    return Latency(p50, p95, p99, sum(counts.values()))


def forecast(past: list[int]) -> int:
    """Return the picodollars of the next 30 days if costs continue as a straight line.

    `past` has the cost of each day, oldest first, from the first day with events on. The line is the least-squares fit;
    days on which it is below zero cost nothing. With fewer than `STEADY` days it is flat, at their mean.
    """
    n = len(past)
    if not n:
        return 0
    total = sum(past)
    if n < STEADY:
        return _ratio(DAYS * total, n)
    # With days counted in halves from the middle of the past, all terms are integers over one denominator:
    # day x, at 2x - (n - 1), costs total / n + slope * at, and slope = 3 * moment / (n * (n * n - 1)).
    moment = sum((2 * day - (n - 1)) * cost for day, cost in enumerate(past))
    denominator = n * (n * n - 1)
    ahead = (total * (n * n - 1) + 3 * moment * (2 * day - (n - 1)) for day in range(n, n + DAYS))
    return _ratio(sum(max(0, cost) for cost in ahead), denominator)


def average_cost(totals: Totals) -> int:
    """Return the picodollars per request; 0 without requests."""
    return _ratio(totals.cost, totals.requests)


def cache_hit_rate(totals: Totals) -> int:
    """Return cached tokens per input token, in units of 10^-12; 0 without input tokens. It is at most 1: a client that
    counts cached tokens apart may report more of them than input tokens."""
    return min(_ratio(totals.cached_tokens * PICO, totals.input_tokens), PICO)


def _ratio(numerator: int, denominator: int) -> int:
    """Return the quotient in units of 10^-12, rounded half-even; 0 for 0 / 0."""
    if not denominator:
        return 0
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole & 1))
