"""Whether the keys that this process knows may be trusted: not if a revocation could have been missed for long."""

import asyncio
from collections.abc import Callable
from typing import Final

from server.errors import Refused

MAX_AGE: Final = 1.0
"""Seconds that the directory of a process may be behind."""

PATIENCE: Final = 0.5
"""Seconds that a request waits for a directory that is being caught up with, as after a process that stood still."""

POLL: Final = 0.01


class DirectoryFreshness:
    """`known_at` gives the moment up to which the directory is known, `monotonic` the present one; both in seconds."""

    def __init__(self, known_at: Callable[[], float], monotonic: Callable[[], float], max_age: float = MAX_AGE) -> None:
        self._known_at = known_at
        self._monotonic = monotonic
        self._max_age = max_age

    @property
    def is_fresh(self) -> bool:
        """True if no change of the directory is older than `max_age` and still unknown here."""
        return self._monotonic() - self._known_at() <= self._max_age

    def check(self) -> None:
        """Raises `Refused("unavailable")` if it is not."""
        if not self.is_fresh:
            raise Refused("unavailable", "The keys known here may be out of date; send it again", retry_after=1)

    async def settle(self, patience: float = PATIENCE) -> None:
        """Wait a moment for it to become so; returns either way."""
        deadline = self._monotonic() + patience
        while not self.is_fresh:  # the directory belongs to a thread
            if self._monotonic() >= deadline:
                return
            await asyncio.sleep(POLL)


def always() -> DirectoryFreshness:
    """Of a directory that no other process can change."""
    return DirectoryFreshness(lambda: 0.0, lambda: 0.0)
