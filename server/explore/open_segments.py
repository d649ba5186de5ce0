"""The files of segments that one question holds open: no more of them than its part of those of the process."""

import resource
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from server.explore.segment_files import OpenFile
from server.explore.snapshot import Piece

MOST: Final = 512
"""Files that a question holds open at most, of each kind."""

PART: Final = 1 / 32
"""Part of the files that the process may have open which these are: eight questions and exports run at once."""


def most_open() -> int:
    """Return how many files a question may hold open, of each kind."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if limit == resource.RLIM_INFINITY else max(1, min(MOST, int(limit * PART)))


class OpenFiles:
    """The most recently used files of one kind. For one thread."""

    def __init__(self, make: Callable[[Piece], OpenFile]) -> None:
        self._make = make
        self._most: int | None = most_open()
        self._files: OrderedDict[str, OpenFile] = OrderedDict()

    def get(self, piece: Piece) -> OpenFile:
        """Return the file of a piece, open until another is asked for. Raises `SegmentGone`, `Refused`."""
        found = self._files.get(piece.segment.id)
        if found is not None:
            self._files.move_to_end(piece.segment.id)
            return found
        if self._most is not None and len(self._files) >= self._most:
            _, oldest = self._files.popitem(last=False)
            oldest.close()
        found = self._files[piece.segment.id] = self._make(piece)
        return found

    def keep_all(self) -> None:
        """Close none before `close`, so that all stay readable when they are deleted."""
        self._most = None

    def close(self) -> None:
        """Close all."""
        while self._files:
            self._files.popitem()[1].close()
