"""Merging the rows of several segments of a partition into the order of one, a row group at a time.

The order is known before any row is read: of every segment the projects and times alone are read, and sorted. Each
segment is in order itself, so a row group of the result takes the next rows of each, and they are read as they are
needed, a few pages at a time. Memory holds 30 bytes a row for the order, and of each segment that is being read some
thousand rows and a page of each column.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from processor.event_store import segment_file
from processor.event_store.schema import FEW_VALUES

BATCH: Final = 8192
"""Most rows of a segment that are unpacked at a time. With 1,024, joining the pieces took half as long as reading
them."""
BATCH_BYTES: Final = 32 << 20
"""Bytes that those of all segments may take unpacked: of many segments, or large rows, there are fewer."""
READ: Final = 16 << 10
"""Bytes that are read from a column at a time."""

I64 = NDArray[np.int64]


class SegmentUnreadable(OSError):
    """A file of a segment is damaged; the text names it."""


def merged(paths: Sequence[Path]) -> Iterator[Any]:
    """Yield tables with all rows of the segments, in the order of segments, a row group each. The paths are in the
    order of offsets. Raises `FileNotFoundError`, and `SegmentUnreadable`.
    """
    sources: list[_Source] = []
    try:
        # Those that could be opened are closed, too.
        sources.extend(_Source.open(path, BATCH_BYTES // len(paths)) for path in paths)
        homes = _order(sources)
        rows = segment_file.rows_of_group(sum(each.size for each in sources), len(homes))
        for start in range(0, len(homes), rows):
            yield _next_rows(sources, homes[start : start + rows])
    finally:
        for each in sources:
            each.close()


class _Source:
    """One segment, whose rows are read in order."""

    def __init__(self, path: Path, file: Any, batch_bytes: int) -> None:
        self._path = path
        self._file = file
        rows = min(BATCH, batch_bytes * file.metadata.num_rows // max(self.size, 1))
        self._batches: Iterator[Any] = file.iter_batches(max(rows, 1), use_threads=False)
        self._rest: Any = None
        """The rows of the last batch that were not asked for."""

    @classmethod
    def open(cls, path: Path, batch_bytes: int) -> Self:
        """Read the footer. Rows are unpacked `batch_bytes` at a time. Raises `FileNotFoundError`, and
        `SegmentUnreadable`."""
        try:
            file = pq.ParquetFile(path, read_dictionary=list(FEW_VALUES), buffer_size=READ, pre_buffer=False)
            return cls(path, file, batch_bytes)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error

    @property
    def size(self) -> int:
        """Bytes of all rows, before they were compressed."""
        footer = self._file.metadata
        return sum(footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))

    def keys(self) -> tuple[Any, I64]:
        """Return the project of each row, dictionary-encoded, and its time."""
        try:
            table = self._file.read(["project", "timestamp"], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self._path, error) from error
        projects = table.column("project").unify_dictionaries().combine_chunks()
        return projects, table.column("timestamp").cast(pa.int64()).to_numpy()

    def take(self, count: int) -> list[Any]:
        """Return the next `count` rows as batches."""
        found: list[Any] = []
        while count:
            batch = self._rest if self._rest is not None else self._read()
            mine = batch.slice(0, count)
            self._rest = batch.slice(count) if len(batch) > count else None
            count -= len(mine)
            found.append(mine)
        return found

    def _read(self) -> Any:
        try:
            batch = next(self._batches, None)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self._path, error) from error
        if batch is None:
            raise _unreadable(self._path, "it has fewer rows than its footer says")
        return batch

    def close(self) -> None:
        """Close the file."""
        self._rest = None
        self._batches = iter(())
        self._file.close(force=True)


def _unreadable(path: Path, why: object) -> SegmentUnreadable:
    return SegmentUnreadable(f"the segment {path.name} cannot be read: {why}")


def _order(sources: Sequence[_Source]) -> NDArray[np.uint16]:
    """Return for each row of the result which source it comes from: the next row of that.

    Of equal projects and times the earlier offsets come first, which are those of earlier sources: the sort is stable.
    """
    keys = [each.keys() for each in sources]
    names = sorted({name for projects, _ in keys for name in projects.dictionary.to_pylist()})
    times = np.concatenate([found for _, found in keys])
    homes = np.repeat(np.arange(len(sources), dtype=np.uint16), [len(found) for _, found in keys])
    if len(names) == 1:
        return homes[np.argsort(times, kind="stable")]
    places = {name: number for number, name in enumerate(names)}
    ranks = [
        np.array([places[name] for name in projects.dictionary.to_pylist()], np.int32)[projects.indices.to_numpy()]
        for projects, _ in keys
    ]
    return homes[np.lexsort((times, np.concatenate(ranks)))]


def _next_rows(sources: Sequence[_Source], homes: NDArray[np.uint16]) -> Any:
    """Return a table of the next rows, of which each comes from the source that `homes` names."""
    counts = np.bincount(homes, minlength=len(sources))
    batches = [batch for each, count in zip(sources, counts.tolist(), strict=True) for batch in each.take(count)]
    table = _joined(batches)
    if np.count_nonzero(counts) == 1:
        return table
    # The rows lie source by source: those of a source are the places of `homes` that name it, in their order.
    places = np.empty(len(homes), np.int64)
    places[np.argsort(homes, kind="stable")] = np.arange(len(homes))
    return table.take(pa.array(places))


def _joined(batches: Sequence[Any]) -> Any:
    return pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
