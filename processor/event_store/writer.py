"""`SegmentWriter` over Parquet files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from processor.core.events.message import Message
from processor.event_store.manifest import Segment


class ParquetWriter:
    """Writes segments into a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def table_of(self, message: Message, partition: int, offset: int, kept: NDArray[np.bool_]) -> Any:
        """See `SegmentWriter.table_of`."""
        raise NotImplementedError

    def write(self, tables: Sequence[Any], segment: Segment, payload_before: int) -> Segment:
        """See `SegmentWriter.write`."""
        raise NotImplementedError

    def merge(self, parts: Sequence[Segment], segment: Segment, payload_before: int) -> Segment:
        """See `SegmentWriter.merge`."""
        raise NotImplementedError
