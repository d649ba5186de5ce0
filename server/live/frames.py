"""What the subscribers of a project share: the ticks of its feed, and the frames from one tick to another."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from processor.core.growing_arrays import I64
from processor.view.listing import UserSums

FRAME_ROWS: Final = 1000
"""Most rows in one frame."""
HISTORY: Final = 1 << 17
"""Changed users that a project remembers, over all of its ticks."""
TICKS: Final = 64
"""Ticks that a project remembers."""
ELSEWHERE: Final = -1
"""The tick of a mark that came with a token: no tick of this process."""


class Mark(NamedTuple):
    """A moment of the feed: everything up to `position` (partition -> offset) has been sent."""

    tick: int
    position: Mapping[int, int]


class Frame:
    """Rows that are sent together, encoded once for each API however many subscribers receive them."""

    __slots__ = ("_encoded", "as_of", "rows", "snapshot", "token")

    def __init__(self, snapshot: bool, rows: Sequence[UserSums], as_of: int, token: str) -> None:
        self.snapshot = snapshot
        """True: the client discards the rows it has and begins with these."""
        self.rows = rows
        self.as_of = as_of
        self.token = token
        """A client that has received this frame, and all before it, resumes with this."""
        self._encoded: dict[str, bytes] = {}

    def encoded(self, form: str, encode: Callable[["Frame"], bytes]) -> bytes:
        """Return what `encode` makes of the frame, made once for each `form` ("sse", "grpc")."""
        found = self._encoded.get(form)
        if found is None:
            found = self._encoded[form] = encode(self)
        return found


class Ticks:
    """Which users changed in the last ticks: at most `TICKS` of them, with at most `history` users together."""

    def __init__(self, tick: int, history: int = HISTORY) -> None:
        self._known_from = tick
        self._history = history
        self._size = 0
        self._ticks: deque[tuple[int, I64]] = deque()

    def add(self, tick: int, users: I64) -> None:
        """Remember that `users` changed in `tick`."""
        self._ticks.append((tick, users))
        self._size += len(users)
        while self._size > self._history or len(self._ticks) > TICKS:
            self._known_from, gone = self._ticks.popleft()
            self._size -= len(gone)

    def forget(self, tick: int) -> None:
        """Forget all: which users changed in `tick` and before is not known."""
        self._ticks.clear()
        self._size = 0
        self._known_from = tick

    def since(self, tick: int) -> list[int] | None:
        """Return the users that changed after `tick`, ascending; None: not known any more."""
        if tick < self._known_from:
            return None
        later = [users for at, users in self._ticks if at > tick]
        if not later:
            return []
        found: list[int] = later[0].tolist() if len(later) == 1 else np.unique(np.concatenate(later)).tolist()
        return found


class SharedFrames:
    """Frames from earlier ticks to the latest one, made once: a reader that asks while they are made waits for them."""

    def __init__(self) -> None:
        self._until = ELSEWHERE
        self._frames: dict[int, asyncio.Future[list[Frame]]] = {}

    def get(
        self, since: int, until: int, make: Callable[[], "asyncio.Future[list[Frame]]"]
    ) -> "asyncio.Future[list[Frame]]":
        """Return the frames from tick `since` to tick `until`; drop those to other ticks, which no reader asks for."""
        if until != self._until:
            self._until = until
            self._frames.clear()
        found = self._frames.get(since)
        if found is None:
            found = self._frames[since] = make()
        return found
