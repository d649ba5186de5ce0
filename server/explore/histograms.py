"""How often numbers come in each of many cells, for nearest ranks of more numbers than are kept: the approximate ones.

A number is rounded to nine bits, so it is at most 0.2 % off, as `aggregation` rounds it. Those of one power of two are
a page of 256 counts, and a cell has the pages that it needs: latencies between 0.1 and 60 seconds are ten of them, 10
KiB, however many there are.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from server.explore.aggregation import BITS
from server.explore.ranks import rank

LEAST: Final = 2.0**-20
"""Smaller numbers than this, but for 0, are not counted."""
POWERS: Final = 63
"""Powers of two from `LEAST` on; larger numbers are not counted either."""

_PAGE: Final = 1 << BITS
_PAGES: Final = POWERS + 1
"""Of a cell at most: the first of them has the zeros."""
_SHIFT: Final = 52 - BITS
_HALF: Final = 1 << (_SHIFT - 1)
_FIRST: Final = (1023 - 21) << BITS
"""What codes begin at: a power below that of `LEAST`."""

Numbers = NDArray[np.int64]


class NotCounted(Exception):
    """A number is negative, or beyond what is counted."""


class Histograms:
    """The counts of all cells."""

    def __init__(self) -> None:
        self._pages = np.full(_PAGES, -1, np.int64)
        """Of each cell and power, end to end: the number of its page; -1: it has none."""
        self._counts = np.zeros(0, np.int64)
        self._used = 0
        """Pages."""

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self._pages.nbytes + self._counts.nbytes

    def add(self, cells: Numbers, values: NDArray[np.float64]) -> None:
        """Count values, each in a cell. Raises `NotCounted`."""
        if not len(values):
            return
        codes = ((values.view(np.int64) + _HALF) >> _SHIFT) - _FIRST
        is_small = values < LEAST
        if is_small.any():
            if values[is_small].any():
                raise NotCounted
            codes[is_small] = 0
        if int(codes.max()) >= _PAGES * _PAGE:
            raise NotCounted
        self._add(cells, codes, 1)

    def add_counts(self, cells: Numbers, codes: Numbers, counts: Numbers) -> None:
        """Add what `counts` has returned; cells of other numbers may stand for the same ones."""
        if len(cells):
            self._add(cells, codes, counts)

    def counts(self) -> tuple[Numbers, Numbers, Numbers]:
        """Return cells, codes of rounded numbers, below 2**14, and how often each is there: at least once."""
        homes = np.flatnonzero(self._pages >= 0)
        counts = self._counts.reshape(-1, _PAGE)[self._pages[homes]]
        rows, places = np.nonzero(counts)
        return homes[rows] // _PAGES, homes[rows] % _PAGES * _PAGE + places, counts[rows, places]

    def _add(self, cells: Numbers, codes: Numbers, counts: Numbers | int) -> None:
        self._reserve(int(cells.max()) + 1)
        homes = cells * _PAGES + (codes >> BITS)
        pages = self._pages[homes]
        if int(pages.min()) < 0:
            self._add_pages(np.unique(homes[pages < 0]))
            pages = self._pages[homes]
        np.add.at(self._counts, pages * _PAGE + (codes & (_PAGE - 1)), counts)

    def _reserve(self, cells: int) -> None:
        if len(self._pages) < cells * _PAGES:
            more = max(cells * _PAGES, 2 * len(self._pages)) - len(self._pages)
            self._pages = np.concatenate([self._pages, np.full(more, -1, np.int64)])

    def _add_pages(self, homes: Numbers) -> None:
        self._pages[homes] = np.arange(self._used, self._used + len(homes))
        self._used += len(homes)
        if len(self._counts) < self._used * _PAGE:
            more = max(self._used * _PAGE, 2 * len(self._counts)) - len(self._counts)
            self._counts = np.concatenate([self._counts, np.zeros(more, np.int64)])

    def at(self, cells: Sequence[int], percents: Sequence[int]) -> dict[int, float | None]:
        """Return percent -> the nearest rank of the values of some cells together; None: they have none."""
        added = np.zeros((_PAGES, _PAGE), np.int64)
        here = np.array([cell for cell in cells if cell < len(self._pages) // _PAGES], np.int64)
        pages = self._pages.reshape(-1, _PAGES)[here]
        for power in np.flatnonzero((pages >= 0).any(axis=0)).tolist():
            used = pages[:, power]
            added[power] = self._counts.reshape(-1, _PAGE)[used[used >= 0]].sum(axis=0)
        up_to = np.cumsum(added)
        count = int(up_to[-1])
        if not count:
            return dict.fromkeys(percents)
        codes = np.searchsorted(up_to, [rank(percent, count) for percent in percents])
        values = np.where(codes == 0, 0.0, ((codes + _FIRST) << _SHIFT).view(np.float64))
        return dict(zip(percents, values.tolist(), strict=True))
