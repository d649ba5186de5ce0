"""Refusals are paced: a client whose requests are refused again and again waits for the answers.

A refused batch costs the event loop as much as an accepted one. A client that keeps sending garbage, or beyond its
limits, would take that time from all others. The generic cell rate algorithm (ITU-T I.371) spaces the refusals of each
client: `BURST` at once, then `RATE` a second.

A refusal that waits holds a call, over gRPC one of those that all clients share, or a connection. So of one client, and
of all together, only so many wait; beyond that they are answered at once, which costs time but keeps nobody out.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from server.errors import Reason, Refused

RATE: Final = 50.0
"""Refusals a second for one client."""
BURST: Final = 50
"""Refusals that are answered at once."""
LONGEST: Final = 10.0
"""Most seconds that an answer is delayed."""
MOST_OF_ONE: Final = 512
"""Refusals of one client that wait at the same time."""
MOST_WAITING: Final = 2048
"""Those of all: a quarter of the calls that gRPC has under way at most."""
MAX_SENDERS: Final = 10_000
SWEEP_INTERVAL: Final = 1.0
"""Seconds between two sweeps of clients whose pace is over: with many clients a sweep costs half a millisecond."""

NOT_THE_SENDERS: Final[frozenset[Reason]] = frozenset({"unavailable", "disk_full", "not_yet_visible"})
"""Refusals that the client has not caused; they are not paced."""


def questions_of(project: str) -> str:
    """Return the name under which refused questions of a project are paced, whatever key and API they come with."""
    return f"questions of {project}"


class RefusalPacer:
    """The pace of each client, named by the id of its key, or by its address if it has no valid key. For one event
    loop."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._due: dict[str, float] = {}
        self._sweep_at = 0.0
        self._waiting: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return the number of clients with a pace."""
        return len(self._due)

    async def pace(self, sender: str, refused: Refused) -> None:
        """Wait until this refusal may be answered; where too many wait already, not at all."""
        if refused.reason in NOT_THE_SENDERS:
            return
        wait = self.delay(sender)
        if not wait or self._waiting[sender] >= MOST_OF_ONE or self._waiting.total() >= MOST_WAITING:
            return
        self._waiting[sender] += 1
        try:
            await self._sleep(wait)
        finally:
            self._waiting[sender] -= 1
            if not self._waiting[sender]:
                del self._waiting[sender]

    def delay(self, sender: str) -> float:
        """Count a refusal; return the seconds, 0 to `LONGEST`, until it may be answered."""
        now = self._clock()
        due = max(self._due.get(sender, now), now) + 1 / RATE
        if len(self._due) >= MAX_SENDERS and sender not in self._due:
            if now >= self._sweep_at:
                self._sweep_at = now + SWEEP_INTERVAL
                self._due = {name: at for name, at in self._due.items() if at > now}
            if len(self._due) >= MAX_SENDERS:  # too many clients: new ones share one pace
                sender, due = "", max(self._due.get("", now), now) + 1 / RATE
        self._due[sender] = min(due, now + BURST / RATE + LONGEST)
        return min(max(due - now - BURST / RATE, 0.0), LONGEST)
