"""The writer of segments as Parquet files: `processor.event_store.segment_writer.SegmentWriter`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from processor.core.events.message import Message
from processor.event_store import rows, segment_file, segment_table, stored_sums
from processor.event_store.directory_storage import DirectoryStorage
from processor.event_store.manifest import Segment
from processor.event_store.merge import SegmentUnreadable, merged
from processor.event_store.rows import MessageRows
from processor.event_store.stored_sums import DamagedSegment

MOST_UNPACKED: Final = 131_072
"""Rows of a segment of the first level that is not packed: it is merged again soon, and a partition has few of them."""


class ParquetWriter:
    """Writes segments into a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._storage = DirectoryStorage(directory)

    def table_of(self, message: Message, partition: int, offset: int, kept: NDArray[np.bool_]) -> MessageRows:
        """See `SegmentWriter`."""
        return rows.rows_of(message, partition, offset, kept)

    def size_of(self, table: MessageRows) -> int:
        """See `SegmentWriter`."""
        return table.size

    def write(self, tables: Sequence[MessageRows], segment: Segment, payload_before: int) -> Segment:
        """See `SegmentWriter`."""
        table = segment_file.without_payload(segment_table.table_of(tables), payload_before)
        return segment_file.write(self._storage, segment, [table])

    def merge(
        self,
        parts: Sequence[Segment],
        segment: Segment,
        payload_before: int,
        between: Callable[[], None] = lambda: None,
    ) -> Segment:
        """See `SegmentWriter`. Raises `SegmentUnreadable` if a part is damaged or missing.

        Every part is compared with its digest first: Parquet would hand out most wrong bytes as values, and the digest
        of the result would then vouch for them.
        """
        for part in parts:
            try:
                stored_sums.check(self._storage, part)
            except (DamagedSegment, FileNotFoundError) as error:
                raise SegmentUnreadable(f"the segment {part.id} cannot be merged: {error}") from error
        paths = [self._directory / f"{part.id}.parquet" for part in parts if part.has_files]
        tables = _prepared(merged(paths), payload_before, between)
        is_packed = segment.level > 1 or sum(part.rows for part in parts) > MOST_UNPACKED
        found = segment_file.write(self._storage, segment, tables, packing="zstd" if is_packed else "none")
        if found.rows != sum(part.rows for part in parts):
            names = ", ".join(part.id for part in parts)
            raise SegmentUnreadable(f"the segments {names} have {found.rows} rows, other than their manifests say")
        return found


def _prepared(tables: Iterator[Any], payload_before: int, between: Callable[[], None]) -> Iterator[Any]:
    for table in tables:
        between()
        yield segment_file.without_payload(table, payload_before)
