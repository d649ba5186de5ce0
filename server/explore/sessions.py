"""`GET /v1/sessions` and `GET /v1/sessions/{session_id}`: summaries of whole sessions.

An event is of the session that it names; without one, of the session of its trace: the first that an event of the trace
names, by start and then by arrival.
"""

from collections.abc import Sequence
from typing import Any, Final

from processor.core.clock import parse_timestamp
from server.errors import Refused
from server.explore import sums
from server.explore.cursor import Walk, stamped, walk
from server.explore.engine import Row
from server.explore.questions import Filters, SessionQuestion, SessionsQuestion
from server.explore.ranked import CANDIDATES, Candidates, Ranked, RankedPlace, first_behind, page_of
from server.explore.snapshot import ALWAYS, Relation, Snapshot
from server.explore.summaries import COLUMNS, LISTED, everything, models_by, trace_summaries, whole_traces

VALUES: Final = {"start": sums.START, "cost_usd": sums.COST, "calls": sums.CALLS}
"""What sessions are sorted by, descending."""

MOST_TRACES: Final = 50_000
"""Of the answer about one session."""

_SUMS: Final = ", ".join(
    (
        sums.START,
        sums.END,
        "count(DISTINCT trace_id)",
        sums.CALLS,
        sums.ERROR_COUNT,
        *map(sums.tokens, ("input_tokens", "output_tokens")),
        sums.COST,
        f"arg_min(user_id, {sums.BY_START})",
    )
)


def answer_sessions(snapshot: Snapshot, question: SessionsQuestion) -> bytes:
    """Return the JSON of a page of sessions.

    Raises `Refused`: bad_request for a cursor of another question, query_too_heavy; `Stopped`, `SegmentGone`.
    """
    step = walk(snapshot, question)
    after = step.place_as(RankedPlace)
    found = page_of(_Sessions(step, question), question.sort == "start", after, question.limit + 1)
    page = found[: question.limit]
    summaries = _summaries(step.snapshot, question.project, [each.id for each in page])
    cursor = step.cursor(page[-1].place) if len(found) > len(page) else None
    return step.answer({"sessions": [summaries[each.id] for each in page], "nextCursor": cursor})


def answer_session(snapshot: Snapshot, question: SessionQuestion) -> bytes:
    """Return the JSON of one session: its summary, and those of its traces in order of time, `MOST_TRACES` at most.

    Raises `Refused`: not_found, query_too_heavy; `Stopped`, `SegmentGone`.
    """
    summary = _summaries(snapshot, question.project, [question.session_id]).get(question.session_id)
    if summary is None:
        raise Refused("not_found", "This project has no such session, or it is not in the event store yet")
    rows = _session_rows(snapshot, question.project, [question.session_id])
    found = snapshot.engine.rows(
        f"SELECT trace_id, {sums.START} AS start FROM ({rows.sql}) GROUP BY trace_id ORDER BY start, trace_id LIMIT ?",
        [*rows.params, MOST_TRACES],
    )
    traces = trace_summaries(snapshot, question.project, [row[0] for row in found])
    return stamped(
        snapshot,
        {
            "session": summary,
            "traces": sorted(traces.values(), key=lambda trace: (parse_timestamp(trace["start"]), trace["trace_id"])),
            "truncated": summary["traces"] > len(traces),
            "total": summary["traces"],
        },
    )


class _Sessions:
    """How matching sessions are found and valued."""

    def __init__(self, step: Walk, question: SessionsQuestion) -> None:
        self._snapshot = step.snapshot
        self._project = question.project
        self._value = VALUES[question.sort]
        self._matched = step.snapshot.relation(
            question.project, question.filters, step.times, columns=("session_id", "trace_id", "timestamp")
        )

    def candidates(self) -> Candidates:
        """Return those that have matched last, those of traces among them."""
        rows = self._snapshot.engine.rows(
            f"SELECT session_id, CASE WHEN session_id IS NULL THEN trace_id END AS trace, {sums.START} AS start "
            f"FROM ({self._matched.sql}) GROUP BY ALL ORDER BY start DESC, session_id, trace LIMIT ?",
            [*self._matched.params, CANDIDATES + 1],
        )
        named = [row[0] for row in rows[:CANDIDATES] if row[0] is not None]
        traces = [row[1] for row in rows[:CANDIDATES] if row[0] is None]
        ids = dict.fromkeys([*named, *self._of_traces(traces)])
        return Candidates([*ids], rows[CANDIDATES][2] if len(rows) > CANDIDATES else None)

    def _of_traces(self, ids: Sequence[str]) -> list[str]:
        if not ids:
            return []
        columns = ("trace_id", "session_id", *sums.BY_START_COLUMNS)
        whole = whole_traces(self._snapshot, self._project, ids, columns)
        rows = self._snapshot.engine.rows(f"SELECT session_id FROM ({_of_traces(whole.sql)})", whole.params)
        return [row[0] for row in rows]

    def valued(self, ids: Sequence[str], after: RankedPlace | None, limit: int) -> list[Ranked]:
        """Return the first of some sessions."""
        rows = _session_rows(self._snapshot, self._project, ids)
        return self._first(f"({rows.sql})", rows.params, after, limit)

    def all_valued(self, after: RankedPlace | None, limit: int) -> list[Ranked]:
        """Return the first of all that match, by reading everything."""
        whole = everything(self._snapshot, self._project)
        sessions = _with_session(whole)
        matching = (
            f"SELECT coalesce(matched.session_id, of_trace.session_id) FROM ({self._matched.sql}) AS matched "
            f"LEFT JOIN ({_of_traces(whole.sql)}) AS of_trace USING (trace_id)"
        )
        return self._first(
            f"({sessions.sql}) WHERE session IN ({matching})",
            [*sessions.params, *self._matched.params, *whole.params],
            after,
            limit,
        )

    def _first(self, source: str, params: Sequence[Any], after: RankedPlace | None, limit: int) -> list[Ranked]:
        sql, place = first_behind(f"SELECT session AS id, {self._value} AS value FROM {source} GROUP BY session", after)
        rows = self._snapshot.engine.rows(sql, [*params, *place, limit])
        return [Ranked(*row) for row in rows]


def _of_traces(whole: str) -> str:
    """Return a SELECT of the session of each trace that has one."""
    return (
        f"SELECT trace_id, arg_min(session_id, {sums.BY_START}) AS session_id FROM ({whole}) "
        "WHERE session_id IS NOT NULL GROUP BY trace_id"
    )


def _with_session(whole: Relation) -> Relation:
    """Return the events of whole traces with the column `session`: that of each event."""
    sql = (
        f"SELECT whole.*, coalesce(whole.session_id, of_trace.session_id) AS session FROM ({whole.sql}) AS whole "
        f"LEFT JOIN ({_of_traces(whole.sql)}) AS of_trace ON of_trace.trace_id = whole.trace_id"
    )
    return Relation(sql, [*whole.params, *whole.params], whole.segments)


def _session_rows(snapshot: Snapshot, project: str, ids: Sequence[str]) -> Relation:
    """Return all events of some sessions, with the column `session`.

    A session has at least one event that names it. So its traces are those of these events, and it has no other events
    than these traces do.
    """
    named = snapshot.relation(
        project, Filters(equal={"session_id": tuple(ids)}, kinds="all"), ALWAYS, columns=("trace_id", "session_id")
    )
    traces = snapshot.engine.rows(f"SELECT DISTINCT trace_id FROM ({named.sql}) LIMIT ?", [*named.params, LISTED + 1])
    if len(traces) <= LISTED:
        whole = whole_traces(snapshot, project, [row[0] for row in traces])
    else:
        every = everything(snapshot, project, COLUMNS)
        sql = f"SELECT * FROM ({every.sql}) WHERE trace_id IN (SELECT trace_id FROM ({named.sql}))"
        whole = Relation(sql, [*every.params, *named.params], every.segments)
    found = _with_session(whole)
    wanted = "SELECT unnest(?::VARCHAR[])"
    return Relation(f"SELECT * FROM ({found.sql}) WHERE session IN ({wanted})", [*found.params, [*ids]], found.segments)


def _summaries(snapshot: Snapshot, project: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return session id -> summary, of those sessions that have events."""
    if not ids:
        return {}
    found = _session_rows(snapshot, project, ids)
    rows = snapshot.engine.rows(f"SELECT session, {_SUMS} FROM ({found.sql}) GROUP BY session", found.params)
    models = models_by(snapshot.engine, found, "session")
    return {row[0]: _summary(row, models.get(row[0], [])) for row in rows}


def _summary(row: Row, models: Sequence[str]) -> dict[str, Any]:
    session_id, start, end, traces, calls, errors, inputs, outputs, cost, user = row
    return {
        "session_id": session_id,
        "user_id": user,
        "start": sums.time_json(start),
        "end": sums.end_json(end),
        "traces": traces,
        "calls": calls,
        "errors": errors,
        "input_tokens": sums.count_json(inputs),
        "output_tokens": sums.count_json(outputs),
        "cost_usd": sums.cost_json(cost),
        "models": [*models],
    }
