"""Whether the keys that this process knows are up to date: if not, it may have missed a revocation."""

import asyncio
from collections.abc import Callable
from typing import Final

from server.errors import Refused

MAX_AGE: Final = 1.0
"""Seconds by which the directory of a process may be out of date."""

PATIENCE: Final = 0.5
"""Seconds that a request waits for the directory to catch up, as after the process was suspended."""

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
        """Raise `Refused("unavailable")` if the directory is out of date."""
        if not self.is_fresh:
            message = "The keys known here may be out of date; retry the request unchanged"
            raise Refused("unavailable", message, retry_after=1)

    async def settle(self, patience: float = PATIENCE) -> None:
        """Wait up to `patience` seconds until the directory is up to date; return either way."""
        deadline = self._monotonic() + patience
        while not self.is_fresh:  # the directory belongs to a thread
            if self._monotonic() >= deadline:
                return
            await asyncio.sleep(POLL)


def always() -> DirectoryFreshness:
    """Return the freshness of a directory that no other process can change."""
    return DirectoryFreshness(lambda: 0.0, lambda: 0.0)
