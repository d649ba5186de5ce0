"""What a project's subscribers share: the ticks of its feed, and the frames made for those who are at the same one."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from processor.core.growing_arrays import I64
from server.reads.answers import UserRow

FRAME_ROWS: Final = 1000
"""Rows of one frame at most."""
HISTORY: Final = 1 << 17
"""Users in the ticks that a project remembers."""
TICKS: Final = 64
ELSEWHERE: Final = -1
"""The tick of a mark that came with a token: no tick of this process."""


class Mark(NamedTuple):
    """A moment of the feed: everything up to `position` (partition -> offset) has been seen."""

    tick: int
    position: Mapping[int, int]


class Frame:
    """Some rows that are sent together, encoded once for each wire however many subscribers receive them."""

    __slots__ = ("_encoded", "as_of", "rows", "snapshot", "token")

    def __init__(self, snapshot: bool, rows: Sequence[UserRow], as_of: int, token: str) -> None:
        self.snapshot = snapshot
        """True: a new table begins with these rows."""
        self.rows = rows
        self.as_of = as_of
        self.token = token
        """Who has received this frame, and all before it, resumes with this."""
        self._encoded: dict[str, bytes] = {}

    def encoded(self, wire: str, encode: Callable[["Frame"], bytes]) -> bytes:
        """The frame as `encode` writes it for `wire`."""
        found = self._encoded.get(wire)
        if found is None:
            found = self._encoded[wire] = encode(self)
        return found


class Ticks:
    """Which users changed in the last ticks, as long as that is not too much to remember."""

    def __init__(self, tick: int, history: int = HISTORY) -> None:
        self._known_from = tick
        self._history = history
        self._size = 0
        self._ticks: deque[tuple[int, I64]] = deque()

    def add(self, tick: int, users: I64) -> None:
        """Some users changed in `tick`."""
        self._ticks.append((tick, users))
        self._size += len(users)
        while self._size > self._history or len(self._ticks) > TICKS:
            self._known_from, gone = self._ticks.popleft()
            self._size -= len(gone)

    def forget(self, tick: int) -> None:
        """It is not known which users changed in `tick` and before."""
        self._ticks.clear()
        self._size = 0
        self._known_from = tick

    def since(self, tick: int) -> list[int] | None:
        """Users that changed after `tick`, ascending; None: not known any more."""
        if tick < self._known_from:
            return None
        later = [users for at, users in self._ticks if at > tick]
        if not later:
            return []
        found: list[int] = later[0].tolist() if len(later) == 1 else np.unique(np.concatenate(later)).tolist()
        return found


class Shared:
    """Frames under way from one tick to another, made once: who asks while they are being made waits for them."""

    def __init__(self) -> None:
        self._until = ELSEWHERE
        self._frames: dict[int, asyncio.Future[list[Frame]]] = {}

    def get(
        self, since: int, until: int, make: Callable[[], "asyncio.Future[list[Frame]]"]
    ) -> "asyncio.Future[list[Frame]]":
        """The frames from tick `since` to tick `until`. Those to other ticks are dropped: they are not asked for."""
        if until != self._until:
            self._until = until
            self._frames.clear()
        found = self._frames.get(since)
        if found is None:
            found = self._frames[since] = make()
        return found
