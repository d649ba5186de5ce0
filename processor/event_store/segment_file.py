"""Writing the two files of a segment: rows of the schema, already in order, and the index of their ids.

They are put together, and are there as a whole when the writing returns (`processor.event_store.segment_storage`).
"""

import contextlib
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from msgspec.structs import replace
from numpy.typing import NDArray

from processor.event_store import id_hashes, id_index, row_sizes
from processor.event_store.id_index import IndexBuilder
from processor.event_store.manifest import ProjectSums, Segment
from processor.event_store.row_groups import Packing, row_groups
from processor.event_store.schema import FEW_VALUES, SCHEMA, WRITTEN, bytes_of
from processor.event_store.segment_storage import SegmentStorage
from processor.event_store.segment_sums import ProjectFigures, SummedColumns
from processor.event_store.user_counts import UserCounter

ROW_GROUP: Final = 16_384
"""Rows of a row group: what is read to find one event, about 2 MB before it is unpacked."""

GROUP_BYTES: Final = 16 << 20
"""Bytes that a row group may take unpacked: with large unknown fields it has fewer rows."""


MOST_SPLIT: Final = id_index.MAX_GROUPS // 4
"""Row groups of a segment, after which large rows are no longer written apart from small ones."""


class _Digested:
    """A file that is written from its start to its end, and the digest and size of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = xxhash.xxh3_128()
        self.size = 0

    closed = False
    """As pyarrow asks for it; the file is closed by its put."""

    def write(self, data: Any) -> int:
        """Write bytes."""
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Nothing: what is written becomes durable when the file is put."""

    def close(self) -> None:
        """Nothing: see `closed`."""


class SegmentFileWriter:
    """Writes one segment: `add` its rows in the order of segments, then `finish`. Calls block and raise `OSError`."""

    def __init__(self, storage: SegmentStorage, segment: Segment, *, packing: Packing = "none") -> None:
        """`segment` has everything but the figures of its rows."""
        self._segment = segment
        self._put = storage.put([f"{segment.id}.idx", f"{segment.id}.parquet"])
        self._index_file, self._file = map(_Digested, self._put.files)
        self._writer = row_groups(self._file, packing)
        self._is_large = packing != "none"
        """Whether it is a merge of many rows: only such are packed."""
        self._index = IndexBuilder()
        self._users = UserCounter() if segment.level else None
        """Segments of the first level have few row groups."""
        self._pending: list[Any] = []
        self._pending_rows = 0
        self._pending_bytes = 0
        self._groups = 0
        self._rows = 0
        self._sums: dict[str, ProjectFigures] = {}
        self._arrivals = (1 << 62, -(1 << 62))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave nothing behind that was not finished."""
        with contextlib.suppress(pa.ArrowException, OSError):  # it wants to write its end
            self._writer.close()
        self._put.discard()

    def add(self, table: Any) -> None:
        """Add rows; full row groups are written at once."""
        self._pending.append(table)
        self._pending_rows += table.num_rows
        self._pending_bytes += bytes_of(table)
        rows = rows_of_group(self._pending_bytes, self._pending_rows)
        while self._pending_rows >= rows:
            self._write_group(rows)

    def finish(self) -> Segment:
        """Write what is left, make both files durable under their names, and return the segment with its figures."""
        if self._pending_rows:
            self._write_group(self._pending_rows)
        self._writer.close()
        if self._is_large:  # what is free by now is as much as the index takes while it is sorted: 100 MiB
            pa.default_memory_pool().release_unused()
        if self._users is not None:
            self._index.set_counts(self._users.counted())
        for piece in self._index.encode():
            self._index_file.write(piece)
        self._put.commit()
        return replace(
            self._segment,
            rows=self._rows,
            calls=sum(each.calls for each in self._sums.values()),
            parquet_bytes=self._file.size,
            index_bytes=self._index_file.size,
            parquet_digest=self._file.digest.hexdigest(),
            index_digest=self._index_file.digest.hexdigest(),
            arrival_min=self._arrivals[0],
            arrival_max=self._arrivals[1],
            time_min=min(each.time_min for each in self._sums.values()),
            time_max=max(each.time_max for each in self._sums.values()),
            projects=tuple(_published(project, each) for project, each in self._sums.items()),
        )

    def _write_group(self, rows: int) -> None:
        table = self._pending[0] if len(self._pending) == 1 else pa.concat_tables(self._pending)
        rest = table.slice(rows)
        self._pending = [rest] if rest.num_rows else []
        self._pending_rows = rest.num_rows
        self._pending_bytes = bytes_of(rest) if rest.num_rows else 0
        table = prepared(table.slice(0, rows) if rest.num_rows else table)
        for part in row_sizes.stretches(table) if self._groups < MOST_SPLIT else (table,):
            self._writer.write_group(part)
            self._add_to_index(part)
            self._add_up(part)
            self._groups += 1
            self._rows += part.num_rows

    def _add_to_index(self, table: Any) -> None:
        self._index.add(self._groups, "event", id_hashes.of_events(_chunk(table, "event_id")))
        self._index.add(self._groups, "trace", id_hashes.of_texts(_chunk(table, "trace_id")))
        self._index.add(self._groups, "session", id_hashes.of_texts(_chunk(table, "session_id")))
        self._index.add(self._groups, "user", id_hashes.of_distinct(_chunk(table, "user_id")))

    def _add_up(self, table: Any) -> None:
        """Add the rows to the sums of their projects, which follow each other."""
        arrivals = _micros(table.column("received_at"))
        self._arrivals = (min(self._arrivals[0], int(arrivals.min())), max(self._arrivals[1], int(arrivals.max())))
        found = SummedColumns.of(table)
        projects = _chunk(table, "project")
        codes = projects.indices.to_numpy()
        starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]])).tolist()
        names = projects.dictionary.to_pylist()
        for start, end in zip(starts, [*starts[1:], len(codes)], strict=True):
            sums = self._sums.setdefault(names[codes[start]], ProjectFigures(self._rows + start))
            found.add(sums, slice(start, end))
            if self._users is not None:
                users = _chunk(table, "user_id").slice(start, end - start)
                self._users.add(names[codes[start]], users, found.flags[start:end])


def prepared(table: Any) -> Any:
    """Return the table in one chunk a column, with dictionaries of what has few different values."""
    if len(table.to_batches()) == 1 and table.schema.equals(WRITTEN):
        return table  # most are: looking at each column takes 90 us
    columns = []
    for field in WRITTEN:
        column = table.column(field.name)
        if field.name in FEW_VALUES:
            is_encoded = pa.types.is_dictionary(column.type)
            column = column.unify_dictionaries() if is_encoded else column.dictionary_encode()
        columns.append(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks())  # which copies
    return pa.table(columns, schema=WRITTEN)


def _chunk(table: Any, name: str) -> Any:
    """Return a column of a table that is prepared as one array."""
    return table.column(name).chunk(0)


def rows_of_group(size: int, rows: int) -> int:
    """Return how many rows a row group has, of rows that take so many bytes in all."""
    return max(1, min(ROW_GROUP, GROUP_BYTES * rows // max(size, 1)))


def _micros(column: Any) -> NDArray[np.int64]:
    found: NDArray[np.int64] = column.cast(pa.int64()).combine_chunks().to_numpy()
    return found


def _published(project: str, sums: ProjectFigures) -> ProjectSums:
    return ProjectSums(project=project, **{name: getattr(sums, name) for name in sums.__struct_fields__})


def write(storage: SegmentStorage, segment: Segment, tables: Iterable[Any], *, packing: Packing = "none") -> Segment:
    """Write a segment of tables that together are in order, with at least one row; see `SegmentFileWriter`."""
    with SegmentFileWriter(storage, segment, packing=packing) as writer:
        for table in tables:
            writer.add(table)
        return writer.finish()


def without_payload(table: Any, before: int) -> Any:
    """Return the rows without the unknown fields and error messages of those that arrived before a time (micros)."""
    if before <= 0:
        return table
    is_old = pc.less(table.column("received_at").cast(pa.int64()), before)
    for name in ("extra", "error_message"):
        place = SCHEMA.get_field_index(name)
        empty = pc.if_else(is_old, pa.scalar(None, pa.string()), table.column(name))
        table = table.set_column(place, SCHEMA.field(name), empty)
    return table


def names_of(segment: Segment) -> Sequence[str]:
    """Return the names of a segment's files."""
    return (f"{segment.id}.parquet", f"{segment.id}.idx") if segment.has_files else ()
