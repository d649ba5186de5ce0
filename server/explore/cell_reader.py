"""Metrics in one pass over the row groups, in numpy.

DuckDB (`aggregation`) can compute every measure of every group and is the truth that this is tested against. It takes
twice as long for what pages ask for: it makes a text of the tag of each row, and keeps the values for quantiles once
for each way of grouping. Here texts stay the numbers of their dictionaries, values are kept once, and columns are read
only where the manifest and the footer do not say already what is in them.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from server.explore import sums
from server.explore.cell_parts import RANKED, SUMS, RowGroup, ranked_column
from server.explore.cells import LOW, Cells, Key, Numbers, TooMany
from server.explore.kept_cells import CellKeeper, add_to, packed
from server.explore.measures import Quantile
from server.explore.questions import Filters, MetricsQuestion
from server.explore.row_scan import RowScan, RowSpan
from server.explore.segment_files import OpenFile
from server.explore.snapshot import Piece, Snapshot
from server.explore.span_reader import FIELDS, TAG, SpanReader, codes_of, is_filtered_by_fields, micros_of

MOST_GROUPS: Final = 1000
"""Groups up to which this is worth while."""
MOST_LOCAL: Final = 1 << 16
"""Combinations of the values of the keys, and of the intervals, of one row group."""

_EVER: Final = -(1 << 63)
"""Where the only interval begins if none are asked for."""


def read_cells(
    snapshot: Snapshot,
    question: MetricsQuestion,
    parts: Sequence[str | Quantile],
    starts: Sequence[int] | None,
    *,
    exact: bool = True,
) -> Cells | None:
    """Return the cells of all matching events; None: it is not made for this question, or there are too many groups.

    `starts`: where each interval begins, ascending; `exact`: whether quantiles are, as in `aggregation`. Raises
    `Refused`, `Stopped`, `SegmentGone`.
    """
    if not _is_for(question, parts):
        return None
    reader = _Reader(snapshot, question, parts, starts, exact=exact)
    try:
        return reader.read()
    except TooMany:
        return None


def _is_for(question: MetricsQuestion, parts: Iterable[str | Quantile]) -> bool:
    return (
        is_filtered_by_fields(question.filters)
        and all(name in FIELDS or name.startswith(TAG) for name in question.group_by)
        and all(part in SUMS if isinstance(part, str) else (part.column, part.condition) in RANKED for part in parts)
    )


class _Reader:
    """The pass over the rows."""

    def __init__(
        self,
        snapshot: Snapshot,
        question: MetricsQuestion,
        parts: Sequence[str | Quantile],
        starts: Sequence[int] | Numbers | None,
        *,
        exact: bool,
    ) -> None:
        self._snapshot = snapshot
        self._is_exact = exact
        self._parts = parts
        self._question = question
        self._filters = question.filters
        self._times = question.times
        self._starts = np.array([_EVER] if starts is None else starts, np.int64)
        self._cells = Cells(parts)
        self._sums = {part: SUMS[part] for part in (sums.REQUESTS, *parts) if isinstance(part, str)}
        self._quantiles = {column for column in map(ranked_column, parts) if column is not None}
        self._texts: list[dict[str | None, int]] = [{} for _ in question.group_by]
        """Of each key, its different values so far, with their numbers."""
        self._groups: set[Key] = set()
        self._known: dict[tuple[int, ...], int] = {}
        """Numbers of the values of the keys, and of the interval -> cell."""
        self._columns = self._always()
        self._spans = SpanReader(self._filters, self._times)
        self._keeper: CellKeeper | None = None
        if not (self._quantiles and exact):  # of these the values are held
            self._keeper = CellKeeper(snapshot.files.summaries, question, parts, self._starts)

    def _always(self) -> set[str]:
        """Return the columns that each row group is read with, besides those of filters."""
        found = {*self._quantiles}
        found.update(name for name in self._question.group_by if not name.startswith(TAG))
        found.update(*(each.columns for each in self._sums.values()))
        if any(name.startswith(TAG) for name in self._question.group_by):
            found.add("tags")
        return found

    def read(self) -> Cells:
        """Read all rows."""
        with RowScan(self._snapshot, self._question.project, self._filters, self._times) as scan:
            for piece in scan.pieces:
                self._snapshot.engine.check()
                if not self._add_known(piece) and not self._add_kept(scan, piece):
                    self._add_piece(scan, piece)
        return self._cells

    def _add_kept(self, scan: RowScan, piece: Piece) -> bool:
        """Add the cells of a piece from what is kept of it, and keep them; False: they are not kept."""
        if self._keeper is None or not (piece.is_whole and piece.is_within(self._times)):
            return False
        first, found = self._interval(piece.sums.time_min), self._keeper.get(piece)
        if found is None:
            alone = _Reader(self._snapshot, self._question, self._parts, self._starts, exact=self._is_exact)
            alone._add_piece(scan, piece)
            found = packed(alone._cells, first)
            self._keeper.keep(piece, found)
            self._snapshot.engine.goes_on = self._keeper.has_room
        self._groups.update(key for key, _ in found.numbers)
        if len(self._groups) > MOST_GROUPS:
            raise TooMany
        add_to(self._cells, found, first)
        return True

    def _add_known(self, piece: Piece) -> bool:
        """Add what the manifest says of a piece, if that is all there is to know."""
        if self._question.group_by or self._quantiles or self._filters != Filters(kinds="call"):
            return False
        names = [each.known for each in self._sums.values()]
        first, last = (self._interval(at) for at in (piece.sums.time_min, piece.sums.time_max))
        if None in names or first != last or not (piece.is_whole and piece.is_within(self._times)):
            return False
        if not piece.sums.calls:
            return True
        cell = np.array([self._cells.number((), first)])
        for part, each in self._sums.items():
            value = piece.sums.calls if each.known == "rows" else getattr(piece.sums, each.known or "")
            self._cells.add(part, cell, np.array([value & LOW]), np.array([value >> 32]))
        return True

    def _interval(self, at: int) -> int:
        """Return the number of the interval that a time lies in."""
        return int(np.searchsorted(self._starts, at, "right")) - 1

    def _add_piece(self, scan: RowScan, piece: Piece) -> None:
        opened = self._snapshot.file(piece).opened_coded()
        try:
            for span in scan.spans(piece):
                self._snapshot.engine.check()
                self._add_span(opened, span)
        finally:
            opened.close()

    def _add_span(self, opened: OpenFile, span: RowSpan) -> None:
        """Add the rows of a row group."""
        group, intervals = self._read(opened, span)
        rows = span.end - span.begin if group.kept is None else int(np.count_nonzero(group.kept))
        if not rows:
            return
        local, cells = self._local(group, rows, intervals)
        for part, each in self._sums.items():
            low, high = sums_by(local, len(cells), each.values(group))
            self._cells.add(part, cells, low, high)
        for column in self._quantiles:
            self._add_quantile(group, column, local, cells)

    def _read(self, opened: OpenFile, span: RowSpan) -> tuple[RowGroup, Numbers | int]:
        """Return a row group, and the numbers of the intervals of its matching rows."""
        first, last = self._interval(span.low[0]), self._interval(span.high[0])
        columns = self._columns if first == last else {*self._columns, "timestamp"}
        group = self._spans.read(opened, span, columns)
        if first == last:
            return group, first
        return group, np.searchsorted(self._starts, group.rows(micros_of(group.table)), "right") - 1

    def _local(self, group: RowGroup, rows: int, intervals: Numbers | int) -> tuple[Numbers, Numbers]:
        """Return of each row which of some cells it is in, and these cells."""
        found, size = np.zeros(rows, np.int64), 1
        sizes: list[int] = []
        for field, texts in zip(self._question.group_by, self._texts, strict=True):
            codes = codes_of(group.table, field)
            if len(codes.values) > MOST_LOCAL:
                raise TooMany
            numbers = np.array([texts.setdefault(value, len(texts)) for value in codes.values])
            found = found * len(texts) + group.rows(numbers[codes.places])
            sizes.append(len(texts))
            size *= len(texts)
        first = intervals if isinstance(intervals, int) else int(intervals.min())
        if not isinstance(intervals, int):
            width = int(intervals.max()) - first + 1
            found, size = found * width + (intervals - first), size * width
            sizes.append(width)
        if size > MOST_LOCAL:
            raise TooMany
        there = np.flatnonzero(np.bincount(found, minlength=size))
        cells = self._cells_at(there, sizes, first)
        if len(self._groups) > MOST_GROUPS:
            raise TooMany
        places = np.zeros(size, np.int64)
        places[there] = np.arange(len(there))
        return places[found], cells

    def _cells_at(self, there: Numbers, sizes: Sequence[int], first: int) -> Numbers:
        """Return the cells of combinations of `_local`: numbers whose digits have `sizes` as their bases, those of the
        keys, and that of the interval from `first` on, unless all are in that one."""
        digits = [each.tolist() for each in np.unravel_index(there, sizes)] if sizes else []
        keys = len(self._texts)
        intervals = [first + digit for digit in digits[keys]] if len(digits) > keys else [first] * len(there)
        places = [*zip(*digits[:keys], intervals, strict=True)]
        new = [place for place in places if place not in self._known]
        if new:
            names = [[*texts] for texts in self._texts]
            for place in new:
                key = tuple(texts[digit] for texts, digit in zip(names, place[:-1], strict=True))
                self._groups.add(key)
                self._known[place] = self._cells.number(key, place[-1])
        return np.array([self._known[place] for place in places], np.int64)

    def _add_quantile(self, group: RowGroup, column: str, local: Numbers, cells: Numbers) -> None:
        """Add the values of a column, those of each cell together."""
        array = group.table[column].chunk(0)
        values = group.rows(array.to_numpy(zero_copy_only=False))
        counts = values > 0 if column == "latency_ms" else ~group.rows(array.is_null().to_numpy(zero_copy_only=False))
        if not counts.all():
            values, local = values[counts], local[counts]
        if not self._is_exact:
            self._cells.count_values(column, cells[local], values)
            return
        order = np.argsort(local.astype(np.uint16), kind="stable")  # by radix: 16 bits are not compared
        bounds = [*accumulate(np.bincount(local, minlength=len(cells)).tolist(), initial=0)]
        values = values[order]
        for cell, (start, end) in zip(cells.tolist(), pairwise(bounds), strict=True):
            if end > start:
                self._cells.add_values(column, cell, values[start:end])


def sums_by(local: Numbers, size: int, values: NDArray[Any] | None) -> tuple[Numbers, Numbers]:
    """Return the sums of numbers by cell, as low and high limbs of 32 bits; `bincount` adds up as doubles, exactly as
    long as no sum reaches 2**53."""
    if values is None or values.dtype == np.bool_:
        counted = np.bincount(local if values is None else local[values], minlength=size)
        return counted, np.zeros(size, np.int64)
    if int(values.max(initial=0)) * len(values) < _EXACT:
        return np.bincount(local, values, size).astype(np.int64), np.zeros(size, np.int64)
    low, high = (np.bincount(local, limb, size).astype(np.int64) for limb in (values & LOW, values >> 32))
    return low, high


_EXACT: Final = 1 << 53
