"""The memory that request bodies may use: bytes over all requests, and a number of requests for each key.

It is shared fairly: an organization may hold no more than is still free (the dynamic threshold of Choudhury and Hahne,
1998, with a factor of one). One alone gets at most half, n that want everything get 1/(n+1) each, and as much is always
left for the next one.
"""

from types import TracebackType
from typing import Final, Self

from server.errors import Refused

DEFAULT_ROOM: Final = 256 * 1024 * 1024
DEFAULT_REQUESTS: Final = 1024
"""Most requests of one key under way at once."""

ENOUGH: Final = 8
"""An owner that was refused has to give back 1/`ENOUGH` of what it held before its next request is read."""


class MemoryBudget:
    """The bound and what is in use. For one event loop: nothing here waits or locks. An owner is an organization."""

    def __init__(self, limit: int = DEFAULT_ROOM, requests: int = DEFAULT_REQUESTS) -> None:
        self.limit = limit
        self.used = 0
        self.requests = requests
        self.by_owner: dict[str, int] = {}
        """Bytes that each holds who holds any."""
        self.by_member: dict[str, int] = {}
        """Requests under way."""
        self.short: dict[str, int] = {}
        """Owner -> bytes it held when there was no room for more."""

    def is_short(self, owner: str) -> bool:
        """Return True while there is hardly more room for this owner than when it was last refused.

        It costs nothing, where to find out by `reserve` one has to read and inflate. An eighth of what it held has to
        be given back first, so that it is not the next request that finds out again.
        """
        held = self.short.get(owner)
        if held is None:
            return False
        if self.by_owner.get(owner, 0) > held - held // ENOUGH:
            return True
        del self.short[owner]
        return False

    def is_anybody_short(self) -> bool:
        """True while `is_short` is true of some owner."""
        return any(self.is_short(owner) for owner in list(self.short)) if self.short else False

    def hold(self, owner: str, member: str, size: int = 0) -> "Hold":
        """Begin a request with `size` bytes reserved: `Hold.close`, or the end of `with`, gives all of it back.

        `owner` is the organization, among which the bytes are shared; `member` the key, by which requests are counted.
        Raises `Refused("unavailable")` if the member has too many requests, or as `Hold.reserve` does; then nothing
        has begun.
        """
        under_way = self.by_member.get(member, 0)
        if under_way >= self.requests:
            raise Refused("unavailable", f"This key has {self.requests} requests under way already", retry_after=1)
        hold = Hold(self, owner, member)
        if size:
            hold.reserve(size)
        self.by_member[member] = under_way + 1
        return hold


def _subtract(counts: dict[str, int], name: str, number: int) -> None:
    left = counts[name] - number
    if left:
        counts[name] = left
    else:
        del counts[name]


class Hold:
    """What one request has taken of a budget."""

    __slots__ = ("_budget", "_is_closed", "_member", "_owner", "size")

    def __init__(self, budget: MemoryBudget, owner: str, member: str) -> None:
        self._budget = budget
        self._owner = owner
        self._member = member
        self._is_closed = False
        self.size = 0
        """Bytes of it."""

    def reserve(self, size: int) -> None:
        """Take `size` bytes more; raises `Refused("unavailable")` if there is no room, or none for this owner."""
        budget = self._budget
        free = budget.limit - budget.used
        held = budget.by_owner.get(self._owner, 0)
        if size > free or (held and held + size > free):
            budget.short[self._owner] = held
            raise Refused("unavailable", "Too many bytes of requests are under way; send it again", retry_after=1)
        budget.used += size
        budget.by_owner[self._owner] = held + size
        self.size += size

    def close(self) -> None:
        """Give all of it back, and end the request; a second call changes nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        budget, size = self._budget, self.size
        _subtract(budget.by_member, self._member, 1)
        if size:
            self.size = 0
            budget.used -= size
            _subtract(budget.by_owner, self._owner, size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
