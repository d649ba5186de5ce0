"""How large the rows of a row group are where they lie, so that merging can hold a few bytes of many segments.

The mean says nothing of a row group with some large rows beside many small ones. Where it does not, the file's metadata
says of each row group how many rows may be unpacked at a time; and rows that would be unpacked one by one because of a
few others are written apart from these.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from processor.core.kernel.loaded import kernel
from processor.event_store.schema import ROW_BYTES, WRITTEN, row_bytes

AT_ONCE: Final = 512 << 10
"""Bytes that may be unpacked of a segment at a time: of forty segments 20 MiB."""
RUN: Final = 128
"""Rows that are large or small together: those of a run are written into one row group."""
UNEVEN: Final = 8
"""Times the smallest run; larger ones are written apart, if they have more than `AT_ONCE`."""
ALONE: Final = 1 << 20
"""Bytes of a row that is a row group of its own: forty segments may have one each at the same time, of which the pages
would stay in memory until their row groups are done."""
MOST_ROWS: Final = 1 << 13

_KEY: Final = "spendstream.rows_at_once"
"""`rows:bytes` of each row group, in their order: of so many rows, counted from its start, none of the parts has more
bytes in memory. Not there: the rows are even, and `ROW_BYTES` says enough."""
COMMON: Final = 64 << 10
"""Bytes of a dictionary whose texts are not counted: it stays one when it is read."""

I64 = NDArray[np.int64]


class AtOnce(NamedTuple):
    """Rows that may be unpacked at a time, a power of two, and the most bytes that these have."""

    rows: int
    bytes: int


class RowSizes:
    """What the metadata of a file says of its rows, row group by row group."""

    def __init__(self) -> None:
        self._largest = 0
        self._groups: list[AtOnce] = []
        self._is_uneven = False

    def add(self, table: Any) -> None:
        """Add a row group."""
        mean = row_bytes(table)
        self._largest = max(self._largest, mean)
        found = at_once(table, mean)
        self._is_uneven |= found is not None
        self._groups.append(found or even(mean))

    def metadata(self) -> Mapping[str, str]:
        """Return what is said."""
        found = {ROW_BYTES: str(self._largest)}
        return (
            found | {_KEY: ",".join(f"{each.rows}:{each.bytes}" for each in self._groups)} if self._is_uneven else found
        )


def said(metadata: Mapping[bytes, bytes], groups: int) -> Sequence[AtOnce] | None:
    """Return what the metadata of a file says of its row groups; None: nothing of each."""
    text = metadata.get(_KEY.encode())
    if text is None:
        return None
    parts = [each.partition(b":") for each in text.split(b",")]
    if len(parts) != groups or not all(rows.isdigit() and size.isdigit() for rows, _, size in parts):
        return None
    return [AtOnce(max(int(rows), 1), max(int(size), 1)) for rows, _, size in parts]


def even(mean: int) -> AtOnce:
    """Return how many rows of this size may be unpacked at a time."""
    rows = power_of_two(AT_ONCE // mean)
    return AtOnce(rows, rows * mean)


def power_of_two(number: int) -> int:
    """Return the greatest power of two that is not greater, at least 1 and at most `MOST_ROWS`."""
    return 1 << max(min(number, MOST_ROWS), 1).bit_length() - 1


def at_once(table: Any, mean: int) -> AtOnce | None:
    """Return how many rows of a table may be unpacked at a time; None: it is even."""
    rows = power_of_two(AT_ONCE // mean)
    most = int(of_runs(table, rows).max())
    if most <= 2 * AT_ONCE and rows > 1:
        return None
    while most > AT_ONCE and rows > 1:
        rows //= 2
        most = int(of_runs(table, rows).max())
    return AtOnce(rows, most)


def stretches(table: Any) -> Iterator[Any]:
    """Yield the rows of a table in one part, or in several if some are much larger than others: those that are apart
    from them, in their order."""
    sizes = of_runs(table, RUN)
    is_large = sizes > AT_ONCE
    if not is_large.any():
        yield table
        return
    starts = {0, table.num_rows}
    if sizes.max() > UNEVEN * sizes.min():
        starts.update((RUN * (1 + np.flatnonzero(is_large[1:] != is_large[:-1]))).tolist())
    for run in np.flatnonzero(sizes > ALONE).tolist():
        first = RUN * run
        for row in np.flatnonzero(of_runs(table.slice(first, RUN), 1) > ALONE).tolist():
            starts.update((first + row, first + row + 1))
    bounds = sorted(starts)
    for start, end in pairwise(bounds):
        yield table.slice(start, end - start)


def of_runs(table: Any, rows: int) -> I64:
    """Return the bytes in memory of each run of so many rows of a table, which has one chunk a column; the last one may
    have fewer. Looks at where texts begin at the bounds of the runs, not at each row."""
    batches = table.to_batches()
    if kernel is None or len(batches) != 1:
        return listed_of_runs(table, rows)
    return np.frombuffer(kernel.bytes_of_runs(*batches[0].__arrow_c_array__(), rows, FIXED, COMMON), np.int64)


def listed_of_runs(table: Any, rows: int, common: int = COMMON) -> I64:
    """Return the same, column by column: the twin of the kernel's `bytes_of_runs`, five times as slow."""
    bounds = np.append(np.arange(0, table.num_rows, rows), table.num_rows)
    found = FIXED * np.diff(bounds)
    for name in _OTHERS:
        array = table.column(name).chunk(0)
        if not pa.types.is_dictionary(array.type) or array.dictionary.nbytes > common:
            found += _of_runs(array, bounds)
    return found


def _width(kind: Any) -> int:
    """Return the bytes that a row has at least of a column."""
    if pa.types.is_boolean(kind):
        return 1
    return kind.bit_width // 8 if pa.types.is_primitive(kind) or pa.types.is_decimal(kind) else 4


FIXED: Final = sum(_width(field.type) for field in WRITTEN)
_OTHERS: Final = [
    field.name for field in WRITTEN if not (pa.types.is_primitive(field.type) or pa.types.is_decimal(field.type))
]


def _of_runs(array: Any, bounds: I64) -> Any:
    kind = array.type
    if pa.types.is_dictionary(kind):
        texts = array.dictionary
        lengths = np.append(_of_runs(texts, np.arange(len(texts) + 1)), 0)
        of_rows = lengths[array.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)]
        return np.add.reduceat(of_rows, bounds[:-1])
    if pa.types.is_string(kind):
        return np.diff(_offsets(array)[bounds])
    if pa.types.is_map(kind):
        ends = _offsets(array)[bounds].astype(np.int64)
        return 8 * np.diff(ends) + _of_runs(array.keys, ends) + _of_runs(array.items, ends)
    if pa.types.is_list(kind):
        ends = _offsets(array)[bounds].astype(np.int64)
        return 4 * np.diff(ends) + _of_runs(array.values, ends)
    return 0


def _offsets(array: Any) -> NDArray[np.int32]:
    """Return where the items of each row begin, and those after the last one."""
    return np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
