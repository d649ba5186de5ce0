"""`GET /v1/sessions` and `GET /v1/sessions/{session_id}`: summaries of whole sessions.

Which events a session has is said in `session_rows`.
"""

from collections.abc import Sequence
from heapq import nsmallest
from typing import Any, Final

from processor.core.clock import parse_timestamp
from server.errors import Refused
from server.explore import sums
from server.explore.conditions import within
from server.explore.cursor import Walk, stamped, walk
from server.explore.engine import Row
from server.explore.questions import SessionQuestion, SessionsQuestion, Times
from server.explore.ranked import (
    CANDIDATES,
    Candidates,
    Ranked,
    RankedBound,
    RankedPlace,
    first_behind,
    first_of,
    page_of,
    sorted_behind,
)
from server.explore.session_rows import of_traces, session_rows, with_session
from server.explore.session_sums import first_starts, summed_sessions
from server.explore.session_totals import Sort, page_of_sessions
from server.explore.snapshot import ALWAYS, EVERYTHING, Relation, Snapshot
from server.explore.summaries import check_models, everything, trace_summaries, whole_traces

VALUES: Final = {"start": sums.START, "cost_usd": sums.COST, "calls": sums.CALLS}
"""What sessions are sorted by, descending."""

FIRST_LOOK: Final = 32_768
"""About how many of the latest rows that name a session are looked at first for those that began last."""

READ_AT_ONCE: Final = 2_000_000
"""Rows whose sessions and times are read, once, rather than more of the latest rows with each question."""

MOST_TRACES: Final = 50_000
"""Of the answer about one session."""

SUMMED: Final = 200
"""Sessions up to which a page in the order of their start is chosen by their whole sums, which the answer needs."""

_COLUMNS: Final = tuple(dict.fromkeys(("trace_id", "session_id", *sums.SUM_COLUMNS, *sums.BY_START_COLUMNS)))
"""What sessions are found and valued by."""

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
        f"list(DISTINCT model) FILTER ({sums.IS_CALL})",
    )
)


def answer_sessions(snapshot: Snapshot, question: SessionsQuestion) -> bytes:
    """Return the JSON of a page of sessions.

    Raises `Refused`: bad_request for a cursor of another question, query_too_heavy; `Stopped`, `SegmentGone`.
    """
    step = walk(snapshot, question)
    after = step.place_as(RankedPlace)
    sessions = _Sessions(step, question)
    found = page_of(sessions, question.sort == "start", after, question.limit + 1)
    page = found[: question.limit]
    summaries = sessions.sums.summaries([each.id for each in page])
    cursor = step.cursor(page[-1].place) if len(found) > len(page) else None
    return step.answer({"sessions": [summaries[each.id] for each in page], "nextCursor": cursor})


def answer_session(snapshot: Snapshot, question: SessionQuestion) -> bytes:
    """Return the JSON of one session: its summary, and those of its traces in order of time, `MOST_TRACES` at most.

    Raises `Refused`: not_found, query_too_heavy; `Stopped`, `SegmentGone`.
    """
    session = _Sums(snapshot, question.project)
    session.rows_of([question.session_id])  # of which all is made
    summary = session.summaries([question.session_id]).get(question.session_id)
    if summary is None:
        raise Refused("not_found", "This project has no such session, or it is not in the event store yet")
    rows = session.rows_of([question.session_id])
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


class _Sums:
    """The events of sessions and what they add up to, read once where several steps of an answer need them."""

    def __init__(self, snapshot: Snapshot, project: str) -> None:
        self._snapshot = snapshot
        self._project = project
        self._ids: frozenset[str] = frozenset()
        """Whose events `_rows` are."""
        self._rows: Relation | None = None
        self._found: dict[str, Row] | None = None
        """What they add up to."""

    def rows_of(self, ids: Sequence[str]) -> Relation:
        """Return the events of these sessions, and perhaps those of as many others."""
        if self._rows is None or not self._ids.issuperset(ids) or len(self._ids) > 2 * len(ids):
            self._ids, self._found = frozenset(ids), None
            self._rows = session_rows(self._snapshot, self._project, ids)
        return self._rows

    def of(self, ids: Sequence[str]) -> dict[str, Row]:
        """Return the sums of these sessions that have events, and perhaps those of others: session id -> `_SUMS`."""
        is_read = self._ids.issuperset(ids) and len(self._ids) <= 2 * len(ids)
        if self._found is not None and is_read:
            return self._found
        if self._rows is None or not is_read:
            found = summed_sessions(self._snapshot, self._project, ids)
            if found is not None:
                self._ids, self._rows, self._found = frozenset(ids), None, found
                return found
        rows = self.rows_of(ids)
        if self._found is None:
            summed = self._snapshot.engine.rows(
                f"SELECT session, {_SUMS} FROM ({rows.sql}) GROUP BY session", rows.params
            )
            self._found = {row[0]: row for row in summed}
        return self._found

    def summaries(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return session id -> summary, of those of these sessions that have events, and perhaps of others."""
        if not ids:
            return {}
        found = self.of(ids)
        check_models(sum(len(row[-1] or ()) for row in found.values()))
        return {each: _summary(row) for each, row in found.items()}


class _Sessions:
    """How matching sessions are found and valued."""

    def __init__(self, step: Walk, question: SessionsQuestion) -> None:
        self.first_look: int = FIRST_LOOK
        self.sums = _Sums(step.snapshot, question.project)
        self._snapshot = step.snapshot
        self._project = question.project
        self._filters = question.filters
        self._times = step.times
        self._is_by_start = question.sort == "start"
        self._sort: Sort = question.sort
        self._value = VALUES[question.sort]
        self._matched: Relation
        self._beyond: RankedBound | None
        self._latest: list[Row] | None

    def look(self, rows: int | None) -> bool:
        """See `RankedItem`."""
        self._latest = self._all_starts(rows)
        if self._latest is not None:
            rows = None
        seen = self._snapshot.latest(self._project, self._filters, self._times, rows, in_session=True)
        times = self._times if seen is None else Times(seen, self._times.end)
        columns = ("session_id", "trace_id", "timestamp")
        self._matched = self._snapshot.relation(self._project, self._filters, times, columns=columns)
        self._beyond = None if seen is None else RankedBound(seen - 1)
        return seen is None

    def _all_starts(self, rows: int | None) -> list[Row] | None:
        """Return the latest of the whole range, without a statement; None: that takes too long, or is not asked for.

        At first only what has come since may be unknown; where the latest rows do not do, more."""
        if rows is None or self._filters != EVERYTHING:
            return None
        most = rows if rows == self.first_look else READ_AT_ONCE
        found = first_starts(self._snapshot, self._project, self._times, most)
        if found is None:
            return None
        return nsmallest(CANDIDATES + 1, found.items(), key=lambda each: (-each[1], each[0]))

    def starts(self) -> Sequence[int]:
        """Return when an event that names it first matches, for each session that has one; the latest come first."""
        return [start for _, start in self._named()]

    def _named(self) -> list[Row]:
        if self._latest is None:
            self._latest = self._snapshot.engine.rows(
                f"SELECT session_id, {sums.START} AS start FROM ({self._matched.sql}) WHERE session_id IS NOT NULL "
                "GROUP BY session_id ORDER BY start DESC, session_id LIMIT ?",
                [*self._matched.params, CANDIDATES + 1],
            )
        return self._latest

    def candidates(self, most: int) -> Candidates:
        """Return those that have matched last, those of events without a session among them."""
        named = first_of(self._named(), min(most, CANDIDATES), self._beyond)
        if named.horizon is not None and not self._is_by_start:  # then these decide nothing
            return Candidates([], named.horizon)
        traces, horizon = self._unnamed(named)
        return Candidates([*dict.fromkeys([*named.ids, *self._of_traces(traces)])], horizon)

    def _unnamed(self, named: Candidates) -> tuple[list[str], RankedBound | None]:
        """Return the traces through which further sessions may match that begin before a horizon, and that horizon.

        Such a session matches with events without one alone. It has no event before the time of the horizon, so what
        matches lies there or later, and so does an event of the trace that names the session. If every event of the
        range matches, that one is behind the range. Of too many traces the latest are returned, and the horizon is
        moved.
        """
        horizon, times = named.horizon, ALWAYS
        if horizon is not None and self._filters == EVERYTHING:
            if self._times.end is None:
                return [], horizon
            times = Times(max(horizon.start, self._times.end), None)
        elif horizon is not None:
            times = Times(horizon.start, None)
        every = self._snapshot.relation(self._project, EVERYTHING, times, columns=("session_id", "trace_id"))
        if not every.segments:
            return [], horizon
        late = within(ALWAYS if horizon is None else Times(horizon.start, None))
        besides = f"AND session_id NOT IN ({', '.join('?' * len(named.ids))})" if named.ids else ""
        naming = f"SELECT trace_id FROM ({every.sql}) WHERE session_id IS NOT NULL {besides}"
        rows = self._snapshot.engine.rows(
            f"SELECT trace_id, {sums.START} AS start FROM ({self._matched.sql}) WHERE session_id IS NULL "
            f"AND {late.sql} AND trace_id IN ({naming}) GROUP BY trace_id ORDER BY start DESC, trace_id LIMIT ?",
            [*self._matched.params, *late.params, *every.params, *named.ids, CANDIDATES + 1],
        )
        moved = first_of(rows, CANDIDATES, None).horizon
        return [row[0] for row in rows[:CANDIDATES]], horizon if moved is None else RankedBound(moved.start)

    def _of_traces(self, ids: Sequence[str]) -> list[str]:
        if not ids:
            return []
        columns = ("trace_id", "session_id", *sums.BY_START_COLUMNS)
        whole = whole_traces(self._snapshot, self._project, ids, columns)
        rows = self._snapshot.engine.rows(f"SELECT session_id FROM ({of_traces(whole.sql)})", whole.params)
        return [row[0] for row in rows]

    def valued(self, ids: Sequence[str], after: RankedPlace | None, limit: int) -> list[Ranked]:
        """Return the first of some sessions."""
        if self._is_by_start and len(ids) <= SUMMED:
            summed = self.sums.of(ids)
            return sorted_behind([Ranked(each, summed[each][1]) for each in ids if each in summed], after, limit)
        rows = self.sums.rows_of(ids)
        wanted = "SELECT unnest(?::VARCHAR[])"
        return self._first(f"({rows.sql}) WHERE session IN ({wanted})", [*rows.params, [*ids]], after, limit)

    def all_valued(self, after: RankedPlace | None, limit: int) -> list[Ranked]:
        """Return the first of all that match.

        All rows of the range are read, and of the others those of the sessions that match and of their traces. Where
        these are too many, everything is.
        """
        matches = None if self._filters == EVERYTHING else self._matched
        page = page_of_sessions(self._snapshot, self._project, self._times, matches, self._sort, after, limit)
        if page is not None:
            return page
        whole = everything(self._snapshot, self._project, _COLUMNS)
        sessions = with_session(whole)
        matching = (
            f"SELECT coalesce(matched.session_id, of_trace.session_id) FROM ({self._matched.sql}) AS matched "
            f"LEFT JOIN ({of_traces(whole.sql)}) AS of_trace USING (trace_id)"
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


def _summary(row: Row) -> dict[str, Any]:
    session_id, start, end, traces, calls, errors, inputs, outputs, cost, user, models = row
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
        "models": sorted(models or ()),
    }
