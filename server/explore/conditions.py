"""The condition that a row has to meet: SQL of fixed pieces, with every value of a question as a parameter.

An empty text is the same as none: a filter has no other way to ask for either, and metrics have one group of both.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

from processor.core.clock import EPOCH, LAST
from processor.core.money import format_cost
from server.explore.questions import TEXT_FILTERS, Filters, Times

MOST_COST: Final = 10**19 - 1
"""The highest amount, in picodollars, that the column of costs can be compared with."""

FIRST: Final = -62_135_596_800_000_000
"""The first instant that a row can have: the year 1."""


class Condition(NamedTuple):
    """What stands behind WHERE, the values of its `?`, and the columns it reads."""

    sql: str
    params: list[Any]
    columns: frozenset[str]

    def __and__(self, other: "Condition") -> "Condition":
        return Condition(f"{self.sql} AND {other.sql}", [*self.params, *other.params], self.columns | other.columns)


def condition(project: str, filters: Filters, times: Times) -> Condition:
    """Return the condition of the rows of `project` that agree to all of `filters` and `times`."""
    found = Condition("project = ?", [project], frozenset({"project"}))
    for each in (*_texts(filters), *_lists(filters), *_bounds(filters)):
        found &= each
    return found & within(times)


def within(times: Times) -> Condition:
    """Return the condition of the rows of a range of time."""
    parts, params = ["true"], []
    if times.start is not None:
        parts.append("timestamp >= ?")
        params.append(instant(times.start))
    if times.end is not None:  # nothing lies behind the last instant that can be written
        parts.append("timestamp <= ?" if times.end > LAST else "timestamp < ?")
        params.append(instant(times.end))
    return Condition(" AND ".join(parts), params, frozenset({"timestamp"} if params else ()))


def is_plain(filters: Filters) -> bool:
    """Return whether nothing but the kind of an event is asked for."""
    return filters == Filters(kinds=filters.kinds)


def instant(micros: int) -> Any:
    """Return a time as the parameter to compare a column with; what no row can have is brought into the years 1 to
    9999."""
    return EPOCH + timedelta(microseconds=min(max(micros, FIRST), LAST))


def _texts(filters: Filters) -> Iterator[Condition]:
    if filters.kinds != "all":
        yield Condition("kind = ?", [filters.kinds], frozenset({"kind"}))
    for name, values in filters.equal.items():
        yield _one_of(_column(name), values)
    for name, values in filters.unequal.items():
        yield _none_of(_column(name), values)


def _column(name: str) -> str:
    if name not in TEXT_FILTERS and name != "event_id":
        raise ValueError(f"not a field to filter by: {name!r}")
    return name


def _one_of(column: str, values: Sequence[str | None]) -> Condition:
    texts = [value for value in values if value is not None]
    parts = [f"{column} IN ({_marks(texts)})"] if texts else []
    if None in values:
        parts.append(f"{column} IS NULL OR {column} = ''")
    return Condition(f"({' OR '.join(parts) or 'false'})", [*texts], frozenset({column}))


def _none_of(column: str, values: Sequence[str | None]) -> Condition:
    texts = [value for value in values if value is not None]
    parts = [f"({column} IS NULL OR {column} NOT IN ({_marks(texts)}))"] if texts else []
    if None in values:
        parts.append(f"{column} <> ''")
    return Condition(f"({' AND '.join(parts) or 'true'})", [*texts], frozenset({column}))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


_HAS_TOOL: Final = "coalesce(list_contains(tools_used, ?), false)"
_NO_TOOL: Final = "(tools_used IS NULL OR len(tools_used) = 0 OR list_contains(tools_used, ''))"
_TAG: Final = "map_extract_value(tags, ?)"


def _lists(filters: Filters) -> Iterator[Condition]:
    for values, form in ((filters.tools, "({})"), (filters.no_tools, "NOT ({})")):
        if values:
            parts = [_NO_TOOL if value is None else _HAS_TOOL for value in values]
            texts = [value for value in values if value is not None]
            yield Condition(form.format(" OR ".join(parts)), [*texts], frozenset({"tools_used"}))
    for key, value in filters.tags:
        yield _tag(key, value, "{}")
    for key, value in filters.no_tags:
        yield _tag(key, value, "NOT {}")


def _tag(key: str, value: str | None, form: str) -> Condition:
    columns = frozenset({"tags"})
    if value is None:
        return Condition(form.format(f"(coalesce({_TAG}, '') = '')"), [key], columns)
    return Condition(form.format(f"coalesce({_TAG} = ?, false)"), [key, value], columns)


def _bounds(filters: Filters) -> Iterator[Condition]:
    for column, sign, cost in (("cost_usd", ">=", filters.min_cost), ("cost_usd", "<=", filters.max_cost)):
        if cost is not None:
            text = format_cost(min(max(cost, -MOST_COST), MOST_COST))
            yield Condition(f"{column} {sign} CAST(? AS DECIMAL(19, 12))", [text], frozenset({column}))
    for sign, latency in ((">=", filters.min_latency), ("<=", filters.max_latency)):
        if latency is not None:
            yield Condition(f"latency_ms {sign} ?", [float(latency)], frozenset({"latency_ms"}))
