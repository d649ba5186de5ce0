"""The port to quotas: what intake asks before it accepts a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from server.limits.rate_limit_headers import Allowance
from server.tenancy.keys import Key


class Reservation(Protocol):
    """Room in an organization's quota, reserved before the events are durable. End it by one of its methods."""

    def settle(self, offsets: dict[int, int]) -> None:
        """The events are durable at `offsets` (partition -> offset), and the tables will charge them."""
        ...

    def release(self) -> None:
        """No event was stored: free the room."""
        ...

    def doubt(self) -> None:
        """Some of the events may be durable after all: hold the room until the log shows it."""
        ...


class QuotaPort(Protocol):
    """The quotas, as intake uses them."""

    def admit_request(self, key: Key, now: int, count: int = 1) -> None:
        """Count requests against the key's rate limit, all or none; raises `Refused("rate_limited")`."""
        ...

    async def reserve(self, key: Key, events: int, now: int) -> Reservation:
        """Reserve room for `events` in the organization's monthly quota at `now` (microseconds).

        May wait. Raises `Refused`: quota_exceeded, or unavailable if what is left is not known.
        """
        ...

    def try_reserve(self, key: Key, events: int, now: int) -> Reservation | None:
        """`reserve` without waiting; None if it would have to wait, or would be refused."""
        ...

    def after_grace(self, then: Callable[[Mapping[int, int]], None]) -> None:
        """Call `then` with the end of the log (partition -> offset), once a write that was given up now is in it or
        never will be."""
        ...

    def allowances(self, key: Key, now: int) -> Sequence[Allowance]:
        """Return what the key has left; empty without limits."""
        ...
