"""Summaries of whole traces: all of their events in the snapshot, whatever the question's filters and times say."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from server.errors import Refused
from server.explore import sums
from server.explore.engine import Engine, Row
from server.explore.questions import Filters
from server.explore.snapshot import ALWAYS, EVERYTHING, Relation, Snapshot

LISTED: Final = 1000
"""Traces up to which the id indexes are asked where their events are; for more of them all segments are read."""

MOST_MODELS: Final = 100_000
"""Different models of all traces or sessions of an answer."""

COLUMNS: Final = tuple(
    dict.fromkeys(
        [
            *("trace_id", "span_id", "parent_span_id", "name", "environment", "user_id", "session_id", "model"),
            *sums.SUM_COLUMNS,
            *sums.BY_START_COLUMNS,
        ]
    )
)
"""What a summary is made of."""

_ROOT: Final = "arg_min({'name': name, 'environment': environment}, %s)"

_SUMS: Final = ", ".join(
    (
        sums.START,
        sums.END,
        sums.REQUESTS,
        sums.CALLS,
        sums.ERROR_COUNT,
        *map(sums.tokens, ("input_tokens", "output_tokens", "cached_tokens")),
        sums.COST,
        f"arg_min(user_id, {sums.BY_START})",
        f"arg_min(session_id, {sums.BY_START})",
        f"{_ROOT % sums.BY_START} FILTER ({sums.IS_ROOT})",
    )
)


def whole_traces(snapshot: Snapshot, project: str, ids: Sequence[str], columns: Sequence[str] = COLUMNS) -> Relation:
    """Return all events of some traces. Raises `Refused`, `Stopped`, `SegmentGone`."""
    if len(ids) <= LISTED:
        return snapshot.relation(project, Filters(equal={"trace_id": tuple(ids)}, kinds="all"), ALWAYS, columns=columns)
    found = everything(snapshot, project, columns)
    wanted = "SELECT unnest(?::VARCHAR[])"
    return Relation(
        f"SELECT * FROM ({found.sql}) WHERE trace_id IN ({wanted})", [*found.params, [*ids]], found.segments
    )


def everything(snapshot: Snapshot, project: str, columns: Sequence[str] = COLUMNS) -> Relation:
    """Return all events of a project."""
    return snapshot.relation(project, EVERYTHING, ALWAYS, columns=columns)


def trace_summaries(
    snapshot: Snapshot, project: str, ids: Sequence[str], whole: Relation | None = None
) -> dict[str, dict[str, Any]]:
    """Return trace id -> summary, as the API answers it, of those traces that have events.

    `whole`: all events of these traces with `COLUMNS`, and perhaps of others, whose summaries are returned as well.
    Raises `Refused` (query_too_heavy), `Stopped`, `SegmentGone`.
    """
    if not ids:
        return {}
    engine, whole = snapshot.engine, whole or whole_traces(snapshot, project, ids)
    rows = engine.rows(f"SELECT trace_id, {_SUMS} FROM ({whole.sql}) GROUP BY trace_id", whole.params)
    models = models_by(engine, whole, "trace_id")
    rootless = _first_of_rootless(engine, whole) if any(row[-1] is None for row in rows) else {}
    return {row[0]: _summary(row, models.get(row[0], []), rootless) for row in rows}


def models_by(engine: Engine, relation: Relation, column: str) -> dict[str, list[str]]:
    """Return the models that were called, sorted, by a column of a relation. Raises `Refused` if there are too many."""
    rows = engine.rows(
        f"SELECT DISTINCT {column}, model FROM ({relation.sql}) WHERE {sums.IS_CALL} LIMIT ?",
        [*relation.params, MOST_MODELS + 1],
    )
    check_models(len(rows))
    found: dict[str, list[str]] = {}
    for key, model in sorted(rows):
        found.setdefault(key, []).append(model)
    return found


def check_models(count: int) -> None:
    """Raise `Refused` if the answer would name too many models."""
    if count > MOST_MODELS:
        raise Refused("query_too_heavy", f"The answer names more than {MOST_MODELS:,} models; ask for a lower limit")


def _first_of_rootless(engine: Engine, whole: Relation) -> dict[str, Mapping[str, str | None]]:
    """Return name and environment of the first event of each trace in which every event names a parent.

    That is the first event whose parent is missing; where there is none, because all are below a cycle, the first.
    """
    order = f"row(parents.span_id IS NOT NULL, {sums.BY_START.removeprefix('row(')}"
    rows = engine.rows(
        f"WITH whole AS NOT MATERIALIZED ({whole.sql}) SELECT whole.trace_id, {_ROOT % order} FROM whole LEFT JOIN "
        "(SELECT DISTINCT trace_id, span_id FROM whole) AS parents "
        "ON parents.trace_id = whole.trace_id AND parents.span_id = whole.parent_span_id "
        f"GROUP BY whole.trace_id HAVING NOT bool_or({sums.IS_ROOT})",
        whole.params,
    )
    return dict(rows)


def _summary(row: Row, models: Iterable[str], rootless: Mapping[str, Mapping[str, str | None]]) -> dict[str, Any]:
    trace_id, start, end, spans, calls, errors, inputs, outputs, cached, cost, user, session, root = row
    first = rootless[trace_id] if root is None else root
    return {
        "trace_id": trace_id,
        "name": first["name"],
        "start": sums.time_json(start),
        "end": sums.end_json(end),
        "duration_ms": sums.millis_json(end - start * sums.NANOS),
        "spans": spans,
        "calls": calls,
        "errors": errors,
        "input_tokens": sums.count_json(inputs),
        "output_tokens": sums.count_json(outputs),
        "cached_tokens": sums.count_json(cached),
        "cost_usd": sums.cost_json(cost),
        "user_id": user,
        "session_id": session,
        "environment": first["environment"],
        "models": [*models],
        "complete": root is not None,
    }
