"""Exact sums of a message's rows by group: a few calls of numpy for all rows of a message."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from processor.core.events.columns import ROW, SUMMED, UNPRICED_FLAG, Rows
from processor.core.tables.row_dtype import words_of
from processor.core.tables.row_sums import RowSums
from processor.core.tables.table_rows import Sums

SAFE: Final = 2**62
"""Sums in 64 bits stay below it, so that two of them can be added."""

_WORDS: Final = ROW.itemsize // 8
_AMOUNTS: Final = words_of(ROW, SUMMED)

Codes = NDArray[np.int64]


class Group(NamedTuple):
    """What the rows of one group add up to."""

    code: int
    offset: int
    """The greatest of its rows' messages."""
    sums: RowSums

    def add_to(self, row: Sums) -> None:
        """Add them to a row, which has their messages from then on."""
        row.offset = self.offset
        row.add(self.sums)


class Grouped(NamedTuple):
    """The sums of several groups: shape (n,) each, but for `amounts`."""

    codes: Codes
    """Ascending."""
    offsets: Codes
    """The greatest of each group's messages."""
    requests: Codes
    errors: Codes
    unpriced: Codes
    first_seen: Codes
    """Microseconds since the epoch, like `last_seen`."""
    last_seen: Codes
    amounts: NDArray[Any]
    """Shape (n, 4), in the order of `row_sums.AMOUNTS`: below `SAFE`, or objects if they might not be."""

    def where(self, chosen: NDArray[np.bool_]) -> "Grouped":
        """Some of the groups."""
        return Grouped(*(column[chosen] for column in self))

    def each(self) -> Iterator[Group]:
        """The groups one by one."""
        for code, offset, requests, errors, unpriced, first, last, amounts in zip(
            *(column.tolist() for column in self), strict=True
        ):
            inputs, outputs, cached, cost = amounts
            yield Group(code, offset, RowSums(requests, errors, inputs, outputs, cached, cost, unpriced, first, last))


def grouped(codes: Codes, offsets: Codes, rows: Rows, errors: NDArray[np.bool_]) -> Grouped:
    """The sums over the rows of each code; `offsets` are those of their messages, `errors` tells the failed events.
    There is at least one row."""
    order = np.argsort(codes, kind="stable")
    codes, rows, errors = codes[order], rows.take(order), errors[order]  # an index would copy rows field by field
    starts = np.concatenate(([0], np.flatnonzero(codes[1:] != codes[:-1]) + 1))
    amounts = rows.view(np.int64).reshape(-1, _WORDS)[:, _AMOUNTS]
    # Nothing is summed in 64 bits that might not fit; as objects, Python's own integers add up.
    most = max(int(amounts.max()), -int(amounts.min()))
    exact = amounts if most <= (SAFE - 1) // len(rows) else amounts.astype(object)
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
