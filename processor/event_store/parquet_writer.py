"""The writer of segments as Parquet files: `processor.event_store.segment_writer.SegmentWriter`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from processor.core.events.message import Message
from processor.event_store import rows, segment_file, stored_sums
from processor.event_store.manifest import Segment
from processor.event_store.merge import SegmentUnreadable, merged
from processor.event_store.rows import MessageRows
from processor.event_store.stored_sums import DamagedSegment


class ParquetWriter:
    """Writes segments into a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def table_of(self, message: Message, partition: int, offset: int, kept: NDArray[np.bool_]) -> MessageRows:
        """See `SegmentWriter`."""
        return rows.rows_of(message, partition, offset, kept)

    def write(self, tables: Sequence[MessageRows], segment: Segment, payload_before: int) -> Segment:
        """See `SegmentWriter`."""
        table = segment_file.without_payload(rows.table_of(tables), payload_before)
        return segment_file.write(self._directory, segment, [table])

    def merge(self, parts: Sequence[Segment], segment: Segment, payload_before: int) -> Segment:
        """See `SegmentWriter`. Raises `SegmentUnreadable` if a part is damaged or missing.

        Every part is compared with its digest first: Parquet would hand out most wrong bytes as values, and the digest
        of the result would then vouch for them.
        """
        for part in parts:
            try:
                stored_sums.check(self._directory, part)
            except (DamagedSegment, FileNotFoundError) as error:
                raise SegmentUnreadable(f"the segment {part.id} cannot be merged: {error}") from error
        paths = [self._directory / f"{part.id}.parquet" for part in parts if part.has_files]
        tables = (segment_file.without_payload(table, payload_before) for table in merged(paths))
        found = segment_file.write(self._directory, segment, tables, packing="zstd")
        if found.rows != sum(part.rows for part in parts):
            names = ", ".join(part.id for part in parts)
            raise SegmentUnreadable(f"the segments {names} have {found.rows} rows, other than their manifests say")
        return found
