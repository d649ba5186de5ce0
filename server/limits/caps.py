"""How far one API process may go in an organization's month: the port, and its adapter for a process that is alone.

A *cap* is the number of unique events of an account that one process may ever be charged with. Each adapter keeps

    the sum of what all processes may go to, and of what was charged through none of them  <=  the quota
    charged through this process + reserved by it  <=  its cap

so the quota is never exceeded, whatever the processes know of each other.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from processor.leases.lease_messages import Account
from server.limits.monthly_usage import MonthlyUsage
from server.tenancy.directory import Directory


class Caps(Protocol):
    """One process's caps. No method blocks for longer than it takes to get the lock of a shared table."""

    def admit(self, account: Account, events: int) -> bool:
        """True if so many events more fit under this process's cap, which may be raised for them: the caller reserves
        them at once. Raises `Refused` (unavailable) if nothing may be admitted now and waiting would not help."""
        ...

    def ask(self, account: Account, events: int) -> AbstractContextManager[Callable[[], str | None]]:
        """Ask for a higher cap while a batch of so many events waits.

        The function that it gives says why it is not known whether there is room for the batch; None: it is known that
        there was none when last tried.
        """
        ...

    def taken(self, account: Account) -> int:
        """Events that are charged or that other processes may have on their way; 0 if only the view can tell."""
        ...

    def on_arrival(self) -> None:
        """The view contains more than before: give back what batches did not need."""
        ...


class OwnCaps:
    """`Caps` of a process that is alone: its cap is the quota."""

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
        """See `Caps.ask`: there is nobody to ask."""
        yield lambda: None

    def taken(self, account: Account) -> int:
        """See `Caps.taken`."""
        return 0

    def on_arrival(self) -> None:
        """See `Caps.on_arrival`: there is nobody to give anything back to."""
