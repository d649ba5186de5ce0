"""Quotas: requests a minute of a key, events a month of an organization.

The monthly quota is exact: `MonthlyUsage` knows what a month has used, `Caps` how much of it this process may use. A
*cap* is the number of unique events of an account that one process may ever be charged with. Each adapter keeps

    the caps of all processes + what was charged through none of them  <=  the quota
    charged through this process + reserved by it  <=  its cap

so the quota is never exceeded, whatever the processes know of each other.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Literal, Protocol

from processor.core.clock import MINUTE, SECOND, format_timestamp, month_start, next_month
from processor.leases.lease_messages import Account
from processor.view.view_follower import Arrivals
from server.errors import Refused
from server.limits.monthly_usage import MonthlyUsage
from server.limits.quota_port import Reservation
from server.limits.rate_limit_headers import Allowance
from server.limits.rates import OwnRates, RequestRates
from server.tenancy.directory import Directory
from server.tenancy.keys import Key

NOT_KNOWN_YET: Final = "What is left of the quota is not known yet; retry the request unchanged"


class Caps(Protocol):
    """The caps of one process. Methods block at most for the lock of a shared table (milliseconds)."""

    def admit(self, account: Account, events: int) -> bool:
        """Return True if `events` more fit under this process's cap, which may be raised for them. The caller then has
        to reserve them at once. Raises `Refused` (unavailable) if nothing can be admitted now, however long it waits.
        """
        ...

    def ask(self, account: Account, events: int) -> AbstractContextManager[Callable[[], str | None]]:
        """Ask for a higher cap while a batch of `events` waits, for the length of the `with` block.

        The function that it yields returns why it is not known whether the batch fits; None: it is known that it did
        not fit at the last try.
        """
        ...

    def taken(self, account: Account) -> int:
        """Return the events charged or possibly on their way from other processes; 0 if only the view knows."""
        ...

    def on_arrival(self) -> None:
        """Give back what batches did not need; called when the view contains more than before."""
        ...


class OwnCaps:
    """`Caps` of a single process: its cap is the quota."""

    def __init__(self, usage: MonthlyUsage, directory: Directory) -> None:
        self._usage = usage
        self._directory = directory

    def admit(self, account: Account, events: int) -> bool:
        """See `Caps.admit`."""
        quota = self._directory.organization(account.organization).monthly_quota
        reserved = self._usage.reserved(account)  # first: what leaves the reservations is charged by then
        return quota is not None and reserved + self._usage.charged(account) + events <= quota

    @contextmanager
    def ask(self, account: Account, events: int) -> Iterator[Callable[[], str | None]]:
        """See `Caps.ask`: no other process has a cap."""
        yield lambda: None

    def taken(self, account: Account) -> int:
        """See `Caps.taken`."""
        return 0

    def on_arrival(self) -> None:
        """See `Caps.on_arrival`: no other process could use it."""


PATIENCE: Final = 1.0
"""Seconds a batch waits if only reservations, not charges, stand between it and the limit."""

MAX_RETRY: Final = 60
"""Seconds: the longest wait that an answer asks for."""


class Quotas:
    """The quotas of one API process, alone or among several: `caps` and `rates` are what differs.

    All methods belong to the event loop's thread.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        directory: Directory,
        usage: MonthlyUsage,
        caps: Caps,
        *,
        patience: float = PATIENCE,
        rates: RequestRates | None = None,
    ) -> None:
        self._directory = directory
        self._usage = usage
        self._caps = caps
        self._patience = patience
        self._rates = rates or OwnRates()
        self._changed = asyncio.Event()
        self._waiting = 0
        usage.listen(self._wake)
        arrivals.listen(self._on_arrival)

    # --- requests a minute ------------------------------------------------------------------------------------------

    def admit_request(self, key: Key, now: int, count: int = 1) -> None:
        """Count requests against the key's rate by the minute of `now`, all or none; refused ones do not count."""
        limit = key.rate_limit
        if limit is None:
            return
        used = self._rates.reserve(key.lineage, limit, now, count)
        if used + count > limit:
            ends = now - now % MINUTE + MINUTE
            raise _refused("rate_limited", "Rate limit exceeded", limit, used, ends, now)

    # --- what is left -----------------------------------------------------------------------------------------------

    def allowances(self, key: Key, now: int) -> tuple[Allowance, ...]:
        """Return what is left at `now` of the key's requests and its organization's events, those on their way counted
        as used."""
        found: tuple[Allowance, ...] = ()
        if key.rate_limit is not None:
            ends = now - now % MINUTE + MINUTE
            used = self._rates.used(key.lineage, now)
            found = (Allowance("requests", key.rate_limit, used, ends, MINUTE // SECOND),)
        quota = self._limit(key.organization)
        if quota is not None:
            used = self._used(Account(key.organization, month_start(now)))
            found += (Allowance("events", quota, used, next_month(now)),)
        return found

    def _used(self, account: Account) -> int:
        """Return the events that are charged or on their way."""
        self._usage.collect(account)
        reserved = self._usage.reserved(account)  # first: what leaves the reservations is charged by then
        return max(reserved + self._usage.charged(account), self._caps.taken(account))

    def _limit(self, organization: str) -> int | None:
        return self._directory.organization(organization).monthly_quota

    # --- events a month ---------------------------------------------------------------------------------------------

    async def reserve(self, key: Key, events: int, now: int) -> Reservation:
        """Reserve room for `events` in the month of `now`, the batch's arrival in microseconds.

        Waits for up to `patience` if that may help. Raises `Refused`: quota_exceeded, or unavailable if what is left
        for the organization is not known: after a start, after its first quota was set, and while other processes do
        not answer.
        """
        account = Account(key.organization, month_start(now))
        outcome = self._attempt(account, events, now)
        if isinstance(outcome, Refused):
            outcome = await self._wait(outcome, account, events, now)
        return outcome

    def try_reserve(self, key: Key, events: int, now: int) -> Reservation | None:
        """See `QuotaPort.try_reserve`."""
        if self._limit(key.organization) is None:
            return self._usage.pass_unmetered(key.organization)
        try:
            outcome = self._attempt(Account(key.organization, month_start(now)), events, now)
        except Refused:
            return None
        return None if isinstance(outcome, Refused) else outcome

    def _attempt(self, account: Account, events: int, now: int) -> Reservation | Refused:
        """Return a reservation, or why there is none yet. Raises `Refused` if waiting would not help."""
        limit = self._limit(account.organization)
        if limit is None:  # there is no quota, or it was lifted while the batch waited
            return self._usage.pass_unmetered(account.organization)
        if not self._usage.is_known(account.organization):
            return Refused("unavailable", NOT_KNOWN_YET, retry_after=1)
        if not self._caps.admit(account, events):
            # Reservations that the view contains by now may take the room: end them and try again.
            self._usage.collect(account)
            charged = self._usage.charged(account)  # after `collect`: what leaves the reservations is charged by then
            refusal = _refused("quota_exceeded", "Monthly quota exceeded", limit, charged, next_month(now), now)
            if charged + events > limit:
                raise refusal
            if not self._caps.admit(account, events):
                refusal.retry_after = 1
                return refusal
        return self._usage.reserve(account, events)

    async def _wait(self, refusal: Refused, account: Account, events: int, now: int) -> Reservation:
        """Try again whenever there may be more room, for up to `patience`."""
        with self._caps.ask(account, events) as why_unknown:
            self._waiting += 1
            try:
                async with asyncio.timeout(self._patience):
                    while True:
                        await self._changed.wait()
                        outcome = self._attempt(account, events, now)
                        if not isinstance(outcome, Refused):
                            return outcome
                        refusal = outcome
            except TimeoutError:
                unknown = why_unknown()
                if unknown is not None and refusal.reason == "quota_exceeded":
                    raise Refused("unavailable", unknown, retry_after=1) from None
                raise refusal from None
            finally:
                self._waiting -= 1

    def _on_arrival(self) -> None:
        self._usage.collect_all()
        self._caps.on_arrival()
        self._wake()

    def _wake(self) -> None:
        """Let waiting batches try again."""
        if self._waiting:
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def after_grace(self, then: Callable[[Mapping[int, int]], None]) -> None:
        """See `MonthlyUsage.after_grace`."""
        self._usage.after_grace(then)


def _refused(
    reason: Literal["rate_limited", "quota_exceeded"], message: str, limit: int, used: int, resets_at: int, now: int
) -> Refused:
    wait = -((now - resets_at) // SECOND)
    details = {"limit": limit, "used": used, "resetsAt": format_timestamp(resets_at)}
    return Refused(reason, message, retry_after=max(1, min(MAX_RETRY, wait)), details=details)
