"""The calls of the gRPC API that may be under way at once with a valid key: shared fairly among organizations.

A call costs memory and, where it is a stream, a look at its key twice a second, also while nothing is sent; and all
clients share a number of calls that no handler is asked about. The rule is that of `MemoryBudget`: an organization may
have no more than are still free, so one alone gets at most half, n that want everything get 1/(n+1) each, and as many
are always left for the next one.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from server.errors import Refused

MOST_CALLS: Final = 4096
"""Of all organizations: half of what the API accepts; the rest is for calls without a key and refusals that wait."""


class CallShares:
    """Who has how many calls under way. For one event loop."""

    def __init__(self, limit: int = MOST_CALLS) -> None:
        self._free = limit
        self._calls: Counter[str] = Counter()

    @contextmanager
    def call(self, organization: str) -> Iterator[None]:
        """A call is under way. Raises `Refused("unavailable")` if the organization has its share already."""
        held = self._calls[organization]
        if held >= self._free:
            raise Refused(
                "unavailable",
                f"This organization has {held} calls under way already; end some, or send more over each stream",
                retry_after=1,
            )
        self._calls[organization] = held + 1
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1
            left = self._calls[organization] - 1
            if left:
                self._calls[organization] = left
            else:
                del self._calls[organization]
