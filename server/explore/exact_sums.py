"""Sums of doubles, and of their squares, without rounding: the same in any order, and for any parts of the values.

Numbers are split at a power of two above their sum, so that the higher parts add up without rounding, and what is left
of them again, until nothing is left (Demmel and Nguyen, "Fast reproducible floating-point summation", 2013). As
fractions, a number and its square take 6 µs, here 0.06.
"""

from fractions import Fraction
from itertools import pairwise
from math import frexp, isqrt, ldexp
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from processor.core.money import PICO

SCALE: Final = 1100
"""Sums are integers in units of 2**-SCALE: the smallest double is 2**-1074."""

_SPLIT: Final = float((1 << 27) + 1)


class NotFinite(Exception):
    """A number has no sum."""


class Moments(NamedTuple):
    """What mean and deviation of some numbers are made of."""

    size: int
    """How many there are."""
    total: int
    squares: int
    """Both in units of 2**-SCALE."""

    @property
    def sum(self) -> Fraction | None:
        """The sum; None: there are no numbers."""
        return Fraction(self.total, 1 << SCALE) if self.size else None

    def deviation(self, unit: Fraction = Fraction(1)) -> Fraction | None:
        """Return that of a sample of numbers in this unit, rounded half-even to 12 places; None for less than two."""
        if self.size < 2:
            return None
        spread = (self.size * self.squares << SCALE) - self.total**2
        square = Fraction(spread, self.size * (self.size - 1) << 2 * SCALE) * (unit * PICO) ** 2
        root = isqrt(square.numerator // square.denominator)
        over = 4 * square - (2 * root + 1) ** 2  # is it nearer to the next one?
        return Fraction(root + (over > 0 or (over == 0 and root % 2 == 1)), PICO)


NONE: Final = Moments(0, 0, 0)


def moments(values: NDArray[np.float64], counts: NDArray[np.int64]) -> list[Moments]:
    """Return those of each group of numbers: `counts` says how many of the next ones are in it.

    The numbers are up to 1e150; of squares of numbers below 2**-485 the part below 2**-1074 is missing. Raises
    `NotFinite`.
    """
    found = [NONE] * len(counts)
    if not len(values):
        return found
    if not np.isfinite(values).all():
        raise NotFinite
    places = np.flatnonzero(counts)
    starts = (np.cumsum(counts) - counts)[places]
    squares = values * values
    split = values * _SPLIT  # into halves, whose products need no rounding (Dekker)
    high = split - (split - values)
    low = values - high
    missing = ((high * high - squares) + 2 * high * low) + low * low
    totals, rounded, rest = (_totals(each, starts) for each in (values, squares, missing))
    for place, count, total, one, other in zip(
        places.tolist(), counts[places].tolist(), totals, rounded, rest, strict=True
    ):
        found[place] = Moments(count, total, one + other)
    return found


def whole_moments(values: NDArray[np.int64], counts: NDArray[np.int64]) -> list[Moments]:
    """Return the same of whole numbers of any size."""
    if int(np.abs(values).max(initial=0)) < _EXACT:
        return moments(values.astype(np.float64), counts)
    ends = np.cumsum(counts).tolist()
    parts = [values[start:end].tolist() for start, end in pairwise([0, *ends])]
    return [Moments(len(part), sum(part) << SCALE, sum(each * each for each in part) << SCALE) for part in parts]


_EXACT: Final = 1 << 53
"""Below it, whole numbers are exact as doubles."""


def _totals(values: NDArray[np.float64], starts: NDArray[Any]) -> list[int]:
    found, bits = [0] * len(starts), len(values).bit_length()
    while most := float(np.abs(values).max()):
        # Next to `above`, doubles are multiples of 2**-53 of it, and so are the higher parts; their sum is below it.
        above = ldexp(1.0, frexp(most)[1] + bits)
        higher = (values + above) - above
        for number, each in enumerate(np.add.reduceat(higher, starts).tolist()):
            numerator, denominator = each.as_integer_ratio()
            found[number] += numerator << (SCALE + 1 - denominator.bit_length())
        values = values - higher
    return found
