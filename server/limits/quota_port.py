"""The port to quotas: what intake asks before it accepts a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from server.limits.rate_limit_headers import Allowance
from server.tenancy.keys import Key


class Reservation(Protocol):
    """Room in an organization's quota, taken before the events are durable."""

    def settle(self, offsets: dict[int, int]) -> None:
        """The events went to these offsets: the tables will charge them from there on."""
        ...

    def release(self) -> None:
        """Nothing was taken: give the room back."""
        ...

    def doubt(self) -> None:
        """Some of the events may be durable after all: hold the room until the log shows it."""
        ...


class QuotaPort(Protocol):
    """Who may send how much."""

    def admit_request(self, key: Key, now: int) -> None:
        """Count one request against the key's rate limit; raises `Refused("rate_limited")`."""
        ...

    async def reserve(self, key: Key, events: int, now: int) -> Reservation:
        """Take room for `events` in the organization's monthly quota; raises `Refused("quota_exceeded")`."""
        ...

    def try_reserve(self, key: Key, events: int, now: int) -> Reservation | None:
        """`reserve` without waiting; None if it would have to wait, or would be refused."""
        ...

    def after_grace(self, then: Callable[[Mapping[int, int]], None]) -> None:
        """Call `then` with the end of the log (partition -> offset), once a write that was given up now is in it or
        never will be."""
        ...

    def allowances(self, key: Key, now: int) -> Sequence[Allowance]:
        """What the key has left; empty without limits."""
        ...
