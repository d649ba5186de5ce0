"""Refusals, paced: who sends what cannot be taken waits for the answers, so that others do not wait for theirs.

A refused batch costs the event loop as much as one that is taken. A sender that goes on and on with garbage, or beyond
its limits, would take the process from everybody else. The generic cell rate algorithm (ITU-T I.371) spaces the
refusals of each sender: a burst at once, then so many a second.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from server.errors import Reason, Refused

RATE: Final = 50.0
"""Refusals a second that one sender gets."""
BURST: Final = 50
"""Refusals that are answered at once."""
LONGEST: Final = 10.0
"""Seconds that an answer is held back at most."""
MAX_SENDERS: Final = 10_000
SWEEP_INTERVAL: Final = 1.0
"""Seconds between two looks for senders that are past their pace: in a crowd each look costs half a millisecond."""

NOT_THE_SENDERS: Final[frozenset[Reason]] = frozenset({"unavailable", "disk_full", "not_yet_visible"})
"""Refusals that are ours: whoever gets one may well come back at once."""


class RefusalPacer:
    """The pace of each sender: the id of a key, or an address where no key is known. For one event loop."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._due: dict[str, float] = {}
        self._sweep_at = 0.0

    def __len__(self) -> int:
        """Senders that are remembered."""
        return len(self._due)

    async def pace(self, sender: str, refused: Refused) -> None:
        """Wait until this refusal may be answered."""
        if refused.reason in NOT_THE_SENDERS:
            return
        if wait := self.delay(sender):
            await self._sleep(wait)

    def delay(self, sender: str) -> float:
        """Count a refusal; returns the seconds, 0 to `LONGEST`, until it may be answered."""
        now = self._clock()
        due = max(self._due.get(sender, now), now) + 1 / RATE
        if len(self._due) >= MAX_SENDERS and sender not in self._due:
            if now >= self._sweep_at:
                self._sweep_at = now + SWEEP_INTERVAL
                self._due = {name: at for name, at in self._due.items() if at > now}
            if len(self._due) >= MAX_SENDERS:  # a crowd of strangers: they share one pace
                sender, due = "", max(self._due.get("", now), now) + 1 / RATE
        self._due[sender] = min(due, now + BURST / RATE + LONGEST)
        return min(max(due - now - BURST / RATE, 0.0), LONGEST)
