"""What the sessions of a page add up to: all that an answer says of each, row group by row group, in numpy.

DuckDB computes the same of `session_rows`: it reads the files once for the traces of the sessions and once more for
their sums. Here each row group is added up once, with all of its sessions if they are few: the sums are kept until its
segment is merged. One value of each session of a range, by which a page is chosen, is added up by `session_totals`.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from sys import getsizeof
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from processor.core.money import PLACES
from server.explore import sums
from server.explore.cell_parts import SUMS, RowGroup
from server.explore.cell_reader import sums_by
from server.explore.column_codes import column_codes
from server.explore.engine import Row
from server.explore.kept_summaries import KeptSummaries, SummaryKey
from server.explore.questions import Filters, Times
from server.explore.row_scan import RowScan, RowSpan
from server.explore.segment_files import OpenFile
from server.explore.session_rows import unnamed_rows
from server.explore.snapshot import ALWAYS, EVERYTHING, Piece, Snapshot
from server.explore.span_reader import SpanReader, micros_of

MANY: Final = 20_000
"""Starts of sessions, of all segments, up to which all are looked at."""
FEW: Final = 64
"""Sessions of a row group up to which all of them are added up, not only those that are asked for."""
MOST_ASKED: Final = 1000
"""Sessions that are remembered as asked for of a row group; those of further questions take their place."""

_ADDED: Final = (sums.CALLS, sums.ERROR_COUNT, *map(sums.tokens, ("input_tokens", "output_tokens")), sums.COST)
_COLUMNS: Final = (
    *("trace_id", "user_id", "model", "latency_ms", "timestamp", "received_at", "log_offset", "log_index"),
    *sorted({column for part in _ADDED for column in SUMS[part].columns}),
)

Numbers = NDArray[np.int64]
Start = tuple[int, ...]
"""What `sums.BY_START` says of an event."""


class NotAdded(Exception):
    """A row has a value that this is not made for."""


class SessionSums(NamedTuple):
    """What some of a session's events add up to."""

    start: int
    end: int
    added: tuple[int, ...]
    """As `_ADDED`; picodollars."""
    user: tuple[Start, str] | None
    """The first event that has a user, and that user."""
    models: frozenset[str]
    traces: Any
    """An Arrow array of trace ids, each once."""


def summed_sessions(snapshot: Snapshot, project: str, ids: Sequence[str]) -> dict[str, Row] | None:
    """Return what all events of some sessions add up to, of those that have events.

    Session id -> itself, start, end, how many traces, calls, errors, tokens in and out, cost, user and models. None: a
    row has a value that this is not made for. Raises `Refused`, `Stopped`, `SegmentGone`.
    """
    try:
        found = _of_named(snapshot, project, ids)
    except NotAdded:
        return None
    if found:
        traces = pa.concat_arrays([each.traces for parts in found.values() for each in parts])
        for session, part in _of_unnamed(snapshot, project, [*found], traces.unique()):
            found[session].append(part)
    return {session: _joined(session, parts) for session, parts in found.items()}


def first_starts(snapshot: Snapshot, project: str, times: Times, most: int) -> dict[str, int] | None:
    """Return session id -> start of its first event of `times` that names it.

    None: more than `most` rows would have to be read, or there are many sessions. Raises `Refused`, `Stopped`,
    `SegmentGone`.
    """
    kept, listed = snapshot.files.summaries, 0
    found: dict[str, int] = {}
    with RowScan(snapshot, project, EVERYTHING, times) as scan:
        keys = [_key_of_starts(piece, project, times) for piece in scan.pieces]
        known = [None if key is None else kept.get(key) for key in keys]
        if sum(piece.sums.rows for piece, each in zip(scan.pieces, known, strict=True) if each is None) > most:
            return None
        reader = SpanReader(EVERYTHING, times)
        for piece, key, each in zip(scan.pieces, keys, known, strict=True):
            starts: dict[str, int] = _starts_of_piece(snapshot, reader, scan, piece) if each is None else each
            listed += len(starts)
            if key is not None and each is None:
                kept.keep(key, starts, sum(100 + getsizeof(name) for name in starts))
            if listed > MANY:
                return None
            for session, start in starts.items():
                found[session] = min(start, found.get(session, start))
    return found


def _key_of_starts(piece: Piece, project: str, times: Times) -> SummaryKey | None:
    """Return what the starts of a piece are kept as; None: they are not."""
    if not piece.is_whole:
        return None
    start = times.start if times.start is not None and piece.sums.time_min < times.start else None
    end = times.end if times.end is not None and piece.sums.time_max >= times.end else None
    return SummaryKey(piece.segment.id, -1, project, ("starts of sessions", start, end))


def _starts_of_piece(snapshot: Snapshot, reader: SpanReader, scan: RowScan, piece: Piece) -> dict[str, int]:
    """Return the starts of the sessions of a piece, `MANY` + 1 or a few more where there are more."""
    found: dict[str, int] = {}
    in_session = snapshot.file(piece).groups.in_session
    for span in scan.spans(piece):
        if not in_session[span.group] or len(found) > MANY:
            continue
        snapshot.engine.check()
        read = _starts(reader.read(scan.opened_coded(piece), span, ("session_id", "timestamp")))
        found.update((session, min(start, found.get(session, start))) for session, start in read.items())
    return found


def _starts(group: RowGroup) -> dict[str, int]:
    column = group.table["session_id"].chunk(0).dictionary_encode()
    local, micros = group.rows(_codes(column)), group.rows(micros_of(group.table))
    names = column.dictionary.to_pylist()
    starts = np.full(len(names) + 1, _NEVER)
    np.minimum.at(starts, local, micros)
    return {name: start for name, start in zip(names, starts.tolist(), strict=False) if start != _NEVER}


_NEVER: Final = 1 << 62


def _codes(column: Any) -> Numbers:
    """Return the place of each text in the dictionary; without one, the place behind it."""
    indices = column.indices
    absent = len(column.dictionary)
    found: Numbers = (indices.fill_null(absent) if indices.null_count else indices).to_numpy()
    return found


class _Known(NamedTuple):
    """The sums of sessions of a row group."""

    sums: Mapping[str, SessionSums]
    asked: frozenset[str] | None
    """Of which sessions they are, as far as these have events there; None: of all."""


_NOTHING: Final = _Known({}, frozenset())


def _of_named(snapshot: Snapshot, project: str, ids: Sequence[str]) -> dict[str, list[SessionSums]]:
    """Return the sums of the events that name one of some sessions."""
    found: dict[str, list[SessionSums]] = {}
    kept: KeptSummaries = snapshot.files.summaries
    reader, wanted = SpanReader(EVERYTHING, ALWAYS), frozenset(ids)
    names_one = Filters(equal={"session_id": tuple(ids)}, kinds="all")
    with RowScan(snapshot, project, names_one, ALWAYS) as scan:
        for piece in scan.pieces:
            snapshot.engine.check()
            for span in scan.spans(piece):
                key = SummaryKey(piece.segment.id, span.group, project, ("sessions",))
                known: _Known = (kept.get(key) if span.is_below else None) or _NOTHING
                if known.asked is not None and not wanted <= known.asked:
                    snapshot.engine.check()
                    known = known if len(known.asked) + len(wanted) <= MOST_ASKED else _NOTHING
                    new = wanted - (known.asked or frozenset())
                    known = _with(known, _summed(reader, scan.opened_coded(piece), span, new))
                    if span.is_below:
                        kept.keep(key, known, _size(known))
                for session in wanted.intersection(known.sums):
                    found.setdefault(session, []).append(known.sums[session])
    return found


def _with(known: _Known, new: _Known) -> _Known:
    """Return both."""
    if known.asked is None or new.asked is None:
        return new
    return _Known({**known.sums, **new.sums}, known.asked | new.asked)


def _summed(reader: SpanReader, opened: OpenFile, span: RowSpan, wanted: frozenset[str]) -> _Known:
    """Return the sums of the sessions of a row group if they are few, else of those that are wanted."""
    group = reader.read(opened, span, ("session_id", *_COLUMNS))
    column = group.table["session_id"].chunk(0).dictionary_encode()
    names, local = column.dictionary.to_pylist(), group.rows(_codes(column))
    is_all = len(names) <= FEW
    chosen = np.array([*(is_all or name in wanted for name in names), False], np.bool_)
    rows = np.flatnonzero(chosen[local])
    rows = rows[np.argsort(local[rows].astype(np.uint16), kind="stable")]  # by radix: 16 bits are not compared
    there, starts, counts = np.unique(local[rows], return_index=True, return_counts=True)
    asked = None if is_all else wanted
    if not len(there):
        return _Known({}, asked)
    sessions = _Sessions(group, rows, starts, np.repeat(np.arange(len(there)), counts), span.piece.segment.partition)
    return _Known(dict(zip([names[place] for place in there.tolist()], sessions.summed(), strict=True)), asked)


class _Sessions(NamedTuple):
    """Rows of a row group, those of each session together."""

    group: RowGroup
    rows: Numbers
    """Among those that are kept."""
    starts: Numbers
    """Where the rows of each session begin."""
    local: Numbers
    """Of each row, the session."""
    partition: int

    def summed(self) -> Iterator[SessionSums]:
        """Yield the sums of each session."""
        micros, added = self._of("timestamp"), []
        for part in _ADDED:
            values = SUMS[part].values(self.group)
            ones = np.ones(len(self.rows), np.bool_) if values is None else values[self.rows]
            low, high = sums_by(self.local, len(self.starts), ones)
            added.append([below + (above << 32) for below, above in zip(low.tolist(), high.tolist(), strict=True)])
        for start, *rest in zip(
            np.minimum.reduceat(micros, self.starts).tolist(),
            self._ends(micros),
            zip(*added, strict=True),
            self._users(micros),
            self._models(),
            self._traces(),
            strict=True,
        ):
            yield SessionSums(start, *rest)

    def _of(self, name: str) -> Numbers:
        column = self.group.table[name].chunk(0)
        found: Numbers = self.group.rows(column.cast("int64").to_numpy())[self.rows]
        return found

    def _ends(self, micros: Numbers) -> list[int]:
        """Return what `sums.END` says."""
        column = self.group.table["latency_ms"].chunk(0)
        if column.null_count:
            raise NotAdded
        exact = np.minimum(self.group.rows(column.to_numpy())[self.rows], sums.MOST_LATENCY) * 1e6
        whole = np.floor(exact)
        nanos = whole + (exact - whole >= 0.5)  # half of one away from zero, as the engine rounds
        if not (float(nanos.min()) >= 0 and float(nanos.max()) < _SOON and int(np.abs(micros).max()) < _SOON // 2000):
            raise NotAdded
        ends: list[int] = np.maximum.reduceat(micros * sums.NANOS + nanos.astype(np.int64), self.starts).tolist()
        return ends

    def _users(self, micros: Numbers) -> list[tuple[Start, str] | None]:
        """Return the first event with a user, and the user."""
        column = self.group.table["user_id"].chunk(0)
        has_one = self.group.rows(column.is_valid().to_numpy(zero_copy_only=False))[self.rows]
        firsts = np.minimum.reduceat(np.where(has_one, micros, _NEVER), self.starts)
        found: list[tuple[Start, str] | None] = [None] * len(self.starts)
        places = np.flatnonzero(has_one & (micros == firsts[self.local]))
        keys = [self._of(name)[places].tolist() for name in ("timestamp", "received_at", "log_offset", "log_index")]
        numbers = np.arange(len(column)) if self.group.kept is None else np.flatnonzero(self.group.kept)
        users = column.take(pa.array(numbers[self.rows[places]])).to_pylist()
        for session, at, received, offset, index, user in zip(self.local[places].tolist(), *keys, users, strict=True):
            each = (at, received, self.partition, offset, index), user
            before = found[session]
            if before is None or each[0] < before[0]:
                found[session] = each
        return found

    def _models(self) -> list[frozenset[str]]:
        """Return those of calls."""
        codes = column_codes(self.group.table["model"])
        local, of_row = self.local, self.group.rows(codes.places)[self.rows]
        if not isinstance(self.group.is_call, bool):
            is_call = self.group.is_call[self.rows]
            local, of_row = local[is_call], of_row[is_call]
        elif not self.group.is_call:
            return [frozenset()] * len(self.starts)
        found: list[set[str]] = [set() for _ in self.starts]
        for pair in np.unique(local * len(codes.values) + of_row).tolist():
            model = codes.values[pair % len(codes.values)]
            if model is None:
                raise NotAdded
            found[pair // len(codes.values)].add(model)
        return [frozenset(each) for each in found]

    def _traces(self) -> Iterator[Any]:
        """Yield the traces of each session."""
        column = self.group.table["trace_id"].chunk(0).dictionary_encode()
        size, sessions = len(column.dictionary) + 1, len(self.starts)
        is_there = np.zeros(sessions * size, np.bool_)
        is_there[self.local * size + self.group.rows(_codes(column))[self.rows]] = True
        if is_there[size - 1 :: size].any():
            raise NotAdded  # an event without a trace
        there = np.flatnonzero(is_there)
        ends = np.searchsorted(there, np.arange(1, sessions + 1) * size).tolist()
        traces = column.dictionary.take(pa.array(there % size))
        return (traces.slice(start, end - start) for start, end in pairwise([0, *ends]))


_SOON: Final = 1 << 62
"""Nanoseconds that fit into 64 bits together with a time."""


def _of_unnamed(snapshot: Snapshot, project: str, ids: Sequence[str], traces: Any) -> Iterator[tuple[str, SessionSums]]:
    """Yield the sums of the events without a session that are of one of some sessions, which have these traces."""
    rows = unnamed_rows(snapshot, project, ids, traces)
    if rows is None:
        return
    first = "row(epoch_us(timestamp), epoch_us(received_at), log_partition, log_offset, log_index)"
    found = snapshot.engine.rows(
        f"SELECT session, {sums.START}, {sums.END}, {', '.join(_ADDED)}, "
        f"min({first}) FILTER (user_id IS NOT NULL), arg_min(user_id, {sums.BY_START}), "
        f"list(DISTINCT model) FILTER ({sums.IS_CALL}), list(DISTINCT trace_id) FROM ({rows.sql}) GROUP BY session",
        rows.params,
    )
    for session, start, end, calls, errors, inputs, outputs, cost, at, user, models, of in found:
        yield (
            session,
            SessionSums(
                start,
                int(end),
                (calls, errors, int(inputs), int(outputs), sums.picodollars(cost)),
                None if user is None else (tuple(at.values()) if isinstance(at, dict) else tuple(at), user),
                frozenset(models or ()),
                pa.array(of, pa.string()),
            ),
        )


def _joined(session: str, parts: Sequence[SessionSums]) -> Row:
    calls, errors, inputs, outputs, cost = (sum(each) for each in zip(*(part.added for part in parts), strict=True))
    users = [part.user for part in parts if part.user is not None]
    traces = (
        len(parts[0].traces)
        if len(parts) == 1
        else pc.count_distinct(pa.concat_arrays([part.traces for part in parts])).as_py()
    )
    return (
        session,
        min(part.start for part in parts),
        max(part.end for part in parts),
        traces,
        calls,
        errors,
        inputs,
        outputs,
        Decimal(f"{cost}e-{PLACES}"),
        min(users)[1] if users else None,
        [*frozenset().union(*(part.models for part in parts))],
    )


def _size(known: _Known) -> int:
    """Return about how many bytes they take."""
    names = {*known.sums, *(known.asked or ())}
    return sum(100 + getsizeof(name) for name in names) + sum(map(_size_of_sums, known.sums.values()))


def _size_of_sums(found: SessionSums) -> int:
    user = 0 if found.user is None else getsizeof(found.user[1])
    models = sum(100 + getsizeof(model) for model in found.models)
    return 1200 + user + models + int(found.traces.nbytes)
