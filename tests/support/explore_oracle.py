"""What the aggregated answers have to say of some rows, in plain Python: slow, and with nothing of the engine."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from fractions import Fraction
from math import ceil
from typing import Any, Final
from zoneinfo import ZoneInfo

from processor.core.clock import EPOCH, format_timestamp, parse_timestamp
from server.explore.questions import Filters, MetricsQuestion, Times
from server.explore.time_buckets import start_of
from tests.support.event_store import Row

ERRORS: Final = {"error", "timeout", "rate_limited"}

Values = dict[str, Any]
"""Names -> exact numbers: int, Fraction or float; texts; None."""


def matches(row: Row, project: str, filters: Filters, times: Times) -> bool:
    """Return whether a row agrees to filters of text, tools, tags and times."""
    tools, tags = row["tools_used"] or [], row["tags"] or {}
    return (
        row["project"] == project
        and filters.kinds in {"all", row["kind"]}
        and all(row[name] in values for name, values in filters.equal.items())
        and all(row[name] not in values for name, values in filters.unequal.items())
        and (not filters.tools or any(tool in tools for tool in filters.tools))
        and all((tags.get(key) or None) == value for key, value in filters.tags)
        and not any((tags.get(key) or None) == value for key, value in filters.no_tags)
        and (times.start is None or row["timestamp"] >= times.start)
        and (times.end is None or row["timestamp"] < times.end)
    )


def by_start(row: Row) -> tuple[int, ...]:
    """The order of events by start, then by arrival."""
    return (row["timestamp"], *arrival(row))


def arrival(row: Row) -> tuple[int, ...]:
    """The order of arrival."""
    return (row["received_at"], row["log_partition"], row["log_offset"], row["log_index"])


# --- measures --------------------------------------------------------------------------------------------------------


def rounded(value: Fraction | None) -> Fraction | None:
    """Half-even to 12 places."""
    return None if value is None else Fraction(round(value * 10**12), 10**12)


def mean(values: Sequence[Any]) -> Fraction | None:
    """Exactly, then rounded."""
    return rounded(sum(map(Fraction, values), Fraction(0)) / len(values)) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Of a sample."""
    return statistics.stdev(values) if len(values) > 1 else None


def quantile(values: Sequence[float], percent: int) -> float | None:
    """The nearest rank."""
    return sorted(values)[max(ceil(Fraction(len(values) * percent, 100)), 1) - 1] if values else None


def measure(rows: Sequence[Row], name: str) -> Any:
    """Return one measure of some rows; costs in dollars, times as text."""
    calls = [row for row in rows if row["kind"] == "call"]
    plain: dict[str, Callable[[], Any]] = {
        "requests": lambda: len(rows),
        "errors": lambda: sum(row["status"] in ERRORS for row in rows),
        "error_rate": lambda: mean([int(row["status"] in ERRORS) for row in rows]),
        "cost_usd": lambda: Fraction(sum(row["cost_usd"] or 0 for row in calls), 10**12),
        "unpriced": lambda: sum(row["cost_usd"] is None for row in calls),
        "users": lambda: len({row["user_id"] for row in rows} - {None}),
        "traces": lambda: len({row["trace_id"] for row in rows}),
        "sessions": lambda: len({row["session_id"] for row in rows} - {None}),
        "first_seen": lambda: format_timestamp(min(row["timestamp"] for row in rows)) if rows else None,
        "last_seen": lambda: format_timestamp(max(row["timestamp"] for row in rows)) if rows else None,
        "tokens_per_second": lambda: _speed([row for row in calls if row["latency_ms"] > 0]),
    }
    if name in plain:
        return plain[name]()
    if name.endswith("_tokens"):
        return sum(row[name] or 0 for row in calls)
    field, _, statistic = name.rpartition(":")
    return _statistic(_column(rows, calls, field), statistic)


def _speed(timed: Sequence[Row]) -> Fraction | None:
    if not timed:
        return None
    tokens = sum(row["output_tokens"] or 0 for row in timed)
    return rounded(Fraction(tokens * 1000) / sum((Fraction(row["latency_ms"]) for row in timed), Fraction(0)))


def _column(rows: Sequence[Row], calls: Sequence[Row], field: str) -> list[Any]:
    if field == "latency_ms":
        return [row[field] for row in rows if row[field] > 0]
    if field == "ttft_ms":
        return [row[field] for row in rows if row[field] is not None]
    if field == "cost_usd":
        return [Fraction(row[field], 10**12) for row in calls if row[field] is not None]
    score = field.removeprefix("score:")
    return [row["eval_scores"][score] for row in rows if score in (row["eval_scores"] or {})]


def _statistic(values: Sequence[Any], statistic: str) -> Any:
    if statistic == "count":
        return len(values)
    if statistic == "avg":
        return mean(values)
    if statistic == "sd":
        return deviation([float(value) for value in values])
    return quantile(values, int(statistic.removeprefix("p")))


# --- metrics ---------------------------------------------------------------------------------------------------------


def keys_of(row: Row, fields: Sequence[str]) -> list[tuple[str | None, ...]]:
    """Return the groups that an event is in."""
    found: list[tuple[str | None, ...]] = [()]
    for field in fields:
        if field == "tool":
            values: Sequence[str | None] = sorted(set(row["tools_used"] or [])) or [None]
        elif field.startswith("tag:"):
            values = [(row["tags"] or {}).get(field.removeprefix("tag:")) or None]
        else:
            values = [row[field]]
        found = [(*key, value) for key in found for value in values]
    return found


def metrics(rows: Iterable[Row], question: MetricsQuestion) -> Values:
    """Return the answer, without what every answer says."""
    matching = [row for row in rows if matches(row, question.project, question.filters, question.times)]
    groups: dict[tuple[str | None, ...], list[Row]] = {}
    for row in matching:
        for key in keys_of(row, question.group_by):
            groups.setdefault(key, []).append(row)
    sort = question.sort or question.measures[0]

    def rank(key: tuple[str | None, ...]) -> Any:
        value = measure(groups[key], sort)
        return value is None, -number(value or 0), [(part is None, part or "") for part in key]

    ranked = sorted(groups, key=rank)
    shown, hidden = ranked[: question.limit], set(ranked[question.limit :])
    others = [row for row in matching if hidden.intersection(keys_of(row, question.group_by))]
    return {
        "groups": [
            {
                "key": dict(zip(question.group_by, key, strict=True)),
                "values": values_of(groups[key], question.measures),
                "series": _series(groups[key], question),
            }
            for key in shown
        ],
        "other": values_of(others, question.measures) if hidden else None,
        "total": {
            **values_of(matching, question.measures),
            **({} if question.interval == "none" else {"series": _series(matching, question)}),
        },
        "multi": ["tool"] if "tool" in question.group_by else [],
    }


def values_of(rows: Sequence[Row], names: Sequence[str]) -> Values:
    """Return several measures."""
    return {name: measure(rows, name) for name in names}


def _series(rows: Sequence[Row], question: MetricsQuestion) -> list[Values]:
    if question.interval == "none":
        return []
    zone = ZoneInfo(question.tz)
    points: dict[int, list[Row]] = {}
    for row in rows:
        points.setdefault(start_of(row["timestamp"], question.interval, zone), []).append(row)
    return [
        {"start": format_timestamp(start), **values_of(points[start], question.measures)} for start in sorted(points)
    ]


def instant(micros: int) -> Any:
    """Return a time as a datetime."""
    return EPOCH + timedelta(microseconds=micros)


# --- traces and sessions ---------------------------------------------------------------------------------------------


def first_value(rows: Iterable[Row], field: str) -> Any:
    """Return the first value that is not None, by start."""
    return next((row[field] for row in sorted(rows, key=by_start) if row[field] is not None), None)


def sums_of(rows: Sequence[Row]) -> Values:
    """Return what summaries of traces and of sessions have in common."""
    calls = [row for row in rows if row["kind"] == "call"]
    start, end = min(row["timestamp"] for row in rows), max(map(_end, rows))
    found: Values = {
        "start": format_timestamp(start),
        "end": format_timestamp(int(end)),
        "duration_ms": (end - start) / 1000,
        "calls": len(calls),
        "errors": sum(row["status"] in ERRORS for row in rows),
        "cost_usd": Fraction(sum(row["cost_usd"] or 0 for row in calls), 10**12),
        "user_id": first_value(rows, "user_id"),
        "models": sorted({row["model"] for row in calls}),
    }
    found |= {
        f"{kind}_tokens": sum(row[f"{kind}_tokens"] or 0 for row in calls) for kind in ("input", "output", "cached")
    }
    return found


def _end(row: Row) -> Fraction:
    return Fraction(row["timestamp"]) + Fraction(row["latency_ms"]) * 1000


def trace(rows: Sequence[Row]) -> Values:
    """Return the summary of a trace."""
    ids = {row["span_id"] for row in rows}
    roots = [row for row in rows if not row["parent_span_id"]]
    orphans = [row for row in rows if row["parent_span_id"] and row["parent_span_id"] not in ids]
    first = min(roots or orphans or rows, key=by_start)
    return {
        **sums_of(rows),
        "trace_id": rows[0]["trace_id"],
        "name": first["name"],
        "environment": first["environment"],
        "spans": len(rows),
        "session_id": first_value(rows, "session_id"),
        "complete": bool(roots),
    }


def by_field(rows: Iterable[Row], field: str, project: str) -> dict[Any, list[Row]]:
    """Return the rows of a project by the value of a field."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        if row["project"] == project:
            found.setdefault(row[field], []).append(row)
    return found


def traces(rows: Sequence[Row], project: str, filters: Filters, times: Times, sort: str) -> list[Values]:
    """Return the summaries of the traces with a matching event."""
    found = [
        trace(members)
        for members in by_field(rows, "trace_id", project).values()
        if any(matches(row, project, filters, times) for row in members)
    ]
    return ranked(found, sort, "trace_id")


def ranked(found: Sequence[Values], sort: str, name: str) -> list[Values]:
    """Sort summaries by a value, descending, then by id."""
    ordered = sorted(found, key=lambda each: each[name])
    return sorted(ordered, key=lambda each: number(each[sort]), reverse=True)


def number(value: Any) -> Any:
    """Return a value, a time as microseconds: texts of times do not sort."""
    return parse_timestamp(value) if isinstance(value, str) else value


def sessions_of(rows: Iterable[Row], project: str) -> dict[str, list[Row]]:
    """Return the events of each session."""
    found: dict[str, list[Row]] = {}
    for members in by_field(rows, "trace_id", project).values():
        of_trace = first_value(members, "session_id")
        for row in members:
            session = row["session_id"] or of_trace
            if session is not None:
                found.setdefault(session, []).append(row)
    return found


def session(session_id: str, rows: Sequence[Row]) -> Values:
    """Return the summary of a session."""
    found = sums_of(rows)
    del found["duration_ms"], found["cached_tokens"]
    return {**found, "session_id": session_id, "traces": len({row["trace_id"] for row in rows})}


def sessions(rows: Sequence[Row], project: str, filters: Filters, times: Times, sort: str) -> list[Values]:
    """Return the summaries of the sessions with a matching event."""
    found = [
        session(session_id, members)
        for session_id, members in sessions_of(rows, project).items()
        if any(matches(row, project, filters, times) for row in members)
    ]
    return ranked(found, sort, "session_id")


# --- prompts ---------------------------------------------------------------------------------------------------------


def prompts(rows: Iterable[Row], project: str, filters: Filters, times: Times, sort: str) -> list[Values]:
    """Return the versions of prompts."""
    versions: dict[str, list[Row]] = {}
    for row in rows:
        if matches(row, project, filters, times) and row["prompt_hash"] is not None:
            versions.setdefault(row["prompt_hash"], []).append(row)
    return ranked([_version(key, members) for key, members in versions.items()], sort, "prompt_hash")


def _version(prompt_hash: str, rows: Sequence[Row]) -> Values:
    plain = ("first_seen", "last_seen", "requests", "errors", "error_rate", "cost_usd", "unpriced")
    calls = [row for row in rows if row["kind"] == "call"]
    means = ("input_tokens", "output_tokens", "cached_tokens")
    scores = sorted({name for row in rows for name in row["eval_scores"] or {}})
    return {
        "prompt_hash": prompt_hash,
        **values_of(rows, plain),
        **{f"avg_{name}": mean([row[name] or 0 for row in calls]) for name in means},
        "latency_ms": _compared(rows, "latency_ms", 50, 90, 95, 99),
        "ttft_ms": _compared(rows, "ttft_ms", 50, 90, 95, 99),
        "cost": _compared(rows, "cost_usd"),
        "scores": {name: _compared(rows, f"score:{name}") for name in scores},
    }


def _compared(rows: Sequence[Row], field: str, *percents: int) -> Values:
    names = ("avg", "sd", "count", *(f"p{percent}" for percent in percents))
    return {name: measure(rows, f"{field}:{name}") for name in names}
