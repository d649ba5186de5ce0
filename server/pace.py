"""How much of the event loop the feed may use, so that ingest keeps the rest however many subscribers there are."""

import asyncio
from collections.abc import Callable
from typing import Final

SHARE: Final = 0.25
"""Seconds of work a second."""
BURST: Final = 0.1
"""Seconds of work that may come at once after a rest."""


class Pace:
    """A token bucket of seconds of work. Who asks first gets on first; who finds it empty waits, and nothing queues up:
    what changes meanwhile goes with the frame that is sent then."""

    def __init__(self, monotonic: Callable[[], float], share: float = SHARE, burst: float = BURST) -> None:
        self._monotonic = monotonic
        self._share = share
        self._burst = burst
        self._level = burst
        self._at = monotonic()
        self._turn = asyncio.Lock()

    async def take(self, seconds: float) -> None:
        """Wait until there is room, then take it up, beyond what is there if need be: the next one waits for that."""
        if not self._turn.locked() and self._filled() > 0:
            self._level -= seconds
            return
        async with self._turn:
            while (level := self._filled()) <= 0:  # noqa: ASYNC110 - what it waits for is time itself
                await asyncio.sleep(max(0.001, -level / self._share))
            self._level -= seconds

    def _filled(self) -> float:
        now = self._monotonic()
        self._level = min(self._burst, self._level + (now - self._at) * self._share)
        self._at = now
        return self._level
