"""How many bytes of request bodies the process may hold at once, over all requests of both doors."""

from types import TracebackType
from typing import Final, Self

from server.errors import Refused

DEFAULT_BUDGET: Final = 256 * 1024 * 1024


class Budget:
    """The bound and what is taken of it. For one event loop: nothing here waits or locks."""

    def __init__(self, limit: int = DEFAULT_BUDGET) -> None:
        self.limit = limit
        self.used = 0

    def hold(self) -> "Hold":
        """An empty share of it, to use with `with`: the end gives all of it back."""
        return Hold(self)


class Hold:
    """What one request has taken."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._size = 0

    def take(self, size: int) -> None:
        """Take `size` bytes more; raises `Refused("unavailable")` if there is no room."""
        if self._budget.used + size > self._budget.limit:
            raise Refused("unavailable", "Too many bytes of requests are being read; send it again", retry_after=1)
        self._budget.used += size
        self._size += size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.used -= self._size
        self._size = 0
