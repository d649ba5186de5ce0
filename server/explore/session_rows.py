"""The events of some sessions: those that name one, and those without a session in a trace whose session is one.

An event is of the session that it names; without one, of the session of its trace: the first that an event of the trace
names, by start and then by arrival.
"""

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from server.explore import sums
from server.explore.questions import Filters
from server.explore.snapshot import ALWAYS, EVERYTHING, Relation, Snapshot
from server.explore.summaries import COLUMNS, LISTED, everything, whole_traces

SOUGHT: Final = 200_000
"""Traces of sessions up to which the id indexes are asked where they may have events without a session."""

_NAMES = ", ".join(COLUMNS)
_WANTED = "SELECT unnest(?::VARCHAR[])"


def of_traces(whole: str) -> str:
    """Return a SELECT of the session of each trace that has one."""
    return (
        f"SELECT trace_id, arg_min(session_id, {sums.BY_START}) AS session_id FROM ({whole}) "
        "WHERE session_id IS NOT NULL GROUP BY trace_id"
    )


def with_session(whole: Relation) -> Relation:
    """Return the events of whole traces with the column `session`: that of each event."""
    sql = (
        f"SELECT whole.*, coalesce(whole.session_id, of_trace.session_id) AS session FROM ({whole.sql}) AS whole "
        f"LEFT JOIN ({of_traces(whole.sql)}) AS of_trace ON of_trace.trace_id = whole.trace_id"
    )
    return Relation(sql, [*whole.params, *whole.params], whole.segments)


def session_rows(snapshot: Snapshot, project: str, ids: Sequence[str]) -> Relation:
    """Return all events of some sessions, with the column `session`.

    A session has at least one event that names it. So its traces are those of these events, and it has no other events
    than these traces do. Raises `Refused`, `Stopped`, `SegmentGone`.
    """
    names_one = Filters(equal={"session_id": tuple(ids)}, kinds="all")
    named = snapshot.relation(project, names_one, ALWAYS, columns=("trace_id", "session_id"), dense=True)
    traces = snapshot.engine.table(f"SELECT DISTINCT trace_id FROM ({named.sql}) LIMIT ?", [*named.params, SOUGHT + 1])
    if len(traces) <= LISTED:
        return _among(whole_traces(snapshot, project, traces["trace_id"].to_pylist()), ids)
    unnamed = _unnamed_traces(snapshot, project, named, traces)
    if len(unnamed) > LISTED:
        every = everything(snapshot, project)
        sql = f"SELECT * FROM ({every.sql}) WHERE trace_id IN (SELECT trace_id FROM ({named.sql}))"
        return _among(Relation(sql, [*every.params, *named.params], every.segments), ids)
    own = snapshot.relation(project, names_one, ALWAYS, columns=COLUMNS, dense=True)
    sql = f"SELECT {_NAMES}, session_id AS session FROM ({own.sql})"
    if not unnamed:
        return Relation(sql, own.params, own.segments)
    others = _among(whole_traces(snapshot, project, unnamed), ids)
    return Relation(
        f"{sql} UNION ALL SELECT {_NAMES}, session FROM ({others.sql}) WHERE session_id IS NULL",
        [*own.params, *others.params],
        own.segments,
    )


def unnamed_rows(snapshot: Snapshot, project: str, ids: Sequence[str], traces: Any) -> Relation | None:
    """Return the events without a session of some sessions, with the column `session`; None: there are none.

    `traces` is an Arrow array of the traces of all events that name one of the sessions. Raises as `session_rows`.
    """
    listed = pa.table({"trace_id": traces})
    wanted = f"FROM {snapshot.engine.register(listed)}"
    every = snapshot.without_session(project, traces)
    unnamed = [] if every is None else _having(snapshot, every, wanted)
    if not unnamed:
        return None
    if len(unnamed) > LISTED:
        whole = everything(snapshot, project)
        whole = Relation(f"SELECT * FROM ({whole.sql}) WHERE trace_id IN ({wanted})", whole.params, whole.segments)
    else:
        whole = whole_traces(snapshot, project, unnamed)
    found = _among(whole, ids)
    return Relation(f"SELECT * FROM ({found.sql}) WHERE session_id IS NULL", found.params, found.segments)


def _unnamed_traces(snapshot: Snapshot, project: str, named: Relation, traces: Any) -> list[str]:
    """Return the traces of some events that have an event without a session as well, `LISTED` + 1 at most.

    `traces` is a table of these traces, as far as they are `SOUGHT` at most."""
    if len(traces) > SOUGHT:
        every: Relation | None = snapshot.relation(project, EVERYTHING, ALWAYS, columns=("trace_id", "session_id"))
        wanted, params = f"SELECT trace_id FROM ({named.sql})", named.params
    else:
        every = snapshot.without_session(project, traces["trace_id"].combine_chunks())
        wanted, params = f"FROM {snapshot.engine.register(traces)}", []
    if every is None:
        return []
    return _having(snapshot, every, wanted, params)


def _having(snapshot: Snapshot, every: Relation, wanted: str, params: Sequence[Any] = ()) -> list[str]:
    """Return the wanted traces that have an event without a session, `LISTED` + 1 at most."""
    found = snapshot.engine.rows(
        f"SELECT DISTINCT trace_id FROM ({every.sql}) WHERE session_id IS NULL AND trace_id IN ({wanted}) LIMIT ?",
        [*every.params, *params, LISTED + 1],
    )
    return [row[0] for row in found]


def _among(whole: Relation, ids: Sequence[str]) -> Relation:
    """Return the events of some sessions among those of whole traces."""
    found = with_session(whole)
    return Relation(
        f"SELECT * FROM ({found.sql}) WHERE session IN ({_WANTED})", [*found.params, [*ids]], found.segments
    )
