"""The cells of a segment, as metrics keep them for the next question: sums, and counts for approximate quantiles.

The files of segments never change, so a question that was refused for its time goes on behind the segments that it had
added up when it is asked again, and one that is asked every minute reads what is new.
"""

from collections.abc import Sequence
from hashlib import blake2b
from sys import getsizeof
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import zstandard

from server.explore.cells import LOW, Cells, Key, Numbers
from server.explore.kept_summaries import KeptSummaries, SummaryKey
from server.explore.measures import Quantile
from server.explore.questions import MetricsQuestion
from server.explore.snapshot import Piece

SHARE: Final = 0.5
"""Of all that is kept, what one question keeps at most: then it keeps nothing more, lest it drives out itself."""

_Counts = tuple[bytes, int]
"""Packed cells (4 bytes each), codes (2) and counts (4), and how many there are."""


class PieceCells(NamedTuple):
    """What the cells of a piece have."""

    numbers: list[tuple[Key, int]]
    """Of each cell its group, and its interval, of which the first of the piece is 0."""
    added: dict[str, list[int]]
    counted: dict[str, _Counts]

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        texts = sum(120 + sum(getsizeof(text) for text in key) for key, _ in self.numbers)
        return (
            texts + 40 * len(self.numbers) * len(self.added) + sum(200 + len(data) for data, _ in self.counted.values())
        )


def packed(cells: Cells, first: int) -> PieceCells:
    """Return what some cells have; `first`: the number of the first interval."""
    numbers = [(key, interval - first) for key, interval in cells.numbers]
    return PieceCells(numbers, cells.sums(), {name: _pack(*found) for name, found in cells.counts().items()})


def add_to(cells: Cells, kept: PieceCells, first: int) -> None:
    """Add what is kept of a piece. Raises `TooMany`."""
    places = np.array([cells.number(key, first + interval) for key, interval in kept.numbers], np.int64)
    for part, sums in kept.added.items():
        low = np.array([value & LOW for value in sums], np.int64)
        cells.add(part, places, low, np.array([value >> 32 for value in sums], np.int64))
    for name, counts in kept.counted.items():
        of, codes, many = _unpack(*counts)
        cells.add_counts(name, places[of], codes, many)


class CellKeeper:
    """Keeps the cells of the pieces of one question."""

    def __init__(
        self, kept: KeptSummaries, question: MetricsQuestion, parts: Sequence[str | Quantile], starts: Numbers
    ) -> None:
        """`starts`: where each interval begins, ascending."""
        self._kept = kept
        self._project = question.project
        self._asked: list[Any] = [question.filters, question.group_by, [*parts]]
        self._starts = starts
        self._size = 0
        self.has_room = True
        """Whether all that was added up so far is kept."""

    def key(self, piece: Piece) -> SummaryKey:
        """Return what the cells of a piece are kept as: the same where no interval begins elsewhere within it."""
        low, high = np.searchsorted(self._starts, [piece.sums.time_min, piece.sums.time_max], "right").tolist()
        asked = msgspec.json.encode([*self._asked, self._starts[low:high].tolist()], order="deterministic")
        return SummaryKey(piece.segment.id, -1, self._project, ("cells", blake2b(asked, digest_size=16).hexdigest()))

    def get(self, piece: Piece) -> PieceCells | None:
        """Return the cells of a piece, if they are kept."""
        found: PieceCells | None = self._kept.get(self.key(piece))
        self._size += 0 if found is None else found.size
        return found

    def keep(self, piece: Piece, found: PieceCells) -> None:
        """Keep them, if there is room."""
        self._size += found.size
        self.has_room = self.has_room and self._size <= SHARE * self._kept.most
        if self.has_room:
            self._kept.keep(self.key(piece), found, found.size)


def _pack(cells: Numbers, codes: Numbers, counts: Numbers) -> _Counts:
    data = b"".join((cells.astype("<u4").tobytes(), codes.astype("<u2").tobytes(), counts.astype("<u4").tobytes()))
    return zstandard.ZstdCompressor(level=1).compress(data), len(cells)


def _unpack(data: bytes, size: int) -> tuple[Numbers, Numbers, Numbers]:
    found = zstandard.ZstdDecompressor().decompress(data, max_output_size=10 * size) if size else b""
    cells = np.frombuffer(found, "<u4", size)
    codes = np.frombuffer(found, "<u2", size, 4 * size)
    counts = np.frombuffer(found, "<u4", size, 6 * size)
    return cells.astype(np.int64), codes.astype(np.int64), counts.astype(np.int64)
