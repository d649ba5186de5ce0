"""The monthly quota for several API processes on the embedded log: each has a cap in a table that they share.

A *cap* is the number of unique events of an organization's month that one process, by its name, may ever be charged
with. The tables count what was charged through each name, so all figures are absolute. At any moment

    charged through nobody of us (before us, by imports)  +  the caps of all processes  <=  limit
    charged through a process + reserved by it (on its way)  <=  its cap

A process raises its cap under the lock, batch by batch, to exactly what it needs, and lowers it again when the view
says that a batch came to less. No figure depends on how far a process's view is behind another's. A process that is
killed leaves its cap, which is at least what it wrote; its successor has its name, and goes on from there when its view
has caught up with the log.

A quota is the record of the directory that says it; a changed one is another quota. Nothing is admitted under it
before each process has a cap in its row: then all of them know of the quota, and none has anything on its way that the
caps do not cover.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from structlog.stdlib import get_logger

from processor.core.clock import month_start
from processor.leases.lease_messages import owner
from processor.view.arrivals import Arrivals
from processor.view.view import View
from server.errors import Refused
from server.limits.quota_port import Reservation
from server.limits.quotas import ViewQuotas
from server.processes.shared_table import Busy, SharedTable
from server.processes.siblings import ApiSibling
from server.tenancy.directory import Directory

TICK: Final = 0.02
"""Seconds between two looks for quotas that others wait for, while batches wait or there are any."""

SETTLE: Final = 0.25
"""Seconds at most until a cap is lowered that is higher than it need be, where no flush does it."""

MAX_REMEMBERED: Final = 100_000

MAX_CAP: Final = 2**63 - 1

NONE: Final = -1
"""The cap of a process that does not go by the quota yet."""


class _Quota(NamedTuple):
    """What a row of the table is about."""

    organization: str
    month: int
    offset: int
    """See `server.tenancy.keys.Quota`."""

    @property
    def key(self) -> bytes:
        return f"{self.organization}/{self.month}/{self.offset}".encode()

    @classmethod
    def of(cls, key: bytes) -> "_Quota":
        organization, month, offset = key.decode().split("/")
        return cls(organization, int(month), int(offset))


class SharedQuotas(ViewQuotas):
    """`Quotas` of one of several API processes. `table` has a word for each process, after the month."""

    def __init__(
        self,
        view: View,
        arrivals: Arrivals,
        directory: Directory,
        log_end: Callable[[], Mapping[int, int]],
        sibling: ApiSibling,
        table: SharedTable,
        **options: Any,
    ) -> None:
        super().__init__(view, arrivals, directory, log_end, **options)
        self._table = table
        self._names = [sibling.name(number) for number in range(sibling.count)]
        self._name = sibling.name(sibling.number)
        self._mine = 1 + sibling.number
        self._unconfirmed: set[_Quota] = set()
        """Rows in which this process has no cap yet."""
        self._raised: set[_Quota] = set()
        """Rows in which this process's cap may be higher than it need be."""
        self._unleased: dict[tuple[str, int], int] = {}
        """What was charged through nobody of us, as last seen."""
        self._undecided: set[str] = set()
        """Organizations of which it was not known, at the last try, what they have left."""
        self._seen = -1
        """The version of the table up to which all of its rows are known here."""

    # --- admission --------------------------------------------------------------------------------------------------

    def _has_room(self, organization: str, month: int, events: int, limit: int) -> bool:
        """See `ViewQuotas`. True: this process's cap is high enough for so many events, those on their way included."""
        known = self._directory.quota(organization)
        if known.limit is None:  # lifted this moment
            return False
        quota = _Quota(organization, month, known.offset)
        self._undecided.add(organization)
        try:
            with self._table:
                row = self._row(quota)
                _, *caps = self._table.words(row)
                elsewhere = self._charged_elsewhere(organization, month)
                if elsewhere is None or any(cap == NONE for cap in self._others(caps)):
                    return False
                self._undecided.discard(organization)
                floor = events + self._charged_here(organization, month)
                if elsewhere + sum(self._others(caps)) + floor > known.limit:
                    return False
                self._table.put(row, self._mine, floor)
        except Busy:
            return False
        self._unconfirmed.discard(quota)
        self._raised.add(quota)
        return True

    def _row(self, quota: _Quota) -> int:
        row = self._table.find(quota.key)
        if row is None:
            words = [quota.month, *(NONE for _ in self._names)]
            row = self._table.add(quota.key, words, month_start(quota.month - 1))
            self._unconfirmed.add(quota)
        return row

    def _others(self, caps: list[int]) -> list[int]:
        return caps[: self._mine - 1] + caps[self._mine :]

    def _charged_elsewhere(self, organization: str, month: int) -> int | None:
        """Unique events charged through nobody of us; None: not known yet. For a view that has caught up."""
        found = self._look_elsewhere(organization, month)
        if found is None:  # what it was a moment ago: others only add to it by an import
            return self._unleased.get((organization, month))
        if len(self._unleased) > MAX_REMEMBERED:  # of months that are long over
            self._unleased.clear()
        self._unleased[organization, month] = found
        return found

    def _look_elsewhere(self, organization: str, month: int) -> int | None:
        return self._view.unleased(organization, [owner(name, organization) for name in self._names], month)

    def _charged_here(self, organization: str, month: int) -> int:
        return self._view.leased(owner(self._name, organization), month)

    def _floor(self, quota: _Quota) -> int:
        """What this process's cap has to be at least."""
        account = self._accounts.get((quota.organization, quota.month))
        if account is not None:
            account.collect(self._view)
        # The reservations first: what leaves them is charged by then.
        reserved = 0 if account is None else account.reserved
        return reserved + self._charged_here(quota.organization, quota.month)

    async def _wait(self, refusal: Refused, organization: str, events: int, now: int) -> Reservation:
        try:
            return await super()._wait(refusal, organization, events, now)
        except Refused as refused:
            if refused.reason == "quota_exceeded" and refused.retry_after == 1 and organization in self._undecided:
                message = "What is left of the quota is not known yet; send again"
                raise Refused("unavailable", message, retry_after=1) from None
            raise

    def _taken(self, organization: str, month: int) -> int:
        quota = _Quota(organization, month, self._directory.quota(organization).offset)
        charged = self._charged(organization, month)
        try:
            with self._table:
                row = self._table.find(quota.key)
                caps = [] if row is None else self._table.words(row)[1:]
        except Busy:
            return charged
        elsewhere = self._look_elsewhere(organization, month)
        return max(charged, (elsewhere or 0) + sum(cap for cap in caps if cap != NONE))

    # --- what the others wait for -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Say what the other processes have to know, for ever."""
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
        """Go by the quotas that others have found, and let those who wait try again."""
        version = self._table.version
        if version != self._seen or self._unconfirmed:
            try:
                with self._table:
                    self._look()
                    self._confirm()
            except Busy:
                return
            self._seen = version
        self.wake()

    def _look(self) -> None:
        self._unconfirmed = set(map(_Quota.of, self._table.where(self._mine, NONE, NONE)))
        if self._seen < 0:  # a predecessor may have left caps that are higher than what it wrote
            self._raised |= set(map(_Quota.of, self._table.where(self._mine, 1, MAX_CAP)))

    def _confirm(self) -> None:
        for quota in list(self._unconfirmed):
            known = self._directory.quota(quota.organization).offset
            if known > quota.offset:  # nobody asks for it any more
                self._unconfirmed.discard(quota)
            elif known == quota.offset and self._is_known(quota.organization):
                row = self._table.find(quota.key)
                if row is not None:
                    self._table.put(row, self._mine, self._floor(quota))
                self._unconfirmed.discard(quota)

    def lower(self) -> None:
        """Give back what batches did not need."""
        if not self._raised:
            return
        try:
            with self._table:
                for quota in list(self._raised):
                    self._lower(quota)
        except Busy:
            return

    def _lower(self, quota: _Quota) -> None:
        if not self._is_known(quota.organization):
            return
        row = self._table.find(quota.key)
        floor = self._floor(quota)
        if row is None:
            self._raised.discard(quota)
            return
        if self._table.get(row, self._mine) > floor:
            self._table.put(row, self._mine, floor)
        if (quota.organization, quota.month) not in self._accounts:
            self._raised.discard(quota)

    def _on_arrival(self) -> None:
        for account in self._accounts.values():
            account.collect(self._view)
        self.lower()
        super()._on_arrival()
