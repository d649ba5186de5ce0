"""Quotas: requests a minute of a key, events a month of an organization.

The monthly quota is exact: `MonthlyUsage` knows what a month has used, `Caps` how much of it this process may use.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Literal

from processor.core.clock import MINUTE, SECOND, format_timestamp, month_start, next_month
from processor.leases.lease_messages import Account
from processor.view.arrivals import Arrivals
from server.errors import Refused
from server.limits.caps import NOT_KNOWN_YET, Caps
from server.limits.monthly_usage import MonthlyUsage
from server.limits.quota_port import Reservation
from server.limits.rate_limit_headers import Allowance
from server.limits.rates import OwnRates, Rates
from server.tenancy.directory import Directory
from server.tenancy.keys import Key

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
        rates: Rates | None = None,
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

    def admit_request(self, key: Key, now: int) -> None:
        """Count one request against the key's rate limit, by the minute of `now`; a refused one does not count."""
        limit = key.rate_limit
        if limit is None:
            return
        used = self._rates.reserve(key.lineage, limit, now)
        if used >= limit:
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
