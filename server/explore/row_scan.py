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
from numpy.typing import NDArray

from processor.core.kernel.loaded import kernel
from processor.event_store.schema import SCHEMA
from server.explore.conditions import Condition, instant, is_plain, within
from server.explore.engine import Engine
from server.explore.gathered_rows import GatheredRows
from server.explore.open_segments import OpenFiles
from server.explore.questions import Filters, Order, Times
from server.explore.segment_files import Groups, OpenFile, plain
from server.explore.snapshot import Piece, Snapshot, ids_of

FEW_GROUPS: Final = 8
"""Row groups that are read here, one by one; more of them DuckDB reads from the files, by the times in question. It
parses all footers then, but compares a million texts in 7 ms instead of 40."""

SCATTERED: Final = 4
"""Row groups of one file from which on DuckDB reads the rows of an answer where the kernel does not run: it parses the
footer, but then takes 5 ms for a row in each instead of 12."""

GATHERED: Final = 65_536
"""Rows with an id that are held at a time."""

NESTED: Final = frozenset({"tags", "tools_used"})
"""Columns that DuckDB reads ten times as fast from files as from tables in memory."""

COUNTED: Final = 1_000_000
"""Matching events up to which they are counted."""

MOST_GROWTH: Final = 8
"""So many times as many row groups are looked at next."""

_KEY_COLUMNS: Final = frozenset({"timestamp", "log_partition", "log_offset", "log_index", "project"})
_GROUP: Final = 32
"""Bits of a row's number within its row group, in `source`."""


class EventPlace(NamedTuple):
    """The place of an event among all."""

    timestamp: int
    partition: int
    offset: int
    number: int
    """Of the row within the message."""


class FoundRow(NamedTuple):
    """A row, and where it is."""

    key: EventPlace
    piece: Piece
    group: int
    row: int
    """Its number within the row group."""


class RowSpan(Struct, frozen=True, order=False, eq=False):
    """The rows of a project in one row group."""

    piece: Piece
    group: int
    begin: int
    """First row, within the row group."""
    end: int
    low: tuple[int, int, int]
    """No row comes before this (timestamp, partition, offset)."""
    high: tuple[int, int, int]
    """No row comes after this."""
    is_below: bool
    """Whether all its rows are of the snapshot, by the offsets of their messages."""
    is_whole: bool
    """Whether, besides, their kinds are known."""
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
        self._ids = ids_of(filters)
        self._same = {column: texts[0] for column, texts in self._ids.items() if len(texts) == 1}
        """Columns of which all rows that are found have the same text."""
        self._is_by_id = (
            kernel is not None and bool(self._ids) and filters == Filters(equal=self._ids, kinds=filters.kinds)
        )
        """Whether nothing but ids and a kind is asked for, and the kernel reads a few rows."""
        self._opened = OpenFiles(lambda piece: snapshot.file(piece).opened())
        self._coded = OpenFiles(lambda piece: snapshot.file(piece).opened_coded())

    @property
    def pieces(self) -> Sequence[Piece]:
        """Where matching rows may be."""
        return self._pieces

    def close(self) -> None:
        """Close the files."""
        self._opened.close()
        self._coded.close()

    def __enter__(self) -> "RowScan":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def opened_coded(self, piece: Piece) -> OpenFile:
        """Return the file of a piece, open until that of another is asked for, as `SegmentFile.opened_coded`."""
        return self._coded.get(piece)

    # --- the first rows ----------------------------------------------------------------------------------------------

    def first(self, order: Order, want: int, after: EventPlace | None = None) -> list[FoundRow]:
        """Return the first `want` rows behind `after`. Raises `Refused`, `Stopped`, `SegmentGone`."""
        found: dict[EventPlace, FoundRow] = {}
        spans, last = _Frontier(self, order, after), None
        is_nested = not NESTED.isdisjoint(self._where.columns)
        size = 1
        while batch := spans.take(size, last):
            few = self._ids or (len(batch) <= FEW_GROUPS and not is_nested)
            best = self._best_by_id(batch, order, want, after) if self._is_by_id else None
            if best is None:
                best = self._best(batch, order, want, after) if few else self._best_of_files(batch, order, want, after)
            found |= {each.key: each for each in best}  # times overlap, so a row may be found again
            keys = sorted(found, reverse=order == "desc")[:want]
            found = {key: found[key] for key in keys}
            last = keys[-1] if len(keys) >= want else None
            if self._ids:
                size = _next_size(len(batch), len(best), want - len(keys))
            else:
                size *= 8 if is_nested or size >= FEW_GROUPS else 2
        return [*found.values()]

    def _best_by_id(
        self, spans: Sequence[RowSpan], order: Order, want: int, after: EventPlace | None
    ) -> list[FoundRow] | None:
        """Return the same where nothing but ids, a kind and times are asked for, which are compared here: a table for
        DuckDB, and its look at it, took 2 ms. None: a row group has more rows than the kernel reads one by one."""
        found = []
        for span in spans:
            self._engine.check()
            rows = self._rows_with_ids(span)
            if not len(rows):
                continue
            keys = self._keys(span, rows)
            if keys is None:
                return None
            if after is not None:
                keys = [each for each in keys if (each[0] < after if order == "desc" else each[0] > after)]
            keys.sort(reverse=order == "desc")
            found += [FoundRow(key, span.piece, span.group, row) for key, row in keys[:want]]
        return found

    def _keys(self, span: RowSpan, rows: NDArray[np.int64]) -> list[tuple[EventPlace, int]] | None:
        """Return those of some rows with the ids that match, and their places; None: they are too many."""
        piece, kinds, times = span.piece, self._filters.kinds, self._times
        columns = ["timestamp", "log_offset", "log_index", "project"]
        is_kind_known = kinds == "all" or span.calls == (span.end - span.begin if kinds == "call" else 0)
        values = self._file(piece).values(span.group, columns if is_kind_known else [*columns, "kind"], rows)
        if values is None:
            return None
        partition, project = piece.segment.partition, piece.sums.project
        found = [
            (EventPlace(at, partition, offset, number), row)
            for at, offset, number, of, row in zip(*values[:4], rows.tolist(), strict=True)
            if of == project
        ]
        if not is_kind_known:
            found = [each for each, kind in zip(found, values[4], strict=True) if kind == kinds]
        if not is_inside(span, times):
            start, end = times.start, times.end
            found = [
                each
                for each in found
                if (start is None or each[0].timestamp >= start) and (end is None or each[0].timestamp < end)
            ]
        if not span.is_below:
            since, before = piece.since, piece.before
            found = [
                each
                for each in found
                if (since is None or each[0].offset >= since) and (before is None or each[0].offset < before)
            ]
        return found

    def _best(self, spans: Sequence[RowSpan], order: Order, want: int, after: EventPlace | None) -> list[FoundRow]:
        """Return the first rows of some row groups, and perhaps others."""
        where = self._where if after is None else self._where & _behind(after, order)
        found = []
        for table in self._tables(spans, where.columns | _KEY_COLUMNS):
            name = self._engine.register(table)
            rows = self._engine.rows(
                f"SELECT {_KEY}, source FROM {name} WHERE {where.sql} ORDER BY {_sorting(order)} LIMIT ?",
                [*where.params, want],
            )
            self._engine.release(name)
            for *key, source in rows:
                span = spans[source >> _GROUP]
                found.append(FoundRow(EventPlace(*key), span.piece, span.group, source & ((1 << _GROUP) - 1)))
        return found

    def _best_of_files(
        self, spans: Sequence[RowSpan], order: Order, want: int, after: EventPlace | None
    ) -> list[FoundRow]:
        """Return the first rows of the times of some row groups, in their files."""
        start, end = min(span.low[0] for span in spans), max(span.high[0] for span in spans) + 1
        where = self._where & within(Times(start, end))
        where = where if after is None else where & _behind(after, order)
        pieces = {str(self._snapshot.path(span.piece)): span.piece for span in spans}
        rows = self._engine.rows(
            f"SELECT {_KEY}, filename, file_row_number FROM read_parquet(?, filename = true, file_row_number = true) "
            f"WHERE {where.sql} ORDER BY {_sorting(order)} LIMIT ?",
            [[*pieces], *where.params, want],
        )
        return [self._at(EventPlace(*key), pieces[path], row) for *key, path, row in rows]

    def _at(self, key: EventPlace, piece: Piece, row: int) -> FoundRow:
        """Return a row by its number in the file."""
        starts = self._snapshot.file(piece).groups.first_row
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return FoundRow(key, piece, group, row - int(starts[group]))

    def _tables(self, spans: Sequence[RowSpan], columns: Iterable[str]) -> Iterable[Any]:
        """Return the rows of row groups, with a column `source` that says where each is from; if ids are asked for,
        only those that have them."""
        return self._tables_with_ids(spans, sorted(columns)) if self._ids else [self._table(spans, sorted(columns))]

    def _tables_with_ids(self, spans: Sequence[RowSpan], names: list[str]) -> Iterator[Any]:
        rows, sources = GatheredRows(names), [np.empty(0, np.int64)]
        for number, span in enumerate(spans):
            self._engine.check()
            found = self._rows_with_ids(span)
            if len(found):
                rows.add(self._file(span.piece), span.group, found, self._same)
                sources.append(found + (number << _GROUP))
            if rows.count and (rows.count > GATHERED or number == len(spans) - 1):
                yield rows.table().append_column("source", pa.array(np.concatenate(sources)))
                rows, sources = GatheredRows(names), []

    def _rows_with_ids(self, span: RowSpan) -> NDArray[np.int64]:
        """Return the rows of a row group, by their numbers in it, that have the ids asked for."""
        found = self._file(span.piece).find(span.group, self._ids)
        return found[(found >= span.begin) & (found < span.end)]

    def _table(self, spans: Sequence[RowSpan], names: list[str]) -> Any:
        tables = []
        for number, span in enumerate(spans):
            self._engine.check()
            table = self._file(span.piece).read(span.group, names).slice(span.begin, span.end - span.begin)
            sources = np.arange(span.begin, span.end, dtype=np.int64) + (number << _GROUP)
            tables.append(table.select(names).append_column("source", pa.array(sources)))
        return pa.concat_tables(tables).unify_dictionaries()

    def coded(self, span: RowSpan, columns: Sequence[str]) -> Any:
        """Return the rows of the project in a row group, with dictionaries as `OpenFile.read_coded` gives them."""
        return self._file(span.piece).read_coded(span.group, columns).slice(span.begin, span.end - span.begin)

    def _file(self, piece: Piece) -> OpenFile:
        return self._opened.get(piece)

    # --- whole rows --------------------------------------------------------------------------------------------------

    def table(self, found: Sequence[FoundRow], columns: Sequence[str]) -> Any:
        """Return rows that `first` has found, in their order, as a `pyarrow.Table`. `found` is not empty."""
        by_file: dict[str, dict[int, list[int]]] = {}
        for number in sorted(range(len(found)), key=lambda number: found[number].row):
            each = found[number]
            by_file.setdefault(each.piece.segment.id, {}).setdefault(each.group, []).append(number)
        chosen = GatheredRows(columns)
        tables: list[Any] = []
        numbers: list[int] = []
        last: list[int] = []
        for groups in by_file.values():
            if kernel is None and len(groups) >= SCATTERED:
                members = [number for each in groups.values() for number in each]
                tables.append(self._scattered([found[number] for number in members], columns))
                numbers += members
                continue
            for group, members in groups.items():
                self._engine.check()
                rows = np.array([found[number].row for number in members], np.int64)
                times = [found[number].key.timestamp for number in members]
                chosen.add(self._file(found[members[0]].piece), group, rows, self._same, {"timestamp": times})
                last += members
        tables += [chosen.table()] if last else []
        return pa.concat_tables(tables).take(pa.array(np.argsort(numbers + last)))

    def _scattered(self, found: Sequence[FoundRow], columns: Sequence[str]) -> Any:
        """Return rows of many row groups of one file."""
        piece = found[0].piece
        starts = self._snapshot.file(piece).groups.first_row
        rows = [int(starts[each.group]) + each.row for each in found]
        names = ", ".join(SCHEMA.field(name).name for name in columns)
        table = self._engine.table(
            f"SELECT {names}, file_row_number FROM read_parquet(?, file_row_number = true) "
            f"WHERE file_row_number IN ({', '.join('?' * len(rows))})",
            [[str(self._snapshot.path(piece))], *rows],
        )
        places = {row: place for place, row in enumerate(table["file_row_number"].to_pylist())}
        return plain(table.take(pa.array([places[row] for row in rows], pa.int64())).select(list(columns)))

    # --- how many ----------------------------------------------------------------------------------------------------

    def count(self, most: int | None = COUNTED) -> int | None:
        """Return how many rows match: exactly, or None for more than `most` of which some have to be looked at."""
        total = 0
        spans: list[RowSpan] = []
        scanned: list[Piece] = []
        for piece in self._pieces:
            known = self._known(piece)
            if known is not None:
                total += known
                continue
            unread = [(span, self._known_of(span)) for span in self.spans(piece)]
            some = [span for span, known in unread if known is None]
            if len(some) > FEW_GROUPS or (some and not NESTED.isdisjoint(self._where.columns)):
                scanned.append(piece)
                continue
            spans += some
            total += sum(known or 0 for _, known in unread)
        for start in range(0, len(spans), FEW_GROUPS):
            total += self._counted(spans[start : start + FEW_GROUPS])
        return self._counted_in_files(scanned, total, most) if scanned else total

    def _known(self, piece: Piece) -> int | None:
        """Return what the manifest or the index says of the piece; None: its rows have to be looked at."""
        if not piece.is_whole or not piece.is_within(self._times):
            return None
        found = (piece.sums.rows, piece.sums.calls) if is_plain(self._filters) else self._known_of_users(piece)
        if found is None:
            return None
        rows, calls = found
        return {"all": rows, "call": calls, "span": rows - calls}[self._filters.kinds]

    def _known_of_users(self, piece: Piece) -> tuple[int, int] | None:
        """Return how many rows, and calls, some users have, if nothing else is asked for and the index says so."""
        users = self._filters.equal.get("user_id", ())
        if None in users or self._filters != Filters(equal={"user_id": users}, kinds=self._filters.kinds):
            return None
        segment, project = piece.segment, piece.sums.project
        found = [self._snapshot.files.tally(segment, project, user) for user in {*users} if user is not None]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        return sum(each.rows for each in known), sum(each.calls for each in known)

    def _known_of(self, span: RowSpan) -> int | None:
        """Return what the footer says of a row group, and the ids in it, if nothing else is asked for."""
        rows, kinds = span.end - span.begin, self._filters.kinds
        if not (is_inside(span, self._times) and span.is_whole):
            return None
        if is_plain(self._filters):
            return {"all": rows, "call": span.calls, "span": rows - span.calls}[kinds]
        has_kind = {"all": True, "call": span.calls == rows, "span": span.calls == 0}[kinds]
        if not has_kind or self._filters != Filters(equal=self._ids, kinds=kinds):
            return None
        self._engine.check()
        return len(self._rows_with_ids(span))

    def _counted(self, spans: Sequence[RowSpan]) -> int:
        total = 0
        for table in self._tables(spans, self._where.columns):
            name = self._engine.register(table)
            ((rows,),) = self._engine.rows(f"SELECT count(*) FROM {name} WHERE {self._where.sql}", self._where.params)
            self._engine.release(name)
            total += int(rows)
        return total

    def _counted_in_files(self, pieces: Sequence[Piece], known: int, most: int | None) -> int | None:
        """Return `known` and the matching rows of some files; None for more than `most`."""
        paths = [str(self._snapshot.path(piece)) for piece in pieces]
        limit = 2**62 if most is None else max(most + 1 - known, 0)
        ((rows,),) = self._engine.rows(
            f"SELECT count(*) FROM (SELECT 1 FROM read_parquet(?) WHERE {self._where.sql} LIMIT ?)",
            [paths, *self._where.params, limit],
        )
        total = known + int(rows)
        return total if most is None or total <= most else None

    def matching(self, span: RowSpan, columns: Sequence[str]) -> Any:
        """Return the matching rows of a row group, in its order, as a `pyarrow.Table`.

        Columns that the condition does not need are read only if there are any.
        """
        rows: list[tuple[int]] = []
        for table in self._tables([span], self._where.columns):
            name = self._engine.register(table)
            sql = f"SELECT source FROM {name} WHERE {self._where.sql} ORDER BY source"
            rows += self._engine.rows(sql, self._where.params)
            self._engine.release(name)
        if not rows:
            return pa.schema([SCHEMA.field(name) for name in columns]).empty_table()
        return self._file(span.piece).take(span.group, columns, np.array(rows, np.int64)[:, 0])

    def open_all(self) -> list[RowSpan]:
        """Open all files, so that they stay readable when they are deleted; return their row groups."""
        self._opened.keep_all()
        for piece in self._pieces:
            self._file(piece)
        return [span for piece in self._pieces for span in self.spans(piece)]

    def spans(self, piece: Piece) -> Iterator[RowSpan]:
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


def _span(piece: Piece, groups: Groups, number: int, first: int, last: int) -> RowSpan:
    start, rows = int(groups.first_row[number]), int(groups.rows[number])
    begin, end = max(first - start, 0), min(last - start, rows)
    calls = int(groups.calls[number])
    if calls == rows:  # all are calls, so of a part of them all are
        calls = end - begin
    partition = piece.segment.partition
    below = piece.since is None and (piece.before is None or int(groups.offset_max[number]) < piece.before)
    return RowSpan(
        piece=piece,
        group=number,
        begin=begin,
        end=end,
        low=(int(groups.time_min[number]), partition, int(groups.offset_min[number])),
        high=(int(groups.time_max[number]), partition, int(groups.offset_max[number])),
        is_below=below,
        is_whole=below and calls >= 0,
        calls=calls,
    )


def is_inside(span: RowSpan, times: Times) -> bool:
    """Return whether all rows of a row group are of these times."""
    after_start = times.start is None or span.low[0] >= times.start
    return after_start and (times.end is None or span.high[0] < times.end)


def kept_of_span(table: Any, span: RowSpan, times: Times) -> NDArray[np.bool_] | None:
    """Return which rows of a row group are of these times and of the snapshot; None: all.

    `table` has their times unless `is_inside`, and their offsets unless they are `is_below`.
    """
    masks = []
    if not is_inside(span, times):
        micros = table["timestamp"].chunk(0).cast("int64").to_numpy()
        masks += [micros >= times.start] if times.start is not None else []
        masks += [micros < times.end] if times.end is not None else []
    if not span.is_below:
        offsets, piece = table["log_offset"].chunk(0).to_numpy(), span.piece
        masks += [offsets >= piece.since] if piece.since is not None else []
        masks += [offsets < piece.before] if piece.before is not None else []
    return np.logical_and.reduce(masks) if masks else None


def _behind(after: EventPlace, order: Order) -> Condition:
    """Return the condition of rows that come behind a place."""
    sign = "<" if order == "desc" else ">"
    moment = instant(after.timestamp)
    sql = (
        f"(timestamp {sign} ? OR (timestamp = ? AND (log_partition {sign} ? OR (log_partition = ? AND "
        f"(log_offset {sign} ? OR (log_offset = ? AND log_index {sign} ?))))))"
    )
    params = [moment, moment, after.partition, after.partition, after.offset, after.offset, after.number]
    return Condition(sql, params, _KEY_COLUMNS)


_KEY: Final = "epoch_us(timestamp), log_partition, log_offset, log_index"


def _sorting(order: Order) -> str:
    down = " DESC" if order == "desc" else ""
    return ", ".join(f"{column}{down}" for column in ("timestamp", "log_partition", "log_offset", "log_index"))


def _next_size(groups: int, found: int, missing: int) -> int:
    """Return how many row groups are read next, where some had so many rows, and so many are missing: about as many as
    have them, for each look at rows takes 2 ms, and a row group half of one."""
    most = MOST_GROWTH * groups
    return max(1, min(most, missing * groups // found + 1)) if found else most


class _Frontier:
    """The row groups that have not been read, those that may have the first rows before the others."""

    def __init__(self, scan: RowScan, order: Order, after: EventPlace | None) -> None:
        self._scan = scan
        self._is_down = order == "desc"
        self._after = None if after is None else after[:3]
        self._count = 0
        self._heap: list[tuple[tuple[int, ...], int, Piece | RowSpan]] = []
        for piece in scan._pieces:  # noqa: SLF001 - a part of it
            segment, sums = piece.segment, piece.sums
            low = (sums.time_min, segment.partition, segment.start)
            self._push(piece, low, (sums.time_max, segment.partition, segment.end))

    def _push(self, what: Piece | RowSpan, low: tuple[int, ...], high: tuple[int, ...]) -> None:
        if self._after is not None and (low > self._after if self._is_down else high < self._after):
            return  # all of it has been on earlier pages
        self._count += 1
        heapq.heappush(self._heap, (tuple(-each for each in high) if self._is_down else low, self._count, what))

    def take(self, most: int, last: EventPlace | None) -> list[RowSpan]:
        """Return up to `most` row groups; none that can only have rows behind `last`, the last one that is needed."""
        taken: list[RowSpan] = []
        limit = None if last is None else tuple(-each if self._is_down else each for each in last[:3])
        while self._heap and len(taken) < most:
            first, _, what = self._heap[0]
            if limit is not None and first > limit:
                break
            heapq.heappop(self._heap)
            if isinstance(what, RowSpan):
                taken.append(what)
                continue
            for span in self._scan.spans(what):
                self._push(span, span.low, span.high)
        return taken
