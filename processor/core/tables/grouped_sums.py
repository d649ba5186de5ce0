"""Exact sums of a message's rows by group: a few calls of numpy for all rows of a message."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from processor.core.events.columns import ROW, UNPRICED_FLAG, Rows
from processor.core.tables.table_rows import Sums

SAFE: Final = 2**62
"""Sums in 64 bits stay below it, so that two of them can be added."""

_WORDS: Final = ROW.itemsize // 8
_NUMBERS: Final = slice(4, 8)
"""The columns of `SUMMED`, in 64-bit words: they lie side by side."""

Codes = NDArray[np.int64]


class Group(NamedTuple):
    """What the rows of one group add up to."""

    code: int
    offset: int
    """The greatest of its rows' messages."""
    events: int
    errors: int
    unpriced: int
    first: int
    """Microseconds since the epoch, like `last`."""
    last: int
    sums: tuple[int, int, int, int]
    """In the order of `SUMMED`."""

    def add_to(self, row: Sums) -> None:
        """Add them to a row, which has their messages from then on."""
        row.offset = self.offset
        row.first_seen = min(row.first_seen, self.first) if row.requests else self.first
        row.last_seen = max(row.last_seen, self.last) if row.requests else self.last
        row.requests += self.events
        row.errors += self.errors
        row.unpriced += self.unpriced
        inputs, outputs, cached, cost = self.sums
        row.input_tokens += inputs
        row.output_tokens += outputs
        row.cached_tokens += cached
        row.cost += cost


class Grouped(NamedTuple):
    """The sums of several groups: shape (n,) each, but for `numbers`."""

    codes: Codes
    """Ascending."""
    offsets: Codes
    """The greatest of each group's messages."""
    events: Codes
    errors: Codes
    unpriced: Codes
    first: Codes
    last: Codes
    numbers: NDArray[Any]
    """Shape (n, 4), in the order of `SUMMED`: below `SAFE`, or objects if they might not be."""

    def where(self, chosen: NDArray[np.bool_]) -> "Grouped":
        """Some of the groups."""
        return Grouped(*(column[chosen] for column in self))

    def each(self) -> Iterator[Group]:
        """The groups one by one."""
        for *counts, numbers in zip(*(column.tolist() for column in self), strict=True):
            code, offset, events, errors, unpriced, first, last = counts
            inputs, outputs, cached, cost = numbers
            yield Group(code, offset, events, errors, unpriced, first, last, (inputs, outputs, cached, cost))


def grouped(codes: Codes, offsets: Codes, rows: Rows, errors: NDArray[np.bool_]) -> Grouped:
    """The sums over the rows of each code; `offsets` are those of their messages, `errors` tells the failed events.
    There is at least one row."""
    order = np.argsort(codes, kind="stable")
    codes, rows, errors = codes[order], rows[order], errors[order]
    starts = np.concatenate(([0], np.flatnonzero(codes[1:] != codes[:-1]) + 1))
    numbers = rows.view(np.int64).reshape(-1, _WORDS)[:, _NUMBERS]
    # Nothing is summed in 64 bits that might not fit; as objects, Python's own integers add up.
    most = max(int(numbers.max()), -int(numbers.min()))
    exact = numbers if most <= (SAFE - 1) // len(rows) else numbers.astype(object)
    return Grouped(
        codes[starts],
        np.maximum.reduceat(offsets[order], starts),
        np.diff(starts, append=len(rows)),
        np.add.reduceat(errors.astype(np.int64), starts),
        np.add.reduceat((rows["flags"] & UNPRICED_FLAG).astype(np.int64), starts),
        np.minimum.reduceat(rows["at"], starts),
        np.maximum.reduceat(rows["at"], starts),
        np.add.reduceat(exact, starts, axis=0),
    )


def by_group(codes: Codes, offsets: Codes, rows: Rows, errors: NDArray[np.bool_]) -> list[Group]:
    """`grouped`, one by one."""
    return list(grouped(codes, offsets, rows, errors).each())
