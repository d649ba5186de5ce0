"""Merging the rows of several segments of a partition into the order of one, a row group of each at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from processor.event_store.schema import SCHEMA

_Key = tuple[int, int]
"""Rank of the project, event time in microseconds."""

_BEFORE_ALL: Final = -(1 << 62)


class SegmentUnreadable(OSError):
    """A file of a segment is damaged; the text names it."""


def merged(paths: Sequence[Path]) -> Iterator[Any]:
    """Yield tables with all rows of the segments, in the order of segments. The paths are in the order of offsets.

    A row group is read when rows of it may come next, so memory holds as many of them as overlap in time. Raises
    `FileNotFoundError`, and `SegmentUnreadable`.
    """
    sources: list[_Source] = []
    try:
        sources += map(_Source, paths)
        ranks = {name: rank for rank, name in enumerate(sorted({name for each in sources for name in each.projects}))}
        for each in sources:
            each.begin(ranks)
        while True:
            waiting = [(each.next_key, place) for place, each in enumerate(sources) if each.next_key is not None]
            # Of equal keys the rows of earlier segments come first, so only one segment has the next row group.
            bound, first = min(waiting, default=(None, 0))
            parts = [each.before(bound, is_inclusive=place <= first) for place, each in enumerate(sources)]
            ready = [part for part in parts if part is not None]
            if ready:
                yield _in_order(ready)
            elif bound is None:
                return
            if bound is not None:
                sources[first].load()
    finally:
        for each in sources:
            each.close()


class _Part:
    """Rows of one source that are in order, with their keys."""

    def __init__(self, table: Any, ranks: NDArray[np.int64], times: NDArray[np.int64]) -> None:
        self.table = table
        self.ranks = ranks
        self.times = times

    def cut(self, start: int, end: int) -> "_Part":
        return _Part(self.table.slice(start, end - start), self.ranks[start:end], self.times[start:end])


class _Source:
    """One segment: the row groups that are loaded, and where the next one begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = pq.ParquetFile(path)
            footer = self._file.metadata
            names = [footer.schema.column(number).path for number in range(footer.num_columns)]
            self._time, self._project = names.index("timestamp"), names.index("project")
            self._footer = footer
            ends = [
                footer.row_group(number).column(self._project).statistics for number in range(footer.num_row_groups)
            ]
            self.projects = {name for each in ends for name in (each.min, each.max)} | self._between(ends)
        except (pa.ArrowException, ValueError) as error:
            raise SegmentUnreadable(f"the segment {path.name} cannot be read: {error}") from error
        self._group = 0
        self._loaded: list[_Part] = []
        self._ranks: dict[str, int] = {}
        self.next_key: _Key | None = None
        """A lower bound of the keys that are not loaded; None: all are."""

    def _between(self, ends: Sequence[Any]) -> set[str]:
        """Return the projects of row groups with more than one, which may have some between the first and the last."""
        mixed = [number for number, each in enumerate(ends) if each.min != each.max]
        found: set[str] = set()
        for number in mixed:
            found.update(self._file.read_row_group(number, columns=["project"]).column(0).unique().to_pylist())
        return found

    def begin(self, ranks: dict[str, int]) -> None:
        self._ranks = ranks
        self._look()

    def _look(self) -> None:
        if self._group == self._footer.num_row_groups:
            self.next_key = None
            return
        group = self._footer.row_group(self._group)
        project, time = (group.column(number).statistics for number in (self._project, self._time))
        if project.min == project.max:
            self.next_key = (self._ranks[project.min], pa.scalar(time.min, SCHEMA.field("timestamp").type).value)
        else:
            self.next_key = (self._ranks[project.min], _BEFORE_ALL)

    def load(self) -> None:
        """Read the next row group. Raises `SegmentUnreadable`."""
        try:
            table = self._file.read_row_group(self._group, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise SegmentUnreadable(f"the segment {self._path.name} cannot be read: {error}") from error
        self._group += 1
        encoded = table.column("project").combine_chunks().dictionary_encode()
        ranks = np.array([self._ranks[name] for name in encoded.dictionary.to_pylist()], np.int64)
        times = table.column("timestamp").cast(pa.int64()).combine_chunks().to_numpy()
        self._loaded.append(_Part(table, ranks[encoded.indices.to_numpy()], times))
        self._look()

    def before(self, bound: _Key | None, *, is_inclusive: bool) -> _Part | None:
        """Take the loaded rows whose keys are below the bound, or equal if it is inclusive; None: there are none."""
        if not self._loaded:
            return None
        whole = self._loaded[0] if len(self._loaded) == 1 else _joined(self._loaded)
        end = len(whole.times)
        if bound is not None:
            start = int(np.searchsorted(whole.ranks, bound[0], "left"))
            stop = int(np.searchsorted(whole.ranks, bound[0], "right"))
            side: Literal["left", "right"] = "right" if is_inclusive else "left"
            end = start + int(np.searchsorted(whole.times[start:stop], bound[1], side))
        self._loaded = [] if end == len(whole.times) else [whole.cut(end, len(whole.times))]
        return whole.cut(0, end) if end else None

    def close(self) -> None:
        self._file.close(force=True)


def _joined(parts: Sequence[_Part]) -> _Part:
    return _Part(
        pa.concat_tables([part.table for part in parts]),
        np.concatenate([part.ranks for part in parts]),
        np.concatenate([part.times for part in parts]),
    )


def _in_order(parts: Sequence[_Part]) -> Any:
    """Return the rows of parts in the order of segments. Of equal keys the earlier offsets come first: the parts are in
    the order of offsets, each in order itself, and the sorting is stable."""
    if len(parts) == 1:
        return parts[0].table
    whole = _joined(parts)
    return whole.table.take(pa.array(np.lexsort((whole.times, whole.ranks))))
