"""Quotas for one API process among several: what it may take of a month is its lease, not the limit."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from processor.core.clock import month_start
from processor.leases.lease_messages import Account, Need, owner
from processor.view.arrivals import Arrivals
from processor.view.view import View
from server.errors import Refused
from server.limits.lease_client import LeaseHoldings, LeaseStatements
from server.limits.quota_port import Reservation
from server.limits.quotas import ViewQuotas
from server.tenancy.directory import Directory
from server.tenancy.keys import Key

UNUSED: Final = 86_400.0
"""Seconds after which an account of a month that is over is not stated any more: by the clock alone, one that is wrong
for a moment would end a month that goes on."""


class _Pace:
    """How many events were admitted in the second before this one, and so far in this one."""

    __slots__ = ("_before", "_since", "_so_far")

    def __init__(self) -> None:
        self._since, self._before, self._so_far = 0.0, 0, 0

    def add(self, events: int, now: float) -> None:
        self._turn(now)
        self._so_far += events

    def recent(self, now: float) -> int:
        self._turn(now)
        return max(self._before, self._so_far)

    def _turn(self, now: float) -> None:
        seconds = now - self._since
        if seconds >= 1:
            self._before = self._so_far if seconds < 2 else 0
            self._since, self._so_far = now, 0


class LeasedQuotas(ViewQuotas):
    """`Quotas` by lease. It keeps

        charged through this process (in the view) + reserved (on its way)  <=  the cap of its lease

    and says through `stating` how high a cap it needs. `directory_end` gives the offset in the directory up to which
    this process has read.
    """

    def __init__(
        self,
        view: View,
        arrivals: Arrivals,
        directory: Directory,
        log_end: Callable[[], Mapping[int, int]],
        book: LeaseHoldings,
        stating: LeaseStatements,
        directory_end: Callable[[], int],
        **options: Any,
    ) -> None:
        super().__init__(view, arrivals, directory, log_end, **options)
        self._book = book
        self._stating = stating
        self._directory_end = directory_end
        self._sure_of = -1
        self._demand: dict[Account, int] = {}
        """Events of the batches that wait."""
        self._used: dict[Account, float] = {}
        """When anything was last taken from the accounts of this month and the one before: the grantor may not know yet
        of what the view has charged to them."""
        self._paces: dict[Account, _Pace] = {}

    # --- admission --------------------------------------------------------------------------------------------------

    async def reserve(self, key: Key, events: int, now: int) -> Reservation:
        """See `ViewQuotas.reserve`; unavailable, too, while nobody can grant a lease."""
        if self._directory.organization(key.organization).monthly_quota is None:
            return await super().reserve(key, events, now)
        if not self._book.is_fresh:
            raise Refused("unavailable", "The lease of the quota has run out; send again", retry_after=1)
        account = Account(key.organization, month_start(now))
        reservation = await super().reserve(key, events, now)
        at = time.monotonic()
        if account not in self._used:
            oldest = month_start(account.month - 1)
            self._used = {used: last for used, last in self._used.items() if used.month >= oldest or at - last < UNUSED}
        self._used[account] = at
        pace = self._paces.setdefault(account, _Pace())
        pace.add(events, at)
        if self._left(account) < pace.recent(at):
            self._stating.wake()
        return reservation

    def _has_room(self, organization: str, month: int, events: int, limit: int) -> bool:
        account = Account(organization, month)
        return self._charged_to_us(account) + events <= self._book.cap(account)

    def _charged_to_us(self, account: Account) -> int:
        return self._view.leased(owner(self._book.instance, account.organization), account.month)

    def _left(self, account: Account) -> int:
        return self._book.cap(account) - self._floor(account)

    def _floor(self, account: Account) -> int:
        held = self._accounts.get((account.organization, account.month))
        # The reservations first: what leaves them is charged by then.
        reserved = 0 if held is None else held.reserved
        return reserved + self._charged_to_us(account)

    async def _wait(self, refusal: Refused, organization: str, events: int, now: int) -> Reservation:
        account = Account(organization, month_start(now))
        self._demand[account] = self._demand.get(account, 0) + events
        asked = self._stating.number + 1
        self._stating.wake()
        try:
            return await super()._wait(refusal, organization, events, now)
        except Refused as refused:
            if refused.reason == "quota_exceeded" and self._book.answers < asked:
                raise Refused("unavailable", "No lease of the quota could be had; send again", retry_after=1) from None
            raise
        finally:
            self._demand[account] -= events
            if not self._demand[account]:
                del self._demand[account]

    def _on_arrival(self) -> None:
        super()._on_arrival()
        if self._book.is_asked:
            self._stating.wake()

    # --- statements -------------------------------------------------------------------------------------------------

    def needs(self) -> list[Need]:
        """See `Speaker.needs`."""
        at = time.monotonic()
        self._paces = {account: pace for account, pace in self._paces.items() if pace.recent(at)}
        accounts = {*self._demand, *self._used, *(Account(*key) for key in self._accounts)}
        return [self._need(account, at) for account in accounts if self._is_limited(account)]

    def _need(self, account: Account, at: float) -> Need:
        floor = self._floor(account)
        need = floor + self._demand.get(account, 0)
        pace = self._paces.get(account)
        return Need(account, floor, need, need + (2 * pace.recent(at) if pace is not None else 0))

    def _is_limited(self, account: Account) -> bool:
        return self._directory.organization(account.organization).monthly_quota is not None

    def directory(self) -> int:
        """See `Speaker.directory`."""
        end = self._directory_end()
        if all(self._is_known(name) for name in list(self._unmetered) if self._is_limited(Account(name, 0))):
            self._sure_of = end
        return self._sure_of
