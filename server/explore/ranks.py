"""Nearest ranks of many numbers in several sets, and of all of them together: the smallest number that so many percent
of them do not exceed.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Ranks:
    """A set of numbers, at least one; their order is not kept."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        self.values = values
        self._found: dict[int, float] = {}

    def at(self, percent: int) -> float:
        """Return the nearest rank."""
        found = self._found.get(percent)
        if found is None:
            place = rank(percent, len(self.values)) - 1
            self.values.partition(place)
            found = self._found[percent] = float(self.values[place])
        return found


def rank(percent: int, count: int) -> int:
    """Return which of so many sorted numbers is the nearest rank; the first one is 1."""
    return max(-(-percent * count // 100), 1)


def joint_rank(sets: Sequence[Ranks], percent: int) -> float:
    """Return the nearest rank of all numbers of some sets, at least one.

    It lies between the lowest and the highest of those of the sets: up to the highest there are as many numbers in each
    set as its rank says, and before the lowest fewer. So only what lies between is looked through: of ten million
    numbers in 240 sets that takes 0.05 s, and 0.1 s to look through them all.
    """
    if len(sets) == 1:
        return sets[0].at(percent)
    found = [each.at(percent) for each in sets]
    low, high = min(found), max(found)
    below, between = 0, []
    for each in sets:
        below += int(np.count_nonzero(each.values < low))
        between.append(each.values[(each.values >= low) & (each.values <= high)])
    near = np.concatenate(between)
    place = rank(percent, sum(len(each.values) for each in sets)) - below - 1
    near.partition(place)
    return float(near[place])
