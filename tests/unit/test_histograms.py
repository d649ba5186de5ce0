"""Nearest ranks of numbers that are counted instead of kept, against sorting them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.explore.histograms import LEAST, POWERS, Histograms, NotCounted
from server.explore.ranks import rank

MOST = LEAST * 2.0**POWERS * 0.998
NUMBERS = st.one_of(
    st.just(0.0), st.floats(LEAST, MOST), st.integers(1, 100_000).map(float), st.integers(-20, 42).map(lambda n: 2.0**n)
)
PERCENTS = (1, 50, 90, 95, 99, 100)


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), NUMBERS), max_size=60), max_size=4), st.sets(st.integers(0, 7)))
def test_ranks_are_those_of_the_sorted_numbers_within_a_five_hundredth(
    batches: list[list[tuple[int, float]]], cells: set[int]
) -> None:
    counted = Histograms()
    for batch in batches:
        counted.add(
            np.array([cell for cell, _ in batch], np.int64), np.array([value for _, value in batch], np.float64)
        )
    ordered = sorted(value for batch in batches for cell, value in batch if cell in cells)
    found = counted.at(sorted(cells), PERCENTS)
    copied = Histograms()
    for _ in range(2):
        copied.add_counts(*counted.counts())  # twice as many of each: the ranks are the same
    assert copied.at(sorted(cells), PERCENTS) == found
    of_cells, codes, counts = counted.counts()
    assert counts.sum() == sum(map(len, batches))
    assert len({*zip(of_cells.tolist(), codes.tolist(), strict=True)}) == len(counts)
    assert [*found] == [*PERCENTS]
    for percent, value in found.items():
        if not ordered:
            assert value is None
            continue
        wanted = ordered[rank(percent, len(ordered)) - 1]
        assert value is not None
        assert abs(value - wanted) <= wanted / 512


@pytest.mark.parametrize("value", [-1.0, -1e-300, 5e-324, LEAST / 2, 2 * MOST, float("inf"), float("nan")])
def test_numbers_that_have_no_place_are_refused_and_change_nothing(value: float) -> None:
    counted = Histograms()
    counted.add(np.array([0, 0]), np.array([1.0, 3.0]))
    with pytest.raises(NotCounted):
        counted.add(np.array([0, 0]), np.array([7.0, value]))
    assert counted.at([0], [50, 100]) == {50: 1.0, 100: 3.0}


def test_a_cell_takes_room_for_the_powers_of_two_that_it_has() -> None:
    counted = Histograms()
    values = np.exp(np.random.default_rng(1).normal(7, 1, 100_000))
    for cell in range(50):
        counted.add(np.full(len(values), cell), values)
    assert counted.nbytes < 50 * 2 * 16 * 256 * 8 + 50 * 2 * 64 * 8
