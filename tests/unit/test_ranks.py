"""Nearest ranks of several sets of numbers, against sorting them."""

from fractions import Fraction
from math import ceil

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.explore.ranks import Ranks, joint_rank

NUMBERS = st.one_of(st.floats(allow_nan=False), st.integers(0, 5).map(float))
SETS = st.lists(st.lists(NUMBERS, min_size=1, max_size=40), min_size=1, max_size=6)
PERCENTS = st.lists(st.sampled_from([50, 90, 95, 99]), min_size=1)


@given(SETS, PERCENTS)
def test_the_rank_of_all_is_that_of_the_sorted_numbers(sets: list[list[float]], percents: list[int]) -> None:
    ranks = [Ranks(np.array(each)) for each in sets]
    ordered = sorted(value for each in sets for value in each)
    for percent in percents:
        wanted = ordered[ceil(Fraction(len(ordered) * percent, 100)) - 1]
        assert joint_rank(ranks, percent) == wanted
        assert [each.at(percent) for each in ranks] == [
            sorted(each)[ceil(Fraction(len(each) * percent, 100)) - 1] for each in sets
        ]
