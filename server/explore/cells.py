"""The sums, and the values for quantiles, of each group in each interval: the cells of an answer of metrics."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.money import PLACES
from server.explore import sums
from server.explore.cell_parts import COSTS, ranked_column
from server.explore.histograms import Histograms, NotCounted
from server.explore.measures import Quantile
from server.explore.ranks import Ranks, joint_rank

MOST_BYTES: Final = 100 << 20
"""Of the counts of all approximate quantiles. Of exact ones the values are kept, 8 bytes each: 80 MB a column at most,
as there are at most `EXACT` events."""

LOW: Final = 0xFFFFFFFF
"""The low limb of a number."""

Numbers = NDArray[np.int64]
Key = tuple[str | None, ...]


class Cells:
    """The sums and values of each group in each interval, the cells."""

    def __init__(self, parts: Sequence[str | Quantile]) -> None:
        self.parts = parts
        self.numbers: dict[tuple[Key, int], int] = {}
        """Group and number of the interval -> number of the cell."""
        self._sums: dict[str, list[tuple[Numbers, Numbers, Numbers]]] = {}
        """Of each part: cells, and both limbs of what is added to each."""
        self._values: dict[str, dict[int, list[NDArray[np.float64]]]] = {}
        self._counted: dict[str, Histograms] = {}

    def number(self, key: Key, interval: int) -> int:
        """Return the number of a cell, a new one if need be."""
        return self.numbers.setdefault((key, interval), len(self.numbers))

    def add(self, part: str, cells: Numbers, low: Numbers, high: Numbers) -> None:
        """Add `low` + `high` * 2**32 to a part of some cells."""
        self._sums.setdefault(part, []).append((cells, low, high))

    def add_values(self, column: str, cell: int, values: NDArray[np.float64]) -> None:
        """Add values for quantiles."""
        self._values.setdefault(column, {}).setdefault(cell, []).append(values)

    def count_values(self, column: str, cells: Numbers, values: NDArray[np.float64]) -> None:
        """Add values for approximate quantiles, each to a cell."""
        counted = self._counted.setdefault(column, Histograms())
        try:
            counted.add(cells, values)
        except NotCounted:
            raise TooMany from None
        self._check_counts()

    def add_counts(self, column: str, cells: Numbers, codes: Numbers, counts: Numbers) -> None:
        """Add counts for approximate quantiles, as `counts` has them."""
        self._counted.setdefault(column, Histograms()).add_counts(cells, codes, counts)
        self._check_counts()

    def _check_counts(self) -> None:
        if sum(each.nbytes for each in self._counted.values()) > MOST_BYTES:
            raise TooMany

    def sums(self) -> dict[str, list[int]]:
        """Return the sums of each part, of all cells."""
        return {part: _added_up(added, len(self.numbers)) for part, added in self._sums.items()}

    def counts(self) -> dict[str, tuple[Numbers, Numbers, Numbers]]:
        """Return what was counted of each column: `Histograms.counts`."""
        return {column: each.counts() for column, each in self._counted.items()}

    def close(self) -> "CombinedCells":
        """Return what the cells have."""
        return CombinedCells(
            self.parts,
            self.sums(),
            {
                column: {cell: Ranks(np.concatenate(cells.pop(cell))) for cell in [*cells]}
                for column, cells in self._values.items()
            },
            self._counted,
        )


class TooMany(Exception):
    """There are more groups, or counts, than this is made for."""


class CombinedCells(Struct, frozen=True):
    """What is answered of some cells together."""

    parts: Sequence[str | Quantile]
    added: dict[str, list[int]]
    values: dict[str, dict[int, "Ranks"]]
    counted: dict[str, Histograms]
    """Of columns whose values are not kept."""

    def row(self, cells: Sequence[int]) -> tuple[Any, ...]:
        """Return the parts of the events of some cells, and how many they are, as the engine would."""
        ranked = {column: self._ranked(column, cells) for column in {*map(ranked_column, self.parts)} - {None}}
        found = [
            self._sum(part, cells) if isinstance(part, str) else ranked[ranked_column(part)][part.percent]
            for part in self.parts
        ]
        return (*found, self._sum(sums.REQUESTS, cells))

    def _sum(self, part: str, cells: Iterable[int]) -> int | Decimal:
        added = self.added.get(part)
        found = 0 if added is None else sum(added[cell] for cell in cells)
        return Decimal(f"{found}e-{PLACES}") if part in COSTS else found

    def _ranked(self, column: str | None, cells: Iterable[int]) -> dict[int, float | None]:
        """Return percent -> the nearest rank, of all that are asked for of a column."""
        percents = [part.percent for part in self.parts if isinstance(part, Quantile) and ranked_column(part) == column]
        if column in self.counted:
            return self.counted[column].at([*cells], percents)
        of_column = self.values.get(column or "", {})
        found = [of_column[cell] for cell in cells if cell in of_column]
        return {percent: joint_rank(found, percent) if found else None for percent in percents}


def _added_up(added: Iterable[tuple[Numbers, Numbers, Numbers]], size: int) -> list[int]:
    """Return the sum of each cell: limbs of 32 bits do not overflow in 2**31 additions."""
    cells, lows, highs = (np.concatenate(arrays) for arrays in zip(*added, strict=True))
    low, high = np.zeros(size, np.int64), np.zeros(size, np.int64)
    np.add.at(low, cells, lows & LOW)
    np.add.at(high, cells, highs + (lows >> 32))
    return [(above << 32) + below for above, below in zip(high.tolist(), low.tolist(), strict=True)]
