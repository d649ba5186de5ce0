"""The first matching rows in order of time, found without reading, or sorting, all that match.

The order of events is (timestamp, partition, offset, number in the message), which no two share. The rows of a project
lie in a segment in this order, so the row groups of all segments are read from the newest on (or the oldest), by the
times in their footers, until no row group that is left can have a row before the last one found. Columns that the
condition does not need are read of the rows of the answer only.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from msgspec import Struct

from server.explore.conditions import Condition, instant, is_plain
from server.explore.engine import Engine
from server.explore.questions import Filters, Order, Times
from server.explore.segment_files import Groups, OpenFile
from server.explore.snapshot import Piece, Snapshot

MOST_GROUPS: Final = 16
"""Row groups that are read before DuckDB looks at them together; the first look is at one."""

COUNTED: Final = 1_000_000
"""Matching events up to which they are counted."""

_KEY_COLUMNS: Final = frozenset({"timestamp", "log_partition", "log_offset", "log_index", "project"})
_GROUP: Final = 32
"""Bits of a row's number within its row group, in `source`."""


class Key(NamedTuple):
    """The place of an event among all."""

    timestamp: int
    partition: int
    offset: int
    number: int
    """Of the row within the message."""


class Found(NamedTuple):
    """A row, and where it is."""

    key: Key
    span: "Span"
    row: int
    """Its number within the row group."""


class Span(Struct, frozen=True, order=False, eq=False):
    """The rows of a project in one row group."""

    piece: Piece
    group: int
    begin: int
    """First row, within the row group."""
    end: int
    time_min: int
    time_max: int
    is_whole: bool
    """Whether all its rows are of the snapshot, and their kinds are known."""
    calls: int
    """How many are calls, if `is_whole`."""


class RowScan:
    """The matching rows of one question."""

    def __init__(self, snapshot: Snapshot, project: str, filters: Filters, times: Times) -> None:
        """Find out where rows may be; reads no rows. Raises `SegmentGone`."""
        self._snapshot = snapshot
        self._engine: Engine = snapshot.engine
        self._filters = filters
        self._times = times
        self._pieces = snapshot.pieces(project, filters, times)
        self._where = snapshot.condition(project, filters, times, self._pieces)
        self._opened: dict[str, OpenFile] = {}

    def close(self) -> None:
        """Close the files."""
        for each in self._opened.values():
            each.close()
        self._opened.clear()

    def __enter__(self) -> "RowScan":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # --- the first rows ----------------------------------------------------------------------------------------------

    def first(self, order: Order, want: int, after: Key | None = None) -> list[Found]:
        """Return the first `want` rows behind `after`. Raises `Refused`, `Stopped`, `SegmentGone`."""
        found: list[Found] = []
        spans = _Frontier(self, order, after)
        size = 1
        while batch := spans.take(size, found[-1].key if len(found) >= want else None):
            found += self._best(batch, order, want, after)
            found.sort(key=lambda each: each.key, reverse=order == "desc")
            del found[want:]
            size = min(size * 2, MOST_GROUPS)
        return found

    def _best(self, spans: Sequence[Span], order: Order, want: int, after: Key | None) -> list[Found]:
        """Return the first rows of some row groups."""
        where = self._where if after is None else self._where & _behind(after, order)
        table = self._table(spans, where.columns | _KEY_COLUMNS)
        name = self._engine.register(table)
        down = " DESC" if order == "desc" else ""
        keys = ", ".join(f"{column}{down}" for column in ("timestamp", "log_partition", "log_offset", "log_index"))
        rows = self._engine.rows(
            f"SELECT epoch_us(timestamp), log_partition, log_offset, log_index, source FROM {name} "
            f"WHERE {where.sql} ORDER BY {keys} LIMIT ?",
            [*where.params, want],
        )
        self._engine.release(name)
        return [Found(Key(*key), spans[source >> _GROUP], source & ((1 << _GROUP) - 1)) for *key, source in rows]

    def _table(self, spans: Sequence[Span], columns: Iterable[str]) -> Any:
        """Return the rows of row groups, with a column `source` that says where each is from."""
        names, tables = sorted(columns), []
        for number, span in enumerate(spans):
            self._engine.check()
            table = self._file(span.piece).read(span.group, names).slice(span.begin, span.end - span.begin)
            sources = np.arange(span.begin, span.end, dtype=np.int64) + (number << _GROUP)
            tables.append(table.select(names).append_column("source", pa.array(sources)))
        return pa.concat_tables(tables)

    def _file(self, piece: Piece) -> OpenFile:
        found = self._opened.get(piece.segment.id)
        if found is None:
            found = self._opened[piece.segment.id] = self._snapshot.file(piece).opened()
        return found

    # --- whole rows --------------------------------------------------------------------------------------------------

    def table(self, found: Sequence[Found], columns: Sequence[str]) -> Any:
        """Return rows that `first` has found, in their order, as a `pyarrow.Table`. `found` is not empty."""
        by_group: dict[tuple[str, int], list[int]] = {}
        for number, each in enumerate(found):
            by_group.setdefault((each.span.piece.segment.id, each.span.group), []).append(number)
        tables, numbers = [], []
        for members in by_group.values():
            self._engine.check()
            span = found[members[0]].span
            rows = pa.array([found[number].row for number in members], pa.int64())
            tables.append(self._file(span.piece).read(span.group, columns).take(rows))
            numbers += members
        return pa.concat_tables(tables).take(pa.array(np.argsort(numbers)))

    # --- how many ----------------------------------------------------------------------------------------------------

    def count(self, most: int | None = COUNTED) -> int | None:
        """Return how many rows match: exactly, or None for more than `most` of which some have to be looked at."""
        total, unread = 0, []
        for piece in self._pieces:
            known = self._known(piece)
            if known is None:
                unread.append(piece)
            else:
                total += known
        spans: list[Span] = []
        for span in (span for piece in unread for span in self.spans(piece)):
            known = self._known_of(span)
            if known is None:
                spans.append(span)
            else:
                total += known
        if not spans:
            return total
        return self._counted(spans, total, most)

    def _known(self, piece: Piece) -> int | None:
        """Return what the manifest says of the piece; None: its rows have to be looked at."""
        if not is_plain(self._filters) or not piece.is_whole or not piece.is_within(self._times):
            return None
        sums = piece.sums
        return {"all": sums.rows, "call": sums.calls, "span": sums.rows - sums.calls}[self._filters.kinds]

    def _known_of(self, span: Span) -> int | None:
        """Return what the footer says of a row group."""
        times = self._times
        inside = (times.start is None or span.time_min >= times.start) and (
            times.end is None or span.time_max < times.end
        )
        if not (inside and span.is_whole and is_plain(self._filters)):
            return None
        rows = span.end - span.begin
        return {"all": rows, "call": span.calls, "span": rows - span.calls}[self._filters.kinds]

    def _counted(self, spans: Sequence[Span], known: int, most: int | None) -> int | None:
        total = known
        for start in range(0, len(spans), MOST_GROUPS):
            table = self._table(spans[start : start + MOST_GROUPS], self._where.columns)
            name = self._engine.register(table)
            ((rows,),) = self._engine.rows(f"SELECT count(*) FROM {name} WHERE {self._where.sql}", self._where.params)
            self._engine.release(name)
            total += rows
            if most is not None and total > most and start + MOST_GROUPS < len(spans):
                return None
        return total

    def matching(self, span: Span, columns: Sequence[str]) -> Any:
        """Return the matching rows of a row group, in its order, as a `pyarrow.Table`."""
        table = self._table([span], {*columns, *self._where.columns})
        name = self._engine.register(table)
        rows = self._engine.rows(
            f"SELECT source FROM {name} WHERE {self._where.sql} ORDER BY source", self._where.params
        )
        self._engine.release(name)
        if len(rows) < len(table):
            table = table.take(pa.array([row - span.begin for (row,) in rows], pa.int64()))
        return table.select(list(columns))

    def open_all(self) -> list[Span]:
        """Open all files, so that they stay readable when they are deleted; return their row groups."""
        for piece in self._pieces:
            self._file(piece)
        return [span for piece in self._pieces for span in self.spans(piece)]

    def spans(self, piece: Piece) -> Iterator[Span]:
        """Yield the row groups of a piece that may have rows of the times asked for; reads the footer."""
        groups = self._snapshot.file(piece).groups
        first, last = piece.sums.first_row, piece.sums.first_row + piece.sums.rows
        ends = groups.first_row + groups.rows
        wanted = (ends > first) & (groups.first_row < last)
        if self._times.start is not None:
            wanted &= groups.time_max >= self._times.start
        if self._times.end is not None:
            wanted &= groups.time_min < self._times.end
        numbers = np.flatnonzero(wanted)
        if piece.groups is not None:
            numbers = np.intersect1d(numbers, np.array(piece.groups, np.int64))
        for number in numbers.tolist():
            yield _span(piece, groups, number, first, last)


def _span(piece: Piece, groups: Groups, number: int, first: int, last: int) -> Span:
    start, rows = int(groups.first_row[number]), int(groups.rows[number])
    begin, end = max(first - start, 0), min(last - start, rows)
    calls = int(groups.calls[number])
    if calls == rows:  # all are calls, so of a part of them all are
        calls = end - begin
    below = piece.since is None and (piece.before is None or int(groups.offset_max[number]) < piece.before)
    return Span(
        piece=piece,
        group=number,
        begin=begin,
        end=end,
        time_min=int(groups.time_min[number]),
        time_max=int(groups.time_max[number]),
        is_whole=below and calls >= 0,
        calls=calls,
    )


def _behind(after: Key, order: Order) -> Condition:
    """Return the condition of rows that come behind a place."""
    sign = "<" if order == "desc" else ">"
    moment = instant(after.timestamp)
    sql = (
        f"(timestamp {sign} ? OR (timestamp = ? AND (log_partition {sign} ? OR (log_partition = ? AND "
        f"(log_offset {sign} ? OR (log_offset = ? AND log_index {sign} ?))))))"
    )
    params = [moment, moment, after.partition, after.partition, after.offset, after.offset, after.number]
    return Condition(sql, params, _KEY_COLUMNS)


class _Frontier:
    """The row groups that have not been read, those that may have the first rows before the others."""

    def __init__(self, scan: RowScan, order: Order, after: Key | None) -> None:
        self._scan = scan
        self._sign = -1 if order == "desc" else 1
        self._after = after
        self._count = 0
        self._heap: list[tuple[int, int, Piece | Span]] = []
        for piece in scan._pieces:  # noqa: SLF001 - a part of it
            self._push(piece, piece.sums.time_min, piece.sums.time_max)

    def _push(self, what: Piece | Span, time_min: int, time_max: int) -> None:
        if self._after is not None:  # what lies wholly before the place has been on earlier pages
            at = self._after.timestamp
            if (time_min > at) if self._sign < 0 else (time_max < at):
                return
        self._count += 1
        heapq.heappush(self._heap, (-time_max if self._sign < 0 else time_min, self._count, what))

    def take(self, most: int, last: Key | None) -> list[Span]:
        """Return up to `most` row groups; none that can only have rows behind `last`, the last one that is needed."""
        taken: list[Span] = []
        while self._heap and len(taken) < most:
            time, _, what = self._heap[0]
            if last is not None and time > self._sign * last.timestamp:
                break
            heapq.heappop(self._heap)
            if isinstance(what, Span):
                taken.append(what)
                continue
            for span in self._scan.spans(what):
                self._push(span, span.time_min, span.time_max)
        return taken
