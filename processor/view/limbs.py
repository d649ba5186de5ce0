"""The limbs in which columns keep and sum the numbers of rows without overflow, and the conversion back."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from processor.core.growing_arrays import I64, Records
from processor.core.tables.row_sums import TOTALS, RowSums, Totals

LIMB: Final = 32
MASK: Final = (1 << LIMB) - 1
NO_FIRST: Final = 2**63 - 1
NO_LAST: Final = -(2**63)
"""`last_seen` of a row without requests: a maximum ignores it."""

SAFE_BITS: Final = 40
"""Tokens of a row in columns are below 2^40, so eight million rows sum to less than 2^63. A row with more is wide: it
is kept and summed in Python integers."""

_COST: Final = ("cost_low", "cost_high")
"""A cost below 2^63 is kept in two limbs of 32 bits."""

SUMMED: Final = tuple(limb for name in TOTALS for limb in (_COST if name == "cost" else (name,)))
"""The columns that are summed."""


def split(rows: Records) -> I64:
    """Return the columns of `SUMMED`: shape (8, n)."""
    found = np.empty((len(SUMMED), len(rows)), np.int64)
    for name, column in zip(SUMMED, found, strict=True):
        if name not in _COST:
            column[:] = rows[name]
        elif name == "cost_low":
            np.bitwise_and(rows["cost"], MASK, out=column)
        else:
            np.right_shift(rows["cost"], LIMB, out=column)
    return found


def totals_of(columns: I64) -> Totals:
    """Return the exact sums of columns of shape (8, n)."""
    return joined(columns.sum(axis=1).tolist())


def joined(sums: Sequence[int]) -> Totals:
    """Return seven totals from eight sums in the order of `SUMMED`."""
    requests, errors, inputs, outputs, cached, low, high, unpriced = sums
    return Totals(requests, errors, inputs, outputs, cached, (high << LIMB) + low, unpriced)


def row_sums(sums: Sequence[int], first: int, last: int) -> RowSums:
    """Return the `RowSums` of eight sums in the order of `SUMMED`, and the times of the columns."""
    requests, errors, inputs, outputs, cached, low, high, unpriced = sums
    if not requests:
        first = last = 0
    return RowSums(requests, errors, inputs, outputs, cached, (high << LIMB) + low, unpriced, first, last)
