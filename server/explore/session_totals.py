"""Cost, calls or start of all matching sessions of a range, by which a page is chosen: in numpy, with numbers for ids.

What the answer says of the sessions of the page is added up by `session_sums`.
`session_rows` says which events a session has. As texts the ids of three million events in a day were grouped and
joined five times by DuckDB, at 0.3 microseconds a row each; here they are read once, and each text is compared once
for each row group that it comes in.

Rows beyond the range are those that the id indexes name: of traces with a matching event that names no session, of the
sessions that match, and of the traces of these.
"""

from collections.abc import Sequence
from decimal import Decimal
from hashlib import md5
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from processor.core.money import PLACES
from processor.event_store.segment_sums import picodollars
from server.explore import sums
from server.explore.column_codes import column_codes
from server.explore.questions import Times
from server.explore.ranked import LONG, Ranked, RankedPlace
from server.explore.row_scan import RowScan, is_inside, kept_of_span
from server.explore.session_rows import of_traces
from server.explore.snapshot import EVERYTHING, Relation, Snapshot, Whole
from server.explore.summaries import LISTED, whole_traces

Sort = Literal["start", "cost_usd", "calls"]
Numbers = NDArray[np.int64]
Places = NDArray[np.int32]
Truths = NDArray[np.bool_]
"""Of each id whether it is chosen."""

MOST_ROWS: Final = 6_000_000
"""Of the range: 30 bytes each."""
MOST_BYTES: Final = 160 << 20
"""Of the ids of its row groups, each once in a row group."""
WHOLE: Final = 1.0
"""The part of all row groups beyond the range that may be looked through."""

_IDS: Final = ("trace_id", "session_id")
_VALUES: Final[dict[Sort, tuple[str, ...]]] = {
    "start": ("timestamp",),
    "cost_usd": ("cost_usd", "kind"),
    "calls": ("kind",),
}
_NONE: Final = pa.array([], pa.string()).dictionary_encode()
_LOW: Final = 0xFFFFFFFF
_LATEST: Final = (1 << 63) - 1


class _Part(NamedTuple):
    """The rows of a row group: of each its trace and session, as Arrow arrays of dictionaries, and its value."""

    traces: Any
    sessions: Any
    values: Numbers


class _Ids:
    """Different texts with numbers: their places among them."""

    def __init__(self, texts: Any) -> None:
        self.texts = texts
        """An Arrow array."""

    def numbers(self, texts: Any) -> Places:
        """Return the numbers of some texts, new ones for new texts; -1 for null."""
        coded = texts.combine_chunks().dictionary_encode()
        # All texts are looked for among the few, not the few among all: a table of 800,000 takes 0.3 s to make.
        there = pc.indices_nonzero(pc.is_in(self.texts, value_set=coded.dictionary))
        places = pc.index_in(coded.dictionary, value_set=self.texts.take(there))
        new, size = places.is_null().to_numpy(zero_copy_only=False), len(self.texts)
        numbers = np.full(len(new) + 1, -1, np.int32)  # the last one is that of null
        numbers[:-1][~new] = there.to_numpy()[places.drop_null().to_numpy()]
        if new.any():
            numbers[:-1][new] = np.arange(size, size + np.count_nonzero(new), dtype=np.int32)
            self.texts = pa.concat_arrays([self.texts, coded.dictionary.filter(pa.array(new))])
        found: Places = numbers[coded.indices.fill_null(-1).to_numpy()]
        return found

    def having(self, numbers: Places) -> Truths:
        """Return of each text whether its number is among some, in which -1 stands for none."""
        found = np.zeros(len(self.texts) + 1, np.bool_)
        found[numbers] = True
        return found[:-1]

    def of(self, chosen: Truths) -> Any:
        """Return the texts that are chosen."""
        return self.texts.take(pa.array(np.flatnonzero(chosen)))

    def grown(self, chosen: Truths) -> Truths:
        """Return a choice of what was there before as one of what is there now."""
        return np.append(chosen, np.zeros(len(self.texts) - len(chosen), np.bool_))

    def both(self, one: Truths, other: Truths) -> Truths:
        """Return what is in one of two choices."""
        found: Truths = self.grown(one) | self.grown(other)
        return found


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
    return None if found is None else _first(*found, sort, after, limit)


class _Totals:
    """The rows that are read, and their ids."""

    def __init__(self, snapshot: Snapshot, project: str, times: Times, sort: Sort) -> None:
        self._snapshot = snapshot
        self._project = project
        self._times = times
        self._sort: Sort = sort
        self._traces: _Ids
        self._sessions: _Ids
        self._rows: _Rows

    def read_range(self) -> bool:
        """Read the rows of the range; return whether they are few enough."""
        columns = {*_IDS, *_VALUES[self._sort]}
        parts, size = [_Part(_NONE, _NONE, np.empty(0, np.int64))], 0
        with RowScan(self._snapshot, self._project, EVERYTHING, self._times) as scan:
            spans = [span for piece in scan.pieces for span in scan.spans(piece)]
            if sum(span.end - span.begin for span in spans) > MOST_ROWS:
                return False
            for span in spans:
                self._snapshot.engine.check()
                wanted = columns | (set() if is_inside(span, self._times) else {"timestamp"})
                if not span.is_below:
                    wanted.add("log_offset")
                if span.is_whole and span.calls in {0, span.end - span.begin}:
                    wanted.discard("kind")
                table = scan.coded(span, sorted(wanted))
                kept = kept_of_span(table, span, self._times)
                table = table if kept is None else table.filter(pa.array(kept))
                if len(table):
                    parts.append(self._part(table.combine_chunks(), is_call=span.calls > 0))
                    size += parts[-1].traces.dictionary.nbytes + parts[-1].sessions.dictionary.nbytes
                if size > MOST_BYTES:
                    return False
        self._traces, trace = _numbered([part.traces for part in parts])
        self._sessions, session = _numbered([part.sessions for part in parts])
        self._rows = _Rows(trace, session, np.concatenate([part.values for part in parts]))
        return True

    def _part(self, table: Any, *, is_call: bool = False) -> _Part:
        """Return the rows of a table; `is_call`: whether all are calls, where it does not say."""
        traces, sessions = (table[name].chunk(0).dictionary_encode() for name in _IDS)
        return _Part(traces, sessions, self._values(table, is_call=is_call))

    def _values(self, table: Any, *, is_call: bool = False) -> Numbers:
        if self._sort == "start":
            times: Numbers = table["timestamp"].chunk(0).cast("int64").to_numpy()
            return times
        calls: Truths = np.full(len(table), is_call)
        if "kind" in table.column_names:
            codes = column_codes(table["kind"])
            calls = np.array([value == "call" for value in codes.values])[codes.places]
        return calls.astype(np.int64) if self._sort == "calls" else picodollars(table["cost_usd"].chunk(0)) * calls

    def _far(self, column: str, ids: Any, whole: Whole, through: str | None = None) -> bool:
        """Add the rows of other times with one of some ids, and with `through` those of the same traces in the same row
        groups, but for traces that were there; return whether they are few enough."""
        columns = (*_IDS, *_VALUES[self._sort])
        table = self._snapshot.elsewhere(
            self._project, self._times, column, ids, columns, WHOLE, whole=whole, through=through
        )
        if table is None or not len(table):
            return table is not None
        trace, session = self._traces.numbers(table["trace_id"]), self._sessions.numbers(table["session_id"])
        rows = _Rows(trace, session, self._values(table.combine_chunks()))
        self._rows = self._rows.and_(rows)
        return True

    def of(self, matches: Relation | None) -> tuple[Any, Numbers] | None:
        """Return the sessions that match, and their values; None: there is too much elsewhere."""
        near, traces, sessions = self._rows, self._traces, self._sessions
        named, unnamed = self._all() if matches is None else self._matching(matches)
        begun = traces.both(unnamed, traces.having(near.trace[_chosen(near.session, named)]))
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
        every = traces.both(begun, traces.having(self._rows.trace[_chosen(self._rows.session, sessions.grown(wanted))]))
        if not self._far("trace_id", traces.of(every & ~traces.grown(begun)), whole):
            return None
        owners = self._sessions_of(every)
        return None if owners is None else self._added(owners, wanted)

    def _without(self, first: int, traces: Truths) -> _Rows:
        """Return the rows without those of some traces from a place on: these are there twice."""
        rows = self._rows
        kept = ~_chosen(rows.trace, self._traces.grown(traces))
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
        kept = _chosen(session, wanted)
        session, values = session[kept], self._rows.values[kept]
        if self._sort == "start":
            found = np.full(len(wanted), _LATEST, np.int64)
            np.minimum.at(found, session, values)
        else:
            low, high = (np.zeros(len(wanted), np.int64) for _ in range(2))
            np.add.at(low, session, values & _LOW)
            np.add.at(high, session, values >> 32)
            high += low >> 32
            if int(high.max(initial=0)) >= 1 << 30:
                return None
            found = (high << 32) + (low & _LOW)
        there = self._sessions.having(session)
        return self._sessions.of(there), found[there]


def _numbered(chunks: Sequence[Any]) -> tuple[_Ids, Places]:
    """Return the different texts of some arrays of dictionaries, and which of them each row has; -1: none."""
    unified = pa.chunked_array(chunks).unify_dictionaries()
    numbers = [chunk.indices.fill_null(-1).to_numpy() for chunk in unified.chunks]
    return _Ids(unified.chunk(0).dictionary), np.concatenate(numbers)


def _chosen(numbers: Places, chosen: Truths) -> Truths:
    """Return of each row whether what it has is chosen."""
    found: Truths = np.append(chosen, False)[numbers]  # -1 is the last one
    return found


def _first(ids: Any, values: Numbers, sort: Sort, after: RankedPlace | None, limit: int) -> list[Ranked]:
    """Return the first of some sessions behind a place."""
    shown = np.flatnonzero(_behind(ids, values, sort, after)) if after is not None else np.arange(len(ids))
    table = pa.table({"id": ids.take(pa.array(shown)), "value": values[shown]})
    best = table.take(pc.select_k_unstable(table, limit, [("value", "descending"), ("id", "ascending")]))
    scale = PLACES if sort == "cost_usd" else 0
    return [
        Ranked(name, Decimal(value).scaleb(-scale) if scale else value)
        for name, value in zip(best["id"].to_pylist(), best["value"].to_pylist(), strict=True)
    ]


def _behind(ids: Any, values: Numbers, sort: Sort, after: RankedPlace) -> Truths:
    last, name = int(Decimal(after.value).scaleb(PLACES if sort == "cost_usd" else 0)), after.id or None
    if after.digest:
        long = ids.filter(pc.greater(pc.binary_length(ids), LONG)).to_pylist()
        digests = {each: md5(each.encode(), usedforsecurity=False).hexdigest() for each in long}
        name = min((each for each, digest in digests.items() if digest == after.digest), default=None)
    found = values < last
    if name is not None:
        found |= (values == last) & pc.greater(ids, name).to_numpy(zero_copy_only=False)
    return found
