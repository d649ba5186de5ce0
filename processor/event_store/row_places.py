"""Which rows of which messages there are, calls and spans, as sums over blocks of messages: whatever their number, two
lists of rows are compared without keeping either."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct
from numpy.typing import NDArray

from processor.event_store.manifest import Segment

BLOCK: Final = 1024
"""Messages whose rows are added up together."""

_COLUMNS: Final = ("log_offset", "log_index")
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_SHIFT: Final = np.uint64(29)

I64 = NDArray[np.int64]


class _Sum(Struct):
    rows: int = 0
    places: int = 0
    """The hashes of the rows' places, added up."""


class RowPlaces:
    """Rows that are given in any order, each by the offset of its message and its place in that."""

    def __init__(self) -> None:
        self.blocks: dict[int, _Sum] = {}
        """Block -> what its rows add up to."""

    def add(self, offsets: I64, places: I64) -> None:
        """Add rows."""
        hashes = _hashes(offsets, places)
        blocks = offsets // BLOCK
        for block in np.unique(blocks).tolist():
            mine = blocks == block
            found = self.blocks.setdefault(block, _Sum())
            found.rows += int(mine.sum())
            found.places = (found.places + int(hashes[mine].sum(dtype=np.uint64))) & 0xFFFFFFFFFFFFFFFF

    def differences(self, expected: "RowPlaces") -> Iterator[tuple[int, int, int, int]]:
        """Yield the first and last message of each block whose rows are others than expected, and the number of rows
        here and there."""
        for block in sorted(self.blocks.keys() | expected.blocks.keys()):
            mine, wanted = self.blocks.get(block, _Sum()), expected.blocks.get(block, _Sum())
            if mine != wanted:
                yield block * BLOCK, (block + 1) * BLOCK - 1, mine.rows, wanted.rows


def _hashes(offsets: I64, places: I64) -> NDArray[np.uint64]:
    mixed = (offsets.astype(np.uint64) + np.uint64(1)) * _MIX
    mixed ^= mixed >> _SHIFT
    mixed = (mixed + places.astype(np.uint64) + np.uint64(1)) * _MIX
    found: NDArray[np.uint64] = mixed ^ (mixed >> _SHIFT)
    return found


def of_segments(directory: Path, segments: Iterable[Segment], start: int, end: int) -> RowPlaces:
    """Return the rows in segments of one partition, of messages from `start` to before `end`. Raises as
    `stored_sums.add_up` does."""
    found = RowPlaces()
    for segment in segments:
        if not segment.has_files or segment.end <= start or segment.start >= end:
            continue
        with pq.ParquetFile(directory / f"{segment.id}.parquet") as file:
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, columns=list(_COLUMNS))
                offsets = table.column("log_offset")
                table = table.filter(pc.and_(pc.greater_equal(offsets, start), pc.less(offsets, end)))
                found.add(*(table.column(name).to_numpy().astype(np.int64) for name in _COLUMNS))
    return found
