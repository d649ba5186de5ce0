"""Exact sums of a message's rows by group: a few calls of numpy for all rows of a message."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from processor.core.columns import ROW, UNPRICED_FLAG, Rows

_MAX: Final = 2**63 - 1
_WORDS: Final = ROW.itemsize // 8
_NUMBERS: Final = slice(4, 8)
"""The columns of `SUMMED`, in 64-bit words: they lie side by side."""

Codes = NDArray[np.int64]


class Group(NamedTuple):
    """What the rows of one group add up to."""

    code: int
    events: int
    errors: int
    unpriced: int
    first: int
    """Microseconds since the epoch, like `last`."""
    last: int
    sums: tuple[int, int, int, int]
    """In the order of `SUMMED`."""


def by_group(codes: Codes, rows: Rows, errors: NDArray[np.bool_]) -> list[Group]:
    """The sums over the rows of each code; `errors` tells the failed events. There is at least one row."""
    order = np.argsort(codes, kind="stable")
    codes, rows, errors = codes[order], rows[order], errors[order]
    starts = np.concatenate(([0], np.flatnonzero(codes[1:] != codes[:-1]) + 1))
    numbers = rows.view(np.int64).reshape(-1, _WORDS)[:, _NUMBERS]
    # Nothing is summed in 64 bits that might not fit; as objects, Python's own integers add up.
    most = max(int(numbers.max()), -int(numbers.min()))
    exact = numbers if most <= _MAX // len(rows) else numbers.astype(object)
    columns = (
        codes[starts],
        np.diff(starts, append=len(rows)),
        np.add.reduceat(errors.astype(np.int64), starts),
        np.add.reduceat((rows["flags"] & UNPRICED_FLAG).astype(np.int64), starts),
        np.minimum.reduceat(rows["at"], starts),
        np.maximum.reduceat(rows["at"], starts),
    )
    sums = np.add.reduceat(exact, starts, axis=0)
    return [
        Group(code, events, failed, unpriced, first, last, (inputs, outputs, cached, cost))
        for (code, events, failed, unpriced, first, last), (inputs, outputs, cached, cost) in zip(
            zip(*(column.tolist() for column in columns), strict=True), sums.tolist(), strict=True
        )
    ]
