"""Cost, calls or start of all matching sessions of a range, by which a page is chosen: in numpy, with numbers for ids.

What the answer says of the sessions of the page is added up by `session_sums`.
`session_rows` says which events a session has. As texts the ids of three million events in a day were grouped and
joined five times by DuckDB, at 0.3 microseconds a row each; here they are read once, and each text is compared once
for each row group that it comes in.

Rows beyond the range are those that the id indexes name: of traces with a matching event that names no session, of the
sessions that match, and of the traces of these.
"""

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from processor.core.money import PLACES
from server.explore import sums
from server.explore.far_rows import Whole
from server.explore.numbered_ids import (
    Ids,
    Numbers,
    Places,
    Truths,
    added,
    calls_of,
    chosen,
    costs_of,
    first_ranked,
    read_range,
)
from server.explore.questions import Times
from server.explore.ranked import Ranked, RankedPlace
from server.explore.session_rows import of_traces
from server.explore.snapshot import Relation, Snapshot
from server.explore.summaries import LISTED, whole_traces

Sort = Literal["start", "cost_usd", "calls"]

WHOLE: Final = 1.0
"""The part of all row groups beyond the range that may be looked through."""

_IDS: Final = ("trace_id", "session_id")
_LATEST: Final = (1 << 63) - 1


def _starts_of(table: Any) -> Numbers:
    found: Numbers = table["timestamp"].chunk(0).cast("int64").to_numpy()
    return found


_VALUES: Final[dict[Sort, tuple[tuple[str, ...], Callable[[Any], Numbers]]]] = {
    "start": (("timestamp",), _starts_of),
    "cost_usd": (("cost_usd", "kind"), costs_of),
    "calls": (("kind",), calls_of),
}
"""What sessions are sorted by: the columns that it is made of, and how."""


class _Rows(NamedTuple):
    """Some rows: the numbers of their ids, and their values."""

    trace: Places
    session: Places
    """-1: none is named."""
    values: Numbers

    def and_(self, others: "_Rows") -> "_Rows":
        """Return these and others."""
        trace, session = np.concatenate([self.trace, others.trace]), np.concatenate([self.session, others.session])
        return _Rows(trace, session, np.concatenate([self.values, others.values]))


def page_of_sessions(
    snapshot: Snapshot,
    project: str,
    times: Times,
    matches: Relation | None,
    sort: Sort,
    after: RankedPlace | None,
    limit: int,
) -> list[Ranked] | None:
    """Return the first `limit` of the sessions that match behind a place: descending by value, then by id.

    `matches` are the matching rows, which are rows of `times`; None: all of these match. None is returned for too many
    rows. Raises `Refused`, `Stopped`, `SegmentGone`.
    """
    totals = _Totals(snapshot, project, times, sort)
    found = totals.of(matches) if totals.read_range() else None
    return None if found is None else first_ranked(*found, after, limit, PLACES if sort == "cost_usd" else 0)


class _Totals:
    """The rows that are read, and their ids."""

    def __init__(self, snapshot: Snapshot, project: str, times: Times, sort: Sort) -> None:
        self._snapshot = snapshot
        self._project = project
        self._times = times
        self._sort: Sort = sort
        self._columns, self._value = _VALUES[sort]
        self._traces: Ids
        self._sessions: Ids
        self._rows: _Rows

    def read_range(self) -> bool:
        """Read the rows of the range; return whether they are few enough."""
        found = read_range(self._snapshot, self._project, self._times, _IDS, self._columns, self._value)
        if found is None:
            return False
        [(self._traces, trace), (self._sessions, session)], values = found
        self._rows = _Rows(trace, session, values)
        return True

    def _far(self, column: str, ids: Any, whole: Whole, through: str | None = None) -> bool:
        """Add the rows of other times with one of some ids, and with `through` those of the same traces in the same row
        groups, but for traces that were there; return whether they are few enough."""
        columns = (*_IDS, *self._columns)
        table = self._snapshot.elsewhere(
            self._project, self._times, column, ids, columns, WHOLE, whole=whole, through=through
        )
        if table is None or not len(table):
            return table is not None
        trace, session = self._traces.numbers(table["trace_id"]), self._sessions.numbers(table["session_id"])
        rows = _Rows(trace, session, self._value(table.combine_chunks()))
        self._rows = self._rows.and_(rows)
        return True

    def of(self, matches: Relation | None) -> tuple[Any, Numbers] | None:
        """Return the sessions that match, and their values; None: there is too much elsewhere."""
        near, traces, sessions = self._rows, self._traces, self._sessions
        named, unnamed = self._all() if matches is None else self._matching(matches)
        begun = traces.both(unnamed, traces.having(near.trace[chosen(near.session, named)]))
        if not self._far("trace_id", traces.of(begun), {}):
            return None
        owners = self._sessions_of(unnamed)
        if owners is None:
            return None
        through = sessions.having(owners)
        wanted = sessions.both(named, through)
        known, whole = self._rows, Whole()
        if not self._far("session_id", sessions.of(wanted), whole, "trace_id"):
            return None
        self._rows = self._without(len(known.trace), begun)
        every = traces.both(begun, traces.having(self._rows.trace[chosen(self._rows.session, sessions.grown(wanted))]))
        if not self._far("trace_id", traces.of(every & ~traces.grown(begun)), whole):
            return None
        owners = self._sessions_of(every)
        return None if owners is None else self._added(owners, wanted)

    def _without(self, first: int, traces: Truths) -> _Rows:
        """Return the rows without those of some traces from a place on: these are there twice."""
        rows = self._rows
        kept = ~chosen(rows.trace, self._traces.grown(traces))
        kept[:first] = True
        return _Rows(rows.trace[kept], rows.session[kept], rows.values[kept])

    def _all(self) -> tuple[Truths, Truths]:
        """Return what `_matching` does where all rows of the range match."""
        rows = self._rows
        return self._sessions.having(rows.session), self._traces.having(rows.trace[rows.session < 0])

    def _matching(self, matches: Relation) -> tuple[Truths, Truths]:
        """Return the sessions that matching rows name, and the traces of those that name none."""
        columns = "session_id, CASE WHEN session_id IS NULL THEN trace_id END AS trace_id"
        table = self._snapshot.engine.table(f"SELECT DISTINCT {columns} FROM ({matches.sql})", matches.params)
        sessions, traces = self._sessions.numbers(table["session_id"]), self._traces.numbers(table["trace_id"])
        return self._sessions.having(sessions), self._traces.having(traces)

    def _sessions_of(self, wanted: Truths) -> Places | None:
        """Return the session of each of some traces, all of whose rows are there; -1: it has none, or is not wanted.

        Where a trace names several, the first is asked for. None: there are too many of these.
        """
        size, wanted = len(self._traces.texts), self._traces.grown(wanted)
        names = self._rows.session >= 0
        trace, session = self._rows.trace[names], self._rows.session[names]
        lowest, highest = np.full(size, len(self._sessions.texts), np.int32), np.full(size, -1, np.int32)
        np.minimum.at(lowest, trace, session)
        np.maximum.at(highest, trace, session)
        found = np.where(wanted, highest, np.int32(-1))
        several = wanted & (lowest < highest)
        count = int(np.count_nonzero(several))
        if count > LISTED:
            return None
        if count:
            ids = self._traces.of(several).to_pylist()
            whole = whole_traces(self._snapshot, self._project, ids, (*_IDS, *sums.BY_START_COLUMNS))
            first = self._snapshot.engine.table(of_traces(whole.sql), whole.params)
            found[self._traces.numbers(first["trace_id"])] = self._sessions.numbers(first["session_id"])
        return found

    def _added(self, owners: Places, wanted: Truths) -> tuple[Any, Numbers] | None:
        """Return the wanted sessions and the sums of their rows; None: one is more than 64 bits have room for."""
        session = np.where(self._rows.session >= 0, self._rows.session, owners[self._rows.trace])
        wanted = self._sessions.grown(wanted)
        kept = chosen(session, wanted)
        session, values = session[kept], self._rows.values[kept]
        if self._sort == "start":
            found = np.full(len(wanted), _LATEST, np.int64)
            np.minimum.at(found, session, values)
        else:
            summed = added(session, values, len(wanted))
            if summed is None:
                return None
            found = summed
        there = self._sessions.having(session)
        return self._sessions.of(there), found[there]
