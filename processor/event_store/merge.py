"""Merging the rows of several segments of a partition into the order of one, a row group at a time.

The order is known before any row is read: of every segment the projects and times alone are read, and sorted. Each
segment is in order itself, so a row group of the result takes the next rows of each, and they are read as they are
needed, a few pages at a time. Memory holds 30 bytes a row for the order, and of each segment that is being read some
thousand rows and a page of each column.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from processor.core.kernel.loaded import kernel
from processor.event_store import row_sizes, segment_file
from processor.event_store.compiled_take import MOST_LETTERS, TakenBatch, Taking
from processor.event_store.schema import FEW_VALUES, ROW_BYTES, WRITTEN, row_bytes

BATCH: Final = 8192
"""Most rows of a segment that are unpacked at a time. With 1,024, joining the pieces took half as long as reading
them."""
BATCH_BYTES: Final = 32 << 20
"""Bytes that those of all segments may take unpacked: of many segments, or large rows, there are fewer."""
MOST_CODED: Final = 512 << 10
"""Bytes that a row group of a column has if it is read as a dictionary: this, and two for each row."""
MOST_TAKEN: Final = 96 << 20
"""Bytes of the batches that the rows of a table come from, up to which its rows are not looked at: three times those
that are unpacked at a time, which leaves room for rows that were in memory."""
READ: Final = 16 << 10
"""Bytes that are read from a column at a time."""

I64 = NDArray[np.int64]


class SegmentUnreadable(OSError):
    """A file of a segment is damaged; the text names it."""


def merged(parts: Sequence[Any]) -> Iterator[Any]:
    """Yield tables with all rows of segments, in the order of segments, a row group each or less. The parts are in the
    order of offsets: the path of a segment's file, or its rows as a table of `WRITTEN` with one chunk a column, which
    is not read. Raises `FileNotFoundError`, and `SegmentUnreadable`.
    """
    sources: list[_Source] = []
    try:
        # Those that could be opened are closed, too.
        for part in parts:
            is_file = isinstance(part, Path)
            sources.append(FileSource.open(part, BATCH_BYTES // len(parts)) if is_file else _TableSource(part))
        homes = _order(sources)
        taking = None if kernel is None else Taking()
        start = 0
        for end in _ends(sources, homes):
            yield from _next_rows(sources, homes[start:end], taking)
            start = end
    finally:
        for each in sources:
            each.close()


class Rows(NamedTuple):
    """Some rows of a batch, one after the other."""

    piece: TakenBatch
    start: int
    size: int


class _Source(Protocol):
    """One segment, whose rows are taken in order."""

    @property
    def largest(self) -> int:
        """Bytes of a row in memory where the rows are the largest."""
        ...

    def sizes(self) -> I64 | None:
        """Return about how many bytes each row has in memory, at least; None: all have `largest`, about."""
        ...

    def keys(self) -> tuple[Any, I64]:
        """Return the project of each row, dictionary-encoded, and its time."""
        ...

    def take(self, count: int) -> list["Rows"]:
        """Return the next `count` rows."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class _TableSource:
    """A segment whose rows are in memory."""

    def __init__(self, table: Any) -> None:
        self._piece = TakenBatch(table.to_batches()[0])
        self._start = 0
        self.largest: int = row_bytes(table)
        self._table = table

    def sizes(self) -> I64 | None:
        """See `_Source`."""
        found = row_sizes.at_once(self._table, self.largest)
        if found is None:
            return None
        of_runs = row_sizes.of_runs(self._table, found.rows) // found.rows + 1
        return np.repeat(of_runs, found.rows)[: self._table.num_rows]

    def keys(self) -> tuple[Any, I64]:
        """See `_Source`."""
        batch = self._piece.batch
        return batch.column("project"), batch.column("timestamp").cast(pa.int64()).to_numpy()

    def take(self, count: int) -> list[Rows]:
        """See `_Source`."""
        start, self._start = self._start, self._start + count
        return [Rows(self._piece, start, count)]

    def close(self) -> None:
        """See `_Source`."""
        self._piece, self._table = TakenBatch(None), None


class FileSource:
    """A segment whose rows are read from its file."""

    def __init__(self, path: Path, file: Any, batch_bytes: int) -> None:
        self._path = path
        self._file = file
        self._batch_bytes = batch_bytes
        self._said = row_sizes.said(file.metadata.metadata or {}, file.num_row_groups)
        self._groups = iter(range(file.num_row_groups))
        self._batches: Iterator[Any] = iter(())
        """Those of the row group that is being read. Each by itself: Arrow has one dictionary of all texts of a column
        that one reading has come by, and a page of each column until it has ended."""
        self._left = 0
        """Rows of that which were not read."""
        self._piece: TakenBatch | None = None
        """The last batch."""
        self._start = 0
        """Its first row that was not asked for."""

    @classmethod
    def open(cls, path: Path, batch_bytes: int) -> Self:
        """Read the footer. Rows are unpacked `batch_bytes` at a time. Raises `FileNotFoundError`, and
        `SegmentUnreadable`."""
        try:
            footer = pq.read_metadata(path)
            few = _with_small_dictionaries(footer)
            file = pq.ParquetFile(path, metadata=footer, read_dictionary=few, buffer_size=READ, pre_buffer=False)
            return cls(path, file, batch_bytes)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error

    @property
    def largest(self) -> int:
        """See `_Source`: of many small rows and some large ones beside each other the mean would say nothing. Older
        files say no more than what their pages take before they are compressed."""
        footer = self._file.metadata
        said = (footer.metadata or {}).get(ROW_BYTES.encode())
        if said is not None and said.isdigit():
            return int(said)
        groups = (footer.row_group(number) for number in range(footer.num_row_groups))
        found: int = max(group.total_byte_size // group.num_rows for group in groups)
        return found

    def sizes(self) -> I64 | None:
        """See `_Source`."""
        if self._said is None:
            return None
        footer = self._file.metadata
        counts = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
        return np.repeat(np.array([-(-each.bytes // each.rows) for each in self._said], np.int64), counts)

    def keys(self) -> tuple[Any, I64]:
        """See `_Source`."""
        try:
            table = self._file.read(["project", "timestamp"], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self._path, error) from error
        projects = table.column("project")
        is_encoded = pa.types.is_dictionary(projects.type)
        projects = (projects.unify_dictionaries() if is_encoded else projects.dictionary_encode()).combine_chunks()
        return projects, table.column("timestamp").cast(pa.int64()).to_numpy()

    def take(self, count: int) -> list[Rows]:
        """See `_Source`."""
        found: list[Rows] = []
        while count:
            if self._piece is None or self._start == len(self._piece):
                self._piece, self._start = TakenBatch(self._read()), 0
            mine = min(count, len(self._piece) - self._start)
            found.append(Rows(self._piece, self._start, mine))
            self._start += mine
            count -= mine
        if self._piece is not None and self._start == len(self._piece):
            self._piece = None
        return found

    def _read(self) -> Any:
        try:
            if not self._left:
                self._begin_group()
            batch = next(self._batches, None)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self._path, error) from error
        if batch is None:
            raise _unreadable(self._path, "it has fewer rows than its footer says")
        self._left -= len(batch)
        if self._left <= 0:
            self._batches = iter(())
        return batch

    def _begin_group(self) -> None:
        number = next(self._groups, None)
        if number is None:
            return
        of_row = -(-self._said[number].bytes // self._said[number].rows) if self._said else max(self.largest, 1)
        # A power of two: Arrow reads numbers into room for the next one, 13 MiB for nothing in 40 segments.
        rows = row_sizes.power_of_two(min(BATCH, self._batch_bytes // of_row))
        self._left = self._file.metadata.row_group(number).num_rows
        self._batches = self._file.iter_batches(rows, row_groups=[number], use_threads=False)

    def close(self) -> None:
        """See `_Source`."""
        self._piece = None
        self._batches = iter(())
        self._file.close(force=True)


def _with_small_dictionaries(footer: Any) -> list[str]:
    """Return the columns with few values that are read as dictionaries: those that have a small one in each row
    group."""
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    places = {groups[0].column(place).path_in_schema: place for place in range(footer.num_columns)}

    def is_small(name: str) -> bool:
        chunks = (group.column(places[name]) for group in groups)
        return all(each.has_dictionary_page and each.total_uncompressed_size <= MOST_CODED for each in chunks)

    return list(filter(is_small, FEW_VALUES))


def _unreadable(path: Path, why: object) -> SegmentUnreadable:
    return SegmentUnreadable(f"the segment {path.name} cannot be read: {why}")


def _order(sources: Sequence[_Source]) -> NDArray[np.uint16]:
    """Return for each row of the result which source it comes from: the next row of that.

    Of equal projects and times the earlier offsets come first, which are those of earlier sources: the sort is stable.
    """
    keys = _keys(sources)
    homes = np.repeat(np.arange(len(sources), dtype=np.uint16), keys.counts)
    if keys.ranks is None:
        return homes[np.argsort(keys.times, kind="stable")]
    return homes[np.lexsort((keys.times, keys.ranks))]


class _Keys(NamedTuple):
    """What the rows of all sources are sorted by, source after source."""

    ranks: NDArray[np.int32] | None
    """Of their projects; None: all are of one."""
    times: I64
    counts: Sequence[int]
    """How many rows each source has."""


def _keys(sources: Sequence[_Source]) -> _Keys:
    found = [each.keys() for each in sources]
    times = np.concatenate([times for _, times in found])
    counts = [len(times) for _, times in found]
    names = sorted({name for projects, _ in found for name in projects.dictionary.to_pylist()})
    if len(names) == 1:
        return _Keys(None, times, counts)
    places = {name: number for number, name in enumerate(names)}
    ranks = [
        np.array([places[name] for name in projects.dictionary.to_pylist()], np.int32)[projects.indices.to_numpy()]
        for projects, _ in found
    ]
    return _Keys(np.concatenate(ranks), times, counts)


def _ends(sources: Sequence[_Source], homes: NDArray[np.uint16]) -> Iterator[int]:
    """Yield where each table ends: a row group, or less where rows are large."""
    sizes = [each.sizes() for each in sources]
    if all(each is None for each in sizes):
        rows = segment_file.rows_of_group(max(each.largest for each in sources), 1)
        yield from range(rows, len(homes), rows)
        if len(homes):
            yield len(homes)
        return
    in_order = np.empty(len(homes), np.int64)
    for place, (source, found) in enumerate(zip(sources, sizes, strict=True)):
        in_order[homes == place] = source.largest if found is None else found
    ends = np.cumsum(in_order, out=in_order)
    start, done = 0, 0
    while start < len(homes):
        most = int(np.searchsorted(ends, done + segment_file.GROUP_BYTES, "right"))
        start = min(max(most, start + 1), start + segment_file.ROW_GROUP, len(homes))
        done = int(ends[start - 1])
        yield start


def _next_rows(sources: Sequence[_Source], homes: NDArray[np.uint16], taking: Taking | None) -> Iterator[Any]:
    """Yield the next rows, of which each comes from the source that `homes` names: as one table, but where that would
    be too large."""
    counts = np.bincount(homes, minlength=len(sources)).tolist()
    found = [_Own(place, rows) for place, count in enumerate(counts) if count for rows in sources[place].take(count)]
    # Of a row group with some large rows beside small ones, its mean says nothing: those of 40 may come together.
    is_small = sum(each.rows.piece.size for each in found) <= MOST_TAKEN
    yield from [_table(found, homes, taking)] if is_small else _small_tables(found, homes, taking)


class _Own(NamedTuple):
    """Some of the next rows of a source."""

    source: int
    rows: Rows


def _small_tables(found: Sequence[_Own], homes: NDArray[np.uint16], taking: Taking | None) -> Iterator[Any]:
    """Yield rows in tables that are no larger than a row group, or have one row: halves of halves."""
    size = sum(rows.piece.batch.slice(rows.start, rows.size).nbytes for _, rows in found)
    if size <= segment_file.GROUP_BYTES or len(homes) == 1:
        yield _table(found, homes, taking)
        return
    half = len(homes) // 2
    left = np.bincount(homes[:half], minlength=found[-1].source + 1).tolist()
    first: list[_Own] = []
    second: list[_Own] = []
    for source, (piece, start, count) in found:
        mine = min(left[source], count)
        left[source] -= mine
        if mine:
            first.append(_Own(source, Rows(piece, start, mine)))
        if mine < count:
            second.append(_Own(source, Rows(piece, start + mine, count - mine)))
    yield from _small_tables(first, homes[:half], taking)
    yield from _small_tables(second, homes[half:], taking)


def _table(own: Sequence[_Own], homes: NDArray[np.uint16], taking: Taking | None) -> Any:
    """Return a table of rows, of which each comes from the source that `homes` names."""
    found = [each.rows for each in own]
    # The rows lie source by source: those of a source are the places of `homes` that name it, in their order.
    order = np.argsort(homes, kind="stable")
    if taking is not None:
        pieces, rows = np.empty(len(homes), np.uint16), np.empty(len(homes), np.int32)
        pieces[order] = np.repeat(np.arange(len(found), dtype=np.uint16), [each.size for each in found])
        rows[order] = np.concatenate([np.arange(each.start, each.start + each.size, dtype=np.int32) for each in found])
        return taking.table([each.piece for each in found], pieces, rows)
    table = joined([_small(each.piece.batch.slice(each.start, each.size)) for each in found])
    if len(found) == 1:
        return table
    places = np.empty(len(homes), np.int64)
    places[order] = np.arange(len(homes))
    return table.take(pa.array(places))


def _small(batch: Any) -> Any:
    """Return a batch whose dictionaries have little beside what its rows have: a slice has those of the whole."""
    most = MOST_LETTERS // BATCH * max(len(batch), 64)
    for name in FEW_VALUES:
        place, column = batch.schema.get_field_index(name), batch.column(name)
        if not pa.types.is_dictionary(column.type) or column.dictionary.nbytes > most:
            batch = batch.set_column(place, WRITTEN.field(name), column.cast(pa.string()).dictionary_encode())
    return batch


def joined(batches: Sequence[Any]) -> Any:
    """Return batches as one table, in one chunk a column."""
    return pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
