"""Sums without rounding, against fractions."""

import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.explore.exact_sums import SCALE, Moments, NotFinite, moments, whole_moments

NUMBERS = st.one_of(
    st.floats(-1e150, 1e150).filter(lambda number: number == 0 or abs(number) > 1e-150),
    st.floats(0.01, 60_000),
    st.integers(-5, 5).map(float),
)
GROUPS = st.lists(st.lists(NUMBERS, max_size=30), min_size=1, max_size=5)
WITH_SQUARES = NUMBERS.filter(lambda number: number == 0 or abs(number) >= 2.0**-485)
"""Their squares have no digit below 2**-1074."""


def of(groups: list[list[float]]) -> list[Moments]:
    """Return the moments of some groups at once."""
    values = np.array([value for group in groups for value in group], np.float64)
    return moments(values, np.array([len(group) for group in groups], np.int64))


@given(st.lists(st.lists(WITH_SQUARES, max_size=30), min_size=1, max_size=5))
def test_equals_fractions(groups: list[list[float]]) -> None:
    for found, group in zip(of(groups), groups, strict=True):
        assert found.size == len(group)
        assert Fraction(found.total, 1 << SCALE) == sum(map(Fraction, group))
        assert Fraction(found.squares, 1 << SCALE) == sum(Fraction(value) ** 2 for value in group)


@example([[6.923835934295211e-149], [1.0, -1e-149]])
@given(GROUPS)
def test_is_the_same_in_any_order_and_for_any_parts(groups: list[list[float]]) -> None:
    (whole,) = of([sorted(value for group in groups for value in group)])
    assert whole == tuple(sum(each) for each in zip(*of(groups), strict=True))


@given(st.lists(st.one_of(st.floats(0.01, 60_000), st.integers(0, 9).map(float)), min_size=2, max_size=40))
def test_the_deviation_is_that_of_a_sample(values: list[float]) -> None:
    (found,) = of([values])
    deviation = found.deviation()
    assert deviation is not None
    exact = statistics.variance(map(Fraction, values))
    nearest = Fraction(1, 2 * 10**12)  # it is no more than half a unit off
    assert max(deviation - nearest, Fraction(0)) ** 2 <= exact <= (deviation + nearest) ** 2
    assert deviation.limit_denominator(10**12) == deviation


@pytest.mark.parametrize(("half", "wanted"), [(0.5, 0), (1.5, 2), (2.5, 2), (0.75, 1)])
def test_a_deviation_is_rounded_half_even(half: float, wanted: int) -> None:
    """That of three numbers, as far from each other, is that distance."""
    unit = Fraction(1, 10**12)
    (found,) = of([[-half, 0.0, half]])
    assert found.deviation(unit) == wanted * unit


def test_of_less_than_two_there_is_none() -> None:
    none, one = of([[], [3.5]])
    assert (none.sum, none.deviation(), one.sum, one.deviation()) == (None, None, Fraction(7, 2), None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_has_no_sum(value: float) -> None:
    with pytest.raises(NotFinite):
        of([[1.0, value]])


@given(st.lists(st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**62)), max_size=9), min_size=1, max_size=4))
def test_whole_numbers_of_any_size(groups: list[list[int]]) -> None:
    values = np.array([value for group in groups for value in group], np.int64)
    found = whole_moments(values, np.array([len(group) for group in groups], np.int64))
    assert [(each.size, each.total >> SCALE, each.squares >> SCALE) for each in found] == [
        (len(group), sum(group), sum(value * value for value in group)) for group in groups
    ]
