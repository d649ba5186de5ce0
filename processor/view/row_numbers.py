"""What rows say: exact sums as Python integers, and the limbs in which columns keep them."""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from processor.core.growing_arrays import I64, Records
from processor.core.tables.table_rows import NEVER

Numbers = tuple[int, ...]
"""What a row or a sum of rows says, in the order of `tables.Sums.value`: offset (`NEVER` in a sum), requests, errors,
input, output and cached tokens, cost, unpriced, first seen, last seen; both times 0 if there are no requests."""

NOBODY: Final[Numbers] = (NEVER, 0, 0, 0, 0, 0, 0, 0, 0, 0)

TOTALS: Final = slice(1, 8)
"""Where numbers have what a total has."""

LIMB: Final = 32
MASK: Final = (1 << LIMB) - 1
NO_FIRST: Final = 2**63 - 1
NO_LAST: Final = -(2**63)
"""The times of no requests: those that a minimum and a maximum pass over."""

SAFE_BITS: Final = 40
"""Tokens of a row in columns stay below 2^40: eight million rows add up to less than 2^63. A row with more is wide: it
is kept and added up in Python integers."""

SUMMED: Final = (
    "requests",
    "errors",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cost_low",
    "cost_high",
    "unpriced",
)
"""Fields that are added up; a cost below 2^63 goes in two limbs of 32 bits."""


def limbs(rows: Records) -> I64:
    """The fields of `SUMMED`: shape (8, n)."""
    found = np.empty((8, len(rows)), np.int64)
    cost = rows["cost"]
    found[0], found[1] = rows["requests"], rows["errors"]
    found[2], found[3], found[4] = rows["input_tokens"], rows["output_tokens"], rows["cached_tokens"]
    np.bitwise_and(cost, MASK, out=found[5])
    np.right_shift(cost, LIMB, out=found[6])
    found[7] = rows["unpriced"]
    return found


def totals_of(columns: I64) -> list[int]:
    """Requests, errors, input, output and cached tokens, cost, unpriced: the exact sums of columns of shape (8, n)."""
    return joined(columns.sum(axis=1).tolist())


def joined(sums: Sequence[int]) -> list[int]:
    """Eight sums as in `SUMMED` to seven."""
    requests, errors, inputs, outputs, cached, low, high, unpriced = sums
    return [requests, errors, inputs, outputs, cached, (high << LIMB) + low, unpriced]


def numbers(sums: Sequence[int], first: int, last: int) -> Numbers:
    """Eight sums as in `SUMMED` and the times of the columns as the numbers of a row."""
    if not sums[0]:
        first = last = 0
    return (NEVER, *joined(sums), first, last)


def merge(one: Numbers, other: Numbers) -> Numbers:
    """Add up what two rows say."""
    first, last, first1, last1 = one[8], one[9], other[8], other[9]
    if not one[1]:  # its times mean nothing
        first, last = first1, last1
    elif not other[1]:
        first1, last1 = first, last
    sums = [a + b for a, b in zip(one[TOTALS], other[TOTALS], strict=True)]
    if not sums[0]:
        first = first1 = last = last1 = 0
    return (NEVER, *sums, min(first, first1), max(last, last1))


def merged(rows: Iterable[Numbers]) -> Numbers:
    """Add up what rows say."""
    total = NOBODY
    for row in rows:
        total = merge(total, row)
    return total
