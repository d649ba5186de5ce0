"""The usage of each organization's month as one API process sees it: charged in its view, and reserved here.

`reserved` counts every event of a batch that is on its way (published, or about to be), `charged` only the unique ones:
a batch may come to less than its reservation, never to more. A reservation ends when the view *contains* the offsets
that its batch went to, and by then the view has the charge. So an event may count twice for a moment, but it always
counts at least once.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from processor.leases.lease_messages import Account, owner
from processor.view.view import View
from server.limits.quota_port import Reservation

GRACE: Final = 5.0
"""Seconds after which a write that was given up is in the log or never will be."""

Offsets = tuple[tuple[int, int], ...]
"""(partition, offset) pairs."""


def call_later(seconds: float, then: Callable[[], None]) -> None:
    """Call `then` in the running loop's thread."""
    asyncio.get_running_loop().call_later(seconds, then)


class MonthlyUsage:
    """The accounts of one API process. `log_end` returns partition -> last offset of the log (absent or -1: empty); it
    is cheap, does not raise, and includes all that was acknowledged before the call.

    Construct it before the first batch is accepted: what is in the log by then came from an earlier process, and until
    the view contains it no organization's usage is known. All methods belong to the event loop's thread; only the view
    changes from another one, and its charges only grow.
    """

    def __init__(
        self,
        view: View,
        log_end: Callable[[], Mapping[int, int]],
        *,
        grace: float = GRACE,
        later: Callable[[float, Callable[[], None]], None] = call_later,
    ) -> None:
        self._view = view
        self._log_end = log_end
        self._grace = grace
        self._later = later
        self._at_start = dict(log_end())
        self._reserved: dict[Account, _Reserved] = {}
        self._unmetered: dict[str, _Unmetered] = {}
        self._unseen: dict[str, dict[int, int]] = {}
        """organization -> what the view must contain before its usage is known, if not `_at_start`."""
        self._listeners: list[Callable[[], None]] = []

    # --- charged ----------------------------------------------------------------------------------------------------

    def charged(self, account: Account) -> int:
        """Return the unique events charged to an account, through all processes."""
        return self._view.charged(account.organization, account.month).unique

    def charged_through(self, process: str, account: Account) -> int:
        """Return the unique events charged to an account through one API process, by its name."""
        return self._view.leased(owner(process, account.organization), account.month)

    def charged_elsewhere(self, processes: Sequence[str], account: Account) -> int | None:
        """Return the unique events charged to an account through none of `processes`; None: not known at this moment,
        as the view contains only a part of a flush."""
        owners = [owner(name, account.organization) for name in processes]
        return self._view.unleased(account.organization, owners, account.month)

    # --- reserved ---------------------------------------------------------------------------------------------------

    @property
    def accounts(self) -> list[Account]:
        """The accounts with reservations."""
        return list(self._reserved)

    def reserved(self, account: Account) -> int:
        """Return the events on their way from this process."""
        held = self._reserved.get(account)
        return 0 if held is None else held.events

    def floor(self, process: str, account: Account) -> int:
        """Return the events charged through this process, whose name is given, or on their way. Its cap must not be
        lower."""
        # The reservations first: what leaves them is charged by then.
        reserved = self.reserved(account)
        return reserved + self.charged_through(process, account)

    def reserve(self, account: Account, events: int) -> Reservation:
        """Count `events` as on their way; does not check whether there is room."""
        held = self._reserved.get(account)
        if held is None:
            held = self._reserved[account] = _Reserved()
        held.events += events
        return _Held(self, held, events)

    def collect(self, account: Account) -> None:
        """End the account's reservations that the view contains."""
        held = self._reserved.get(account)
        if held is not None:
            held.collect(self._view)

    def collect_all(self) -> None:
        """End all reservations that the view contains."""
        for account, held in list(self._reserved.items()):
            held.collect(self._view)
            if not held.events:
                del self._reserved[account]

    # --- organizations without a quota ------------------------------------------------------------------------------

    @property
    def unmetered(self) -> list[str]:
        """Organizations that had no quota when they last sent a batch."""
        return list(self._unmetered)

    def pass_unmetered(self, organization: str) -> Reservation:
        """Admit a batch without reserving; count only how many such batches are under way."""
        unmetered = self._unmetered.get(organization)
        if unmetered is None:
            unmetered = self._unmetered[organization] = _Unmetered(self)
        unmetered.under_way += 1
        return unmetered

    def is_known(self, organization: str) -> bool:
        """Return True if all events of an organization with a quota are either in the view or reserved."""
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

    # --- changes ----------------------------------------------------------------------------------------------------

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever there may be more room than before; it must be brief and must not raise."""
        self._listeners.append(listener)

    def changed(self) -> None:
        """Call the listeners: there may be more room than before."""
        for listener in self._listeners:
            listener()

    def after_grace(self, then: Callable[[Mapping[int, int]], None]) -> None:
        """Call `then` with the end of the log, once a write that was given up is in it or never will be."""
        self._later(self._grace, lambda: then(self._log_end()))


class _Reserved:
    """The events that an account has on their way."""

    __slots__ = ("_pending", "events")

    def __init__(self) -> None:
        self.events = 0
        """Including those in `_pending`."""
        self._pending: dict[Offsets, int] = {}

    def settle(self, events: int, offsets: Mapping[int, int]) -> None:
        key = tuple(sorted(offsets.items()))
        self._pending[key] = self._pending.get(key, 0) + events

    def collect(self, view: View) -> None:
        pending = self._pending
        for offsets in [offsets for offsets in pending if view.contains(dict(offsets))]:
            self.events -= pending.pop(offsets)


class _Held:
    """A `Reservation` in an account. Only the first call that ends it counts."""

    __slots__ = ("_events", "_reserved", "_usage")

    def __init__(self, usage: MonthlyUsage, reserved: _Reserved, events: int) -> None:
        self._usage = usage
        self._reserved = reserved
        self._events = events

    def settle(self, offsets: Mapping[int, int]) -> None:
        self._reserved.settle(self._end(), offsets)
        self._usage.changed()  # the view may have been faster than the acknowledgement

    def release(self) -> None:
        self._reserved.events -= self._end()
        self._usage.changed()

    def doubt(self) -> None:
        reserved, events = self._reserved, self._end()
        self._usage.after_grace(lambda end: reserved.settle(events, end))

    def _end(self) -> int:
        events, self._events = self._events, 0
        return events


class _Unmetered:
    """The `Reservation` of all batches of an organization without a quota: counts those that are under way."""

    __slots__ = ("_usage", "under_way")

    def __init__(self, usage: MonthlyUsage) -> None:
        self._usage = usage
        self.under_way = 0

    def settle(self, offsets: Mapping[int, int]) -> None:
        self.release()

    def release(self) -> None:
        self.under_way -= 1
        if not self.under_way:
            self._usage.changed()

    def doubt(self) -> None:
        self._usage.after_grace(lambda _: self.release())
