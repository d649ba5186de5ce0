"""What the rows of a segment add up to, project by project: what its manifest says of them."""

from collections.abc import Collection, Sequence
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.events.fields import ERRORS
from processor.core.kernel.loaded import kernel


class ProjectFigures(Struct):
    """What one project has so far."""

    first_row: int
    rows: int = 0
    calls: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: int = 0
    unpriced: int = 0
    time_min: int = 1 << 62
    time_max: int = -(1 << 62)


class SummedColumns(Struct):
    """What the sums are made of."""

    times: NDArray[np.int64]
    flags: NDArray[np.uint8]
    """1: a call, 2: what failed."""
    counts: list[Any]
    """Arrow arrays, of `_COUNTED` and the costs."""

    @classmethod
    def of(cls, table: Any) -> Self:
        """Take them from a table without chunks."""
        is_call, is_error = (
            _is_one_of(table.column("kind").chunk(0), {"call"}),
            _is_one_of(table.column("status").chunk(0), ERRORS),
        )
        flags = is_call.astype(np.uint8) + 2 * is_error.astype(np.uint8)
        return cls(
            table.column("timestamp").chunk(0).cast(pa.int64()).to_numpy(),
            flags,
            [table.column(name).chunk(0) for name in (*_COUNTED, "cost_usd")],
        )

    def add(self, sums: ProjectFigures, rows: slice) -> None:
        """Add these rows."""
        calls, errors, unpriced, found = (sums_of if kernel is None else compiled_sums_of)(
            self.counts, self.flags, rows
        )
        sums.rows += rows.stop - rows.start
        sums.calls += calls
        sums.errors += errors
        sums.unpriced += unpriced
        for name, more in zip((*_COUNTED, "cost"), found, strict=True):
            setattr(sums, name, getattr(sums, name) + more)
        sums.time_min = min(sums.time_min, int(self.times[rows].min()))
        sums.time_max = max(sums.time_max, int(self.times[rows].max()))


_COUNTED: Final = ("input_tokens", "output_tokens", "cached_tokens")

_Found = tuple[int, int, int, list[int]]
"""Calls, failed ones, such without a cost, and the sums of the columns over the calls."""


def sums_of(columns: Sequence[Any], flags: NDArray[np.uint8], rows: slice) -> _Found:
    is_call = (flags[rows] & 1) == 1
    costs = columns[-1].slice(rows.start, rows.stop - rows.start)
    unpriced = costs.is_null().to_numpy(zero_copy_only=False) & is_call
    counts = [pc.fill_null(each, 0).to_numpy(zero_copy_only=False)[rows] for each in columns[:-1]]
    sums = [exact_sum(each[is_call]) for each in (*counts, picodollars(costs))]
    return int(is_call.sum()), int((flags[rows] == 3).sum()), int(unpriced.sum()), sums


def compiled_sums_of(columns: Sequence[Any], flags: NDArray[np.uint8], rows: slice) -> _Found:
    assert kernel is not None
    given = []
    for each in columns:
        there, data = each.buffers()
        given.append((there if each.null_count else None, data, each.offset, each.type.bit_width // 8))
    calls, errors, unpriced, found = kernel.sums_of_calls(given, flags, rows.start, rows.stop)
    return calls, errors, unpriced, [(high << 32) + low for high, low in found]


def picodollars(costs: Any) -> NDArray[np.int64]:
    """Return an array of decimals of 12 places as whole picodollars; 0 for null."""
    data = np.frombuffer(costs.buffers()[1], "<i8").reshape(-1, 2)[costs.offset : costs.offset + len(costs), 0]
    found = data.copy()
    found[costs.is_null().to_numpy(zero_copy_only=False)] = 0
    return found


def exact_sum(column: NDArray[np.int64]) -> int:
    """Return the sum of numbers that are not negative, whatever its size."""
    return (int((column >> 32).sum()) << 32) + int((column & 0xFFFFFFFF).sum())


def _is_one_of(column: Any, values: Collection[str]) -> NDArray[np.bool_]:
    """Return of each text of a dictionary whether it is one of some."""
    found = np.array([text in values for text in column.dictionary.to_pylist()], np.bool_)
    mask: NDArray[np.bool_] = found[column.indices.to_numpy()]
    return mask
