"""Measures: what can be asked about a set of events, each as expressions for the engine and the JSON made of them.

Counts, tokens and costs are exact. Averages, rates and deviations are rounded half-even to 12 places. A measure without
a value (no latency was measured, fewer than two scores for a deviation) is None.

A quantile is the nearest rank: the smallest value that so many percent of the values do not exceed.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

from msgspec import Struct

from processor.core.money import PICO
from server.explore import sums
from server.explore.sums import IS_CALL

Cells = Sequence[Any]
"""What the engine gave for the expressions of a measure."""

WIDEST: Final = 1e150
"""Numbers beyond this count as this in averages and deviations, whose squares would not fit into a double."""

QUANTILES: Final = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}

SCORE: Final = "score:"


class Quantile(NamedTuple):
    """A quantile of a column of the base."""

    column: str
    condition: str | None
    """Which events have a value that counts, besides those where it is null."""
    percent: int

    def sql(self, percents: Sequence[int]) -> str:
        """Return the expression for an exact one, where an answer has those of `percents`, this one among them.

        All of one column have one aggregate, which DuckDB computes once: it would keep the values for each of them.
        """
        where = "" if self.condition is None else f" FILTER ({self.condition})"
        listed = ", ".join(str(percent / 100) for percent in percents)
        return f"(quantile_disc({self.column}, [{listed}]){where})[{percents.index(self.percent) + 1}]"


class Measure(Struct, frozen=True):
    """One measure."""

    name: str
    parts: tuple[str | Quantile, ...]
    """Aggregates of the columns of the base, without a parameter."""
    value: Callable[[Cells], Any]
    """The parts -> what msgspec encodes."""
    order: str = "{0}"
    """The expression that groups are sorted by, with the parts filled in; they are sorted anew by `rank`."""
    rank: Callable[[Cells], Fraction | None] = lambda cells: None if cells[0] is None else Fraction(cells[0])
    """The parts -> the exact value to sort by; None comes last."""
    score: str | None = None
    """The name of the score whose values have to be a column of the base, `score_column` of this one."""


def score_column(number: int) -> str:
    """Return the column of the base that has the values of the score with this number."""
    return f"score_{number}"


def measures(names: Sequence[str]) -> tuple[list[Measure], list[str]]:
    """Return the measures with these names, and the scores that the base has to have as columns.

    Raises `KeyError` for a name that is none: the API has checked them.
    """
    scores = list(
        dict.fromkeys(name.removeprefix(SCORE).rpartition(":")[0] for name in names if name.startswith(SCORE))
    )
    return [_measure(name, scores) for name in names], scores


def _measure(name: str, scores: Sequence[str]) -> Measure:
    plain = _PLAIN.get(name)
    if plain is not None:
        return plain
    if name.startswith(SCORE):
        score, _, statistic = name.removeprefix(SCORE).rpartition(":")
        return _statistic(name, score_column(scores.index(score)), None, statistic)
    field, _, statistic = name.partition(":")
    return _statistic(name, *_FIELDS[field], statistic)


# --- counts and sums -------------------------------------------------------------------------------------------------


def _count(name: str, sql: str) -> Measure:
    return Measure(name, (sql,), lambda cells: sums.count_json(cells[0]))


def _time(name: str, sql: str) -> Measure:
    return Measure(name, (sql,), lambda cells: sums.time_json(cells[0]))


def _ratio(name: str, numerator: str, denominator: str, factor: int = 1, order: str | None = None) -> Measure:
    def rounded(cells: Cells) -> Fraction | None:
        above, below = cells
        if above is None or not below:
            return None
        return Fraction(round(Fraction(above) * factor / Fraction(below) * PICO), PICO)

    def value(cells: Cells) -> Any:
        found = rounded(cells)
        return None if found is None else sums.rounded_json(found)

    order = order or f"round({{0}}::DOUBLE * {factor} / nullif({{1}}, 0), 12)"
    return Measure(name, (numerator, denominator), value, order, rounded)


_SUM: Final = "replace({0}::VARCHAR, '.', '')::HUGEINT"
_MEAN_COST: Final = (
    f"{_SUM} // nullif({{1}}, 0) + CASE WHEN 2 * ({_SUM} % nullif({{1}}, 0)) + {_SUM} // nullif({{1}}, 0) % 2 > {{1}} "
    "THEN 1 ELSE 0 END"
)
"""The mean of costs in picodollars, rounded half-even: as a double it would tell equal groups apart."""


_TOKENS: Final = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")

_TIMED: Final = f"{IS_CALL} AND latency_ms > 0"

_PLAIN: Final = {
    measure.name: measure
    for measure in (
        _count("requests", sums.REQUESTS),
        _count("calls", sums.CALLS),
        _count("errors", sums.ERROR_COUNT),
        _ratio("error_rate", sums.ERROR_COUNT, sums.REQUESTS),
        *(_count(name, sums.tokens(name)) for name in _TOKENS),
        Measure("cost_usd", (sums.COST,), lambda cells: sums.cost_json(cells[0])),
        _count("unpriced", sums.UNPRICED),
        _count("users", "count(DISTINCT user_id)"),
        _count("traces", "count(DISTINCT trace_id)"),
        _count("sessions", "count(DISTINCT session_id)"),
        _time("first_seen", sums.START),
        _time("last_seen", sums.LAST_SEEN),
        _ratio(
            "tokens_per_second",
            f"sum(output_tokens) FILTER ({_TIMED})",
            f"fsum(least(latency_ms, {WIDEST})) FILTER ({_TIMED})",
            1000,
        ),
    )
}


# --- statistics of a column ------------------------------------------------------------------------------------------

_FIELDS: Final = {
    "latency_ms": ("latency_ms", "latency_ms > 0"),
    "ttft_ms": ("ttft_ms", None),
    "cost_usd": ("cost_usd", IS_CALL),
}
"""Field -> its column, and which events have a value that counts."""


def _statistic(name: str, column: str, condition: str | None, statistic: str) -> Measure:
    where = "" if condition is None else f" FILTER ({condition})"
    if statistic == "count":
        return _count(name, f"count({column}){where}")
    if statistic == "avg":
        total = f"sum({column})" if column == "cost_usd" else f"fsum({clamped(column)})"
        order = _MEAN_COST if column == "cost_usd" else None
        return _ratio(name, f"{total}{where}", f"count({column}){where}", order=order)
    if statistic == "sd":
        return Measure(name, (f"stddev_samp({clamped(column)}){where}",), lambda cells: sums.deviation_json(cells[0]))
    return Measure(name, (Quantile(column, condition, QUANTILES[statistic]),), lambda cells: sums.number_json(cells[0]))


def clamped(column: str) -> str:
    """Return a column of numbers, those beyond `WIDEST` as this."""
    number = f"{column}::DOUBLE"  # not least() and greatest(): for them null is no number, but no null either
    return f"CASE WHEN {number} > {WIDEST} THEN {WIDEST} WHEN {number} < -{WIDEST} THEN -{WIDEST} ELSE {number} END"
