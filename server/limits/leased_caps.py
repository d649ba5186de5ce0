"""`Caps` for API processes on Kafka: the cap is that of the process's lease, which the grantor decides."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from processor.core.clock import month_start
from processor.leases.lease_messages import Account, Need
from server.errors import Refused
from server.limits.lease_client import LeaseHoldings
from server.limits.monthly_usage import MonthlyUsage
from server.limits.quotas import OwnCaps
from server.tenancy.directory import Directory

UNUSED: Final = 86_400.0
"""Seconds without use after which an account of an earlier month is no longer stated. Time alone does not decide: a
clock that is wrong for a moment would end the current month."""


class _Pace:
    """How many events were admitted in the last second, and so far in this one."""

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


class Statements(Protocol):
    """What is used of `LeaseStatements`."""

    @property
    def number(self) -> int:
        """The number of the last statement that was begun."""
        ...

    def wake(self) -> None:
        """Make a statement now."""
        ...


class LeasedCaps:
    """`Caps` by lease. It keeps

        charged through this process (in the view) + reserved (on its way)  <=  the cap of its lease

    and is the `Speaker` of `statements`. `directory_end` returns the offset in the directory up to which this process
    has read; `clock`, monotonic seconds.
    """

    def __init__(
        self,
        usage: MonthlyUsage,
        directory: Directory,
        holdings: LeaseHoldings,
        statements: Statements,
        directory_end: Callable[[], int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._usage = usage
        self._directory = directory
        self._holdings = holdings
        self._statements = statements
        self._directory_end = directory_end
        self._clock = clock
        self._own = OwnCaps(usage, directory)
        """What the quota allows by what this process knows: it may have been lowered since the lease was granted."""
        self._sure_of = -1
        self._demand: dict[Account, int] = {}
        """Events of the batches that wait."""
        self._used: dict[Account, float] = {}
        """Account -> when events were last admitted, for this month and the one before: the grantor may not know yet
        what the view has charged to them."""
        self._paces: dict[Account, _Pace] = {}

    # --- admission --------------------------------------------------------------------------------------------------

    def admit(self, account: Account, events: int) -> bool:
        """See `Caps.admit`: nothing is admitted once the lease has expired, or beyond a quota that was lowered since it
        was granted."""
        if not self._holdings.is_fresh:
            message = "The lease of the quota has expired; retry the request unchanged"
            raise Refused("unavailable", message, retry_after=1)
        left = self._holdings.cap(account) - self._floor(account) - events
        if left < 0 or not self._own.admit(account, events):
            return False
        self._note(account, events, left)
        return True

    def _note(self, account: Account, events: int, left: int) -> None:
        """Note an admission, and ask for a higher cap before this one is used up."""
        at = self._clock()
        if account not in self._used:
            oldest = month_start(account.month - 1)
            self._used = {used: last for used, last in self._used.items() if used.month >= oldest or at - last < UNUSED}
        self._used[account] = at
        pace = self._paces.setdefault(account, _Pace())
        pace.add(events, at)
        if left < pace.recent(at):
            self._statements.wake()

    def _floor(self, account: Account) -> int:
        return self._usage.floor(self._holdings.instance, account)

    @contextmanager
    def ask(self, account: Account, events: int) -> Iterator[Callable[[], str | None]]:
        """See `Caps.ask`: the next statement includes the batch, and a lease that answers it decides."""
        self._demand[account] = self._demand.get(account, 0) + events
        asked = self._statements.number + 1
        self._statements.wake()

        def why_unknown() -> str | None:
            if self._holdings.answers < asked:
                return "No lease of the quota was granted in time; retry the request unchanged"
            return None

        try:
            yield why_unknown
        finally:
            self._demand[account] -= events
            if not self._demand[account]:
                del self._demand[account]

    def taken(self, account: Account) -> int:
        """See `Caps.taken`: what other processes have on their way is not known here."""
        return 0

    def on_arrival(self) -> None:
        """See `Caps.on_arrival`: the next statement gives back what is not needed, at once if a new grantor waits."""
        if self._holdings.is_asked:
            self._statements.wake()

    # --- statements -------------------------------------------------------------------------------------------------

    def needs(self) -> list[Need]:
        """See `Speaker.needs`."""
        at = self._clock()
        self._paces = {account: pace for account, pace in self._paces.items() if pace.recent(at)}
        accounts = {*self._demand, *self._used, *self._usage.accounts}
        return [self._need(account, at) for account in accounts if self._is_limited(account.organization)]

    def _need(self, account: Account, at: float) -> Need:
        floor = self._floor(account)
        need = floor + self._demand.get(account, 0)
        pace = self._paces.get(account)
        return Need(account, floor, need, need + (2 * pace.recent(at) if pace is not None else 0))

    def _is_limited(self, organization: str) -> bool:
        return self._directory.organization(organization).monthly_quota is not None

    def directory(self) -> int:
        """See `Speaker.directory`."""
        end = self._directory_end()
        if all(self._usage.is_known(name) for name in self._usage.unmetered if self._is_limited(name)):
            self._sure_of = end
        return self._sure_of
