"""The writer of segments as Parquet files: `processor.event_store.segment_writer.SegmentWriter`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from processor import memory
from processor.core.events.message import Message
from processor.event_store import rows, segment_file, segment_table, stored_sums
from processor.event_store.directory_storage import DirectoryStorage
from processor.event_store.manifest import Segment
from processor.event_store.merge import SegmentUnreadable, merged
from processor.event_store.rows import MessageRows
from processor.event_store.schema import row_bytes
from processor.event_store.stored_sums import DamagedSegment

MOST_UNPACKED: Final = 131_072
"""Rows of a segment of the first level that is not packed: it is merged again soon, and a partition has few of them."""


MOST_RECENT: Final = 48 << 20
"""Bytes of the rows of fresh segments that stay in memory until they are merged, the latest ones: eight segments of
20,000 events. Reading them again took a fourth of a merge."""


MOST_RECENT_TABLE: Final = MOST_RECENT // 8
"""Bytes of the rows of one such segment: larger ones wait for dozens of each other, of which the memory has a few."""

MOST_RECENT_ROW: Final = 1 << 10
"""Bytes of a row up to which these are worth their memory: large ones are read in a small part of the time that their
events take."""

LARGE: Final = 16 << 20
"""Bytes of such a segment, or of all that are merged, from which on free memory is given back to the system."""


class ParquetWriter:
    """Writes segments into a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._storage = DirectoryStorage(directory)
        self._recent = RecentTables()

    def table_of(self, message: Message, partition: int, offset: int, kept: NDArray[np.bool_]) -> MessageRows:
        """See `SegmentWriter`."""
        return rows.rows_of(message, partition, offset, kept)

    def size_of(self, table: MessageRows) -> int:
        """See `SegmentWriter`."""
        return table.size

    def write(self, tables: Sequence[MessageRows], segment: Segment, payload_before: int) -> Segment:
        """See `SegmentWriter`."""
        table = segment_file.without_payload(segment_table.table_of(tables), payload_before)
        found = segment_file.write(self._storage, segment, [table])
        if row_bytes(table) <= MOST_RECENT_ROW:
            self._recent.add(segment.id, table)
        elif table.nbytes > LARGE:
            _give_back()
        return found

    def merge(
        self,
        parts: Sequence[Segment],
        segment: Segment,
        payload_before: int,
        between: Callable[[], None] = lambda: None,
    ) -> Segment:
        """See `SegmentWriter`. Raises `SegmentUnreadable` if a part is damaged or missing.

        Every part that is read is compared with its digest first: Parquet would hand out most wrong bytes as values,
        and the digest of the result would then vouch for them.

        A large merge begins with as little memory as there can be: what cuts have left free goes back to the system,
        and rows of other segments are kept no longer.
        """
        rows = sum(part.rows for part in parts)
        is_packed = segment.level > 1 or rows > MOST_UNPACKED
        is_large = is_packed or sum(part.parquet_bytes for part in parts) > LARGE + MOST_RECENT_ROW * rows
        if is_large:
            self._recent.keep([part.id for part in parts])
            _give_back()
        sources = [self._source(part) for part in parts if part.has_files]
        tables = _prepared(merged(sources), payload_before, between)
        found = segment_file.write(self._storage, segment, tables, packing="zstd" if is_packed else "none")
        if found.rows != rows:
            names = ", ".join(part.id for part in parts)
            raise SegmentUnreadable(f"the segments {names} have {found.rows} rows, other than their manifests say")
        self._recent.remove([part.id for part in parts])
        if is_large:
            sources.clear()
            _give_back()
        return found

    def _source(self, part: Segment) -> Any:
        """Return the rows of a segment if they are in memory, else the path of its file, whose digest is checked."""
        table = self._recent.get(part.id)
        if table is not None:
            return table
        try:
            stored_sums.check(self._storage, part)
        except (DamagedSegment, FileNotFoundError) as error:
            raise SegmentUnreadable(f"the segment {part.id} cannot be merged: {error}") from error
        return self._directory / f"{part.id}.parquet"


def _give_back() -> None:
    """Give free memory back to the system: that of the C library, and that of Arrow."""
    memory.trim()
    pa.default_memory_pool().release_unused()


class RecentTables:
    """The rows of segments that were written last. For the threads of the cuts and of the merging."""

    def __init__(self) -> None:
        self._tables: dict[str, tuple[Any, int]] = {}
        """And the bytes of each."""
        self._size = 0
        self._lock = Lock()

    def add(self, name: str, table: Any) -> None:
        """Keep the rows of a segment, and let go of those that were added first where they are too many."""
        size = table.nbytes
        with self._lock:
            self._remove(name)
            if size > MOST_RECENT_TABLE:
                return
            self._tables[name] = table, size
            self._size += size
            while self._size > MOST_RECENT:
                self._remove(next(iter(self._tables)))

    def get(self, name: str) -> Any:
        """Return the rows of a segment; None: they are not kept."""
        table, _ = self._tables.get(name, (None, 0))
        return table

    def keep(self, names: Iterable[str]) -> None:
        """Let go of the rows of all other segments."""
        with self._lock:
            for name in self._tables.keys() - set(names):
                self._remove(name)

    def remove(self, names: Iterable[str]) -> None:
        """Let go of the rows of segments."""
        with self._lock:
            for name in names:
                self._remove(name)

    def _remove(self, name: str) -> None:
        _, size = self._tables.pop(name, (None, 0))
        self._size -= size


def _prepared(tables: Iterator[Any], payload_before: int, between: Callable[[], None]) -> Iterator[Any]:
    for table in tables:
        between()
        yield segment_file.without_payload(table, payload_before)
