"""The cap of one API process in an organization's month: the port, and its adapter for a single process.

A *cap* is the number of unique events of an account that one process may ever be charged with. Each adapter keeps

    the caps of all processes + what was charged through none of them  <=  the quota
    charged through this process + reserved by it  <=  its cap

so the quota is never exceeded, whatever the processes know of each other.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol

from processor.leases.lease_messages import Account
from server.limits.monthly_usage import MonthlyUsage
from server.tenancy.directory import Directory

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
