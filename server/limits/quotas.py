"""Who may send how much: requests a minute of a key, events a month of an organization. For one API process process; of
several, `shared_quotas` and `leased_quotas` have other numbers.

The monthly quota is exact. At any moment an organization's month is

    charged (in the view) + reserved (on its way: published or about to be, not yet in the view)  <=  limit

where `reserved` counts every event of a batch, `charged` only the unique ones: a batch may come to less than its
reservation, never to more. A reservation ends when the view *contains* the offsets its batch went to, and the view
has the charge by then; so an event may be counted twice for a moment, but there is none in which it is not counted.
All methods belong to the event loop's thread; only the view changes from another one, and its charges only grow.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Literal

from processor.core.clock import MINUTE, SECOND, format_timestamp, month_start, next_month
from processor.view.arrivals import Arrivals
from processor.view.view import View
from server.errors import Refused
from server.limits.quota_port import Reservation
from server.limits.rate_limit_headers import Allowance
from server.limits.rates import OwnRates, Rates
from server.tenancy.directory import Directory
from server.tenancy.keys import Key

PATIENCE: Final = 1.0
"""Seconds a batch waits if only reservations, not charges, stand between it and the limit."""

GRACE: Final = 5.0
"""Seconds after which a write that was given up is in the log or never will be."""

MAX_RETRY: Final = 60
"""Seconds: the longest a client is told to wait."""

Offsets = tuple[tuple[int, int], ...]
"""(partition, offset) pairs."""


class ViewQuotas:
    """`Quotas` on a view. `log_end` gives partition -> last offset of the log (absent or -1: empty); it is
    cheap, does not raise, and knows of all that was acknowledged before it is called.

    Construct it before the first batch is taken: what is in the log by then came from an earlier process, and until
    the view contains it nobody knows what an organization has left.
    """

    def __init__(
        self,
        view: View,
        arrivals: Arrivals,
        directory: Directory,
        log_end: Callable[[], Mapping[int, int]],
        *,
        patience: float = PATIENCE,
        grace: float = GRACE,
        rates: Rates | None = None,
    ) -> None:
        self._rates = rates or OwnRates()
        self._view = view
        self._directory = directory
        self._log_end = log_end
        self._patience = patience
        self._grace = grace
        self._at_start = dict(log_end())
        self._unmetered: dict[str, _Unmetered] = {}
        self._unseen: dict[str, dict[int, int]] = {}
        """organization -> what the view must contain before its quota is known, if not `_at_start`."""
        self._accounts: dict[tuple[str, int], _Account] = {}
        self._changed = asyncio.Event()
        self._waiting = 0
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
        """What is left at `now` of the key's requests and its organization's events; what is on its way is used."""
        found: tuple[Allowance, ...] = ()
        if key.rate_limit is not None:
            ends = now - now % MINUTE + MINUTE
            used = self._rates.used(key.lineage, now)
            found = (Allowance("requests", key.rate_limit, used, ends, MINUTE // SECOND),)
        quota = self._directory.organization(key.organization).monthly_quota
        if quota is not None:
            used = self._taken(key.organization, month_start(now))
            found += (Allowance("events", quota, used, next_month(now)),)
        return found

    def _taken(self, organization: str, month: int) -> int:
        """Events that are charged or on their way."""
        account = self._accounts.get((organization, month))
        if account is not None:
            account.collect(self._view)
        return self._charged(organization, month) + (0 if account is None else account.reserved)

    # --- events a month ---------------------------------------------------------------------------------------------

    async def reserve(self, key: Key, events: int, now: int) -> Reservation:
        """Take room for `events` in the month of `now`, the batch's arrival.

        Waits for up to `patience` if that may help. Raises `Refused`: quota_exceeded, or unavailable if what is on
        its way for the organization is not known: after a start, and after its first quota was set.
        """
        if self._directory.organization(key.organization).monthly_quota is None:
            return self._unmetered_batch(key.organization)
        outcome = self._attempt(key.organization, events, now)
        if isinstance(outcome, Refused):
            outcome = await self._wait(outcome, key.organization, events, now)
        return outcome

    def _attempt(self, organization: str, events: int, now: int) -> Reservation | Refused:
        """A reservation, or why there is none yet. Raises `Refused` if waiting would not help."""
        limit = self._directory.organization(organization).monthly_quota
        if limit is None:  # lifted while the batch waited
            return self._unmetered_batch(organization)
        if not self._is_known(organization):
            return Refused("unavailable", "What is left of the quota is not known yet; send again", retry_after=1)
        month = month_start(now)
        account = self._accounts.get((organization, month))
        if account is None:
            account = self._accounts[organization, month] = _Account()
        if not self._has_room(organization, month, account.reserved + events, limit):
            account.collect(self._view)
            charged = self._charged(organization, month)  # after the reservations: what left them is in here
            refusal = _refused("quota_exceeded", "Monthly quota exceeded", limit, charged, next_month(now), now)
            if charged + events > limit:
                raise refusal
            if not self._has_room(organization, month, account.reserved + events, limit):
                refusal.retry_after = 1
                return refusal
        account.reserved += events
        return _Held(self, account, events)

    def _has_room(self, organization: str, month: int, events: int, limit: int) -> bool:
        """True if so many events, those that are on their way included, stay within what this process may take."""
        return self._charged(organization, month) + events <= limit

    def _charged(self, organization: str, month: int) -> int:
        return self._view.charged(organization, month).unique

    async def _wait(self, refusal: Refused, organization: str, events: int, now: int) -> Reservation:
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    await self._changed.wait()
                    outcome = self._attempt(organization, events, now)
                    if not isinstance(outcome, Refused):
                        return outcome
                    refusal = outcome
        except TimeoutError:
            raise self._at_last(refusal) from None
        finally:
            self._waiting -= 1

    def _at_last(self, refusal: Refused) -> Refused:
        """What to say when waiting did not help."""
        return refusal

    def _is_known(self, organization: str) -> bool:
        """True if all that counts for an organization is either in the view or reserved."""
        unmetered = self._unmetered.get(organization)
        if unmetered is not None:  # its quota is new: what it sent before was not reserved
            if unmetered.under_way:
                return False
            del self._unmetered[organization]
            self._unseen[organization] = dict(self._log_end())
        unseen = self._unseen.get(organization, self._at_start)
        if unseen and not self._view.contains(unseen):
            return False
        self._unseen[organization] = {}
        return True

    def _unmetered_batch(self, organization: str) -> Reservation:
        unmetered = self._unmetered.get(organization)
        if unmetered is None:
            unmetered = self._unmetered[organization] = _Unmetered(self)
        unmetered.under_way += 1
        return unmetered

    # --- what reservations and arrivals do --------------------------------------------------------------------------

    def _on_arrival(self) -> None:
        for key, account in list(self._accounts.items()):
            account.collect(self._view)
            if not account.reserved:
                del self._accounts[key]
        self.wake()

    def wake(self) -> None:
        """Let those who wait try again."""
        if self._waiting:
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def after_grace(self, then: Callable[[Mapping[int, int]], None]) -> None:
        """Call `then` with the end of the log, once a write that was given up is in it or never will be."""
        asyncio.get_running_loop().call_later(self._grace, lambda: then(self._log_end()))


class _Account:
    """What an organization has on its way in one month of arrival."""

    __slots__ = ("_pending", "reserved")

    def __init__(self) -> None:
        self.reserved = 0
        """Events, those in `_pending` included."""
        self._pending: dict[Offsets, int] = {}

    def settle(self, events: int, offsets: Mapping[int, int]) -> None:
        key = tuple(sorted(offsets.items()))
        self._pending[key] = self._pending.get(key, 0) + events

    def collect(self, view: View) -> None:
        """End the reservations of what the view contains."""
        pending = self._pending
        for offsets in [offsets for offsets in pending if view.contains(dict(offsets))]:
            self.reserved -= pending.pop(offsets)


class _Held:
    """A `Reservation` in an account. Only the first of its ends counts."""

    __slots__ = ("_account", "_events", "_quotas")

    def __init__(self, quotas: ViewQuotas, account: _Account, events: int) -> None:
        self._quotas = quotas
        self._account = account
        self._events = events

    def settle(self, offsets: Mapping[int, int]) -> None:
        self._account.settle(self._end(), offsets)
        self._quotas.wake()  # the view may have been faster than the acknowledgement

    def release(self) -> None:
        self._account.reserved -= self._end()
        self._quotas.wake()

    def doubt(self) -> None:
        account, events = self._account, self._end()
        self._quotas.after_grace(lambda end: account.settle(events, end))

    def _end(self) -> int:
        events, self._events = self._events, 0
        return events


class _Unmetered:
    """The `Reservation` of all batches of an organization without a quota: only counts those that are under way."""

    __slots__ = ("_quotas", "under_way")

    def __init__(self, quotas: ViewQuotas) -> None:
        self._quotas = quotas
        self.under_way = 0

    def settle(self, offsets: Mapping[int, int]) -> None:
        self.release()

    def release(self) -> None:
        self.under_way -= 1
        if not self.under_way:
            self._quotas.wake()

    def doubt(self) -> None:
        self._quotas.after_grace(lambda _: self.release())


def _refused(
    reason: Literal["rate_limited", "quota_exceeded"], message: str, limit: int, used: int, resets_at: int, now: int
) -> Refused:
    wait = -((now - resets_at) // SECOND)
    details = {"limit": limit, "used": used, "resetsAt": format_timestamp(resets_at)}
    return Refused(reason, message, retry_after=max(1, min(MAX_RETRY, wait)), details=details)
