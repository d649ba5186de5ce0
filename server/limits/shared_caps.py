"""`Caps` for several API processes on the embedded log: each has its cap in a table that they share.

The worker's tables count what was charged through each process, by its name, so all figures are absolute. At any moment

    charged through none of the processes (before them, by imports)  +  the caps of all processes  <=  limit
    charged through a process + reserved by it (on its way)  <=  its cap

A process raises its cap under the lock, batch by batch, to exactly what it needs, and lowers it again when the view
shows that a batch came to less. No figure depends on how far one process's view is behind another's. A process that is
killed leaves its cap, which covers at least what it wrote; its successor has the same name, and continues from there
when its view has caught up with the log.

A quota is identified by its record in the directory; a changed one is another quota, with a row of its own. Nothing is
admitted under it before each process has a cap in that row: then all of them know of the quota, and none has events on
their way that the caps do not cover.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from processor.core.clock import month_start
from processor.leases.lease_messages import Account
from processor.structured_log import get_logger
from server.limits.monthly_usage import MonthlyUsage
from server.limits.quotas import NOT_KNOWN_YET
from server.processes.shared_table import Busy, SharedTable
from server.processes.siblings import ApiSibling
from server.tenancy.directory import Directory

TICK: Final = 0.02
"""Seconds between two checks for quotas that other processes wait for, while batches wait or there are any."""

SETTLE: Final = 0.25
"""Most seconds until a cap is lowered that is higher than necessary, if no flush causes that."""

MAX_REMEMBERED: Final = 100_000

MAX_CAP: Final = 2**63 - 1

NONE: Final = -1
"""The cap of a process that does not apply the quota yet."""


class _Row(NamedTuple):
    """The key of a row in the table: an account under one of its organization's quotas."""

    organization: str
    month: int
    offset: int
    """See `server.tenancy.keys.Quota`."""

    @property
    def key(self) -> bytes:
        return f"{self.organization}/{self.month}/{self.offset}".encode()

    @property
    def account(self) -> Account:
        return Account(self.organization, self.month)

    @classmethod
    def of(cls, key: bytes) -> "_Row":
        organization, month, offset = key.decode().split("/")
        return cls(organization, int(month), int(offset))


class SharedCaps:
    """`Caps` of one of several API processes. A row of `table` has the month, then a word for each process."""

    def __init__(self, usage: MonthlyUsage, directory: Directory, sibling: ApiSibling, table: SharedTable) -> None:
        self._usage = usage
        self._directory = directory
        self._table = table
        self._names = [sibling.name(number) for number in range(sibling.count)]
        self._name = sibling.name(sibling.number)
        self._mine = 1 + sibling.number
        self._unconfirmed: set[_Row] = set()
        """Rows in which this process has no cap yet."""
        self._raised: set[_Row] = set()
        """Rows in which this process's cap may be higher than necessary."""
        self._elsewhere: dict[Account, int] = {}
        """What was charged through none of the processes, as last seen."""
        self._undecided: set[str] = set()
        """Organizations whose remaining quota was not known at the last try."""
        self._seen = -1
        """The version of the table up to which all of its rows are known here."""

    # --- admission --------------------------------------------------------------------------------------------------

    def admit(self, account: Account, events: int) -> bool:
        """See `Caps.admit`: raises the cap to exactly what is needed, if all caps together allow it."""
        known = self._directory.quota(account.organization)
        if known.limit is None:  # lifted this moment
            return False
        row = _Row(account.organization, account.month, known.offset)
        self._undecided.add(account.organization)
        try:
            with self._table:
                place = self._find_or_add(row)
                others = self._others(self._table.words(place)[1:])
                elsewhere = self._charged_elsewhere(account)
                if elsewhere is None or NONE in others:
                    return False
                self._undecided.discard(account.organization)
                cap = self._usage.floor(self._name, account) + events
                if elsewhere + sum(others) + cap > known.limit:
                    return False
                self._table.put(place, self._mine, cap)
        except Busy:
            return False
        self._unconfirmed.discard(row)
        self._raised.add(row)
        return True

    def _find_or_add(self, row: _Row) -> int:
        place = self._table.find(row.key)
        if place is None:
            words = [row.month, *(NONE for _ in self._names)]
            place = self._table.add(row.key, words, month_start(row.month - 1))
            self._unconfirmed.add(row)
        return place

    def _others(self, caps: list[int]) -> list[int]:
        return caps[: self._mine - 1] + caps[self._mine :]

    def _charged_elsewhere(self, account: Account) -> int | None:
        """Return the unique events charged through none of the processes; None: not known yet. The view must have
        caught up."""
        found = self._usage.charged_elsewhere(self._names, account)
        if found is None:  # what it was a moment ago: others only add to it by an import
            return self._elsewhere.get(account)
        if len(self._elsewhere) > MAX_REMEMBERED:  # of months that are long over
            self._elsewhere.clear()
        self._elsewhere[account] = found
        return found

    @contextmanager
    def ask(self, account: Account, events: int) -> Iterator[Callable[[], str | None]]:
        """See `Caps.ask`: what other processes give back is noticed at the next `tick`."""

        def why_unknown() -> str | None:
            if account.organization in self._undecided:
                return NOT_KNOWN_YET
            return None

        yield why_unknown

    def taken(self, account: Account) -> int:
        """See `Caps.taken`: what this process has, all caps of others, and what was charged through none of them."""
        row = _Row(account.organization, account.month, self._directory.quota(account.organization).offset)
        try:
            with self._table:
                place = self._table.find(row.key)
                others = [] if place is None else self._others(self._table.words(place)[1:])
        except Busy:
            return 0
        # Not `_charged_elsewhere`: this is also called before the view has caught up.
        elsewhere = self._usage.charged_elsewhere(self._names, account)
        return (elsewhere or 0) + self._usage.floor(self._name, account) + sum(cap for cap in others if cap != NONE)

    # --- what other processes wait for ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Confirm quotas and lower caps for the other processes, for ever."""
        settled = time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            try:
                self.tick()
                if time.monotonic() - settled > SETTLE:
                    settled = time.monotonic()
                    self.lower()
            except Exception:  # noqa: BLE001 - the others wait for this process; the next look may go well
                get_logger().exception("quotas.failed")

    def tick(self) -> None:
        """Confirm the quotas that other processes have found, and let waiting batches try again."""
        version = self._table.version
        if version != self._seen or self._unconfirmed:
            try:
                with self._table:
                    self._look()
                    self._confirm()
            except Busy:
                return
            self._seen = version
        self._usage.changed()

    def _look(self) -> None:
        self._unconfirmed = set(map(_Row.of, self._table.where(self._mine, NONE, NONE)))
        if self._seen < 0:  # an earlier process of this name may have left caps that are higher than what it wrote
            self._raised |= set(map(_Row.of, self._table.where(self._mine, 1, MAX_CAP)))

    def _confirm(self) -> None:
        for row in list(self._unconfirmed):
            known = self._directory.quota(row.organization).offset
            if known > row.offset:  # of a quota that was changed since
                self._unconfirmed.discard(row)
            elif known == row.offset and self._usage.is_known(row.organization):
                place = self._table.find(row.key)
                if place is not None:
                    self._table.put(place, self._mine, self._floor(row))
                self._unconfirmed.discard(row)

    def on_arrival(self) -> None:
        """See `Caps.on_arrival`."""
        self.lower()

    def lower(self) -> None:
        """Lower this process's caps by what batches did not need."""
        if not self._raised:
            return
        try:
            with self._table:
                for row in list(self._raised):
                    self._lower(row)
        except Busy:
            return

    def _lower(self, row: _Row) -> None:
        if not self._usage.is_known(row.organization):
            return
        place = self._table.find(row.key)
        floor = self._floor(row)
        if place is not None and self._table.get(place, self._mine) > floor:
            self._table.put(place, self._mine, floor)
        if place is None or not self._usage.reserved(row.account):
            self._raised.discard(row)

    def _floor(self, row: _Row) -> int:
        """Return the least cap of this process: what is charged through it or on its way."""
        self._usage.collect(row.account)
        return self._usage.floor(self._name, row.account)
