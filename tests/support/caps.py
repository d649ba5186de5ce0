"""Each adapter of `Caps` for a process in memory, driven by hand: alone, by a shared table, by lease."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Literal

from processor.leases.grants import Grants, MonthlyQuota
from processor.leases.lease_messages import DELIVERY, TTL, Lease, Statement, decode_statement, encode
from processor.leases.ledger import Ledger
from server.limits.lease_client import LeaseHoldings
from server.limits.leased_caps import LeasedCaps
from server.limits.monthly_usage import MonthlyUsage
from server.limits.quotas import Caps, OwnCaps
from server.limits.shared_caps import SharedCaps
from server.processes.shared_table import SharedTable
from server.processes.siblings import QUOTAS, ApiSibling
from server.tenancy.directory import Directory
from tests.support.tables import Worker

Kind = Literal["own", "shared", "leased"]

KINDS: Final[tuple[Kind, ...]] = ("own", "shared", "leased")


class Grantor:
    """The real grants and ledger, with queues in place of the topics. `directory` says what the quotas are."""

    def __init__(self, worker: Worker, directory: Directory, organizations: tuple[str, ...]) -> None:
        self._worker = worker
        self._directory = directory
        self._organizations = organizations
        self._grants = Grants()
        self._ledger = Ledger()
        self._read = [0] * len(worker.log)
        self._inboxes: dict[str, list[Lease | None]] = {}
        self._now = 0.0

    def join(self, name: str) -> None:
        """A process that has started: its first statement is durable before it admits anything."""
        self._inboxes[name] = []
        self.hear(name, Statement(1, -1, 0, []))

    def hear(self, name: str, statement: Statement) -> None:
        """One durable statement."""
        self._grants.hear(name, decode_statement(encode(statement)), self._now)

    def decide(self) -> None:
        """Write the leases that are due: `read` gives them to their processes."""
        for partition, records in enumerate(self._worker.changelog):
            for key, value in records[self._read[partition] :]:
                self._ledger.apply(partition, key, value)
            self._read[partition] = len(records)
        quotas = {name: MonthlyQuota(*self._directory.quota(name)) for name in self._organizations}
        for name, lease in self._grants.decide(quotas, self._ledger, self._worker.log_end, self._now).items():
            self._inboxes[name].append(lease)

    def read(self, name: str) -> list[Lease | None]:
        """Leases a process has not read yet."""
        unread, self._inboxes[name] = self._inboxes[name], []
        return unread

    def silence(self) -> None:
        """So much time goes by that processes that say nothing from now on are gone."""
        self._now += TTL + DELIVERY + 1


class LeaseExchange:
    """`Statements` of one process: what it says is heard and answered in the loop's next round."""

    def __init__(self, grantor: Grantor, notify: Callable[[], None]) -> None:
        self._grantor = grantor
        self._notify = notify
        self.holdings = LeaseHoldings()
        self.number = 1
        self.caps: LeasedCaps | None = None
        grantor.join(self.holdings.instance)
        self.holdings.stated(1, time.monotonic())

    def wake(self) -> None:
        """See `Statements.wake`."""
        asyncio.get_running_loop().call_soon(self.exchange)

    def exchange(self) -> None:
        """State what is needed, let the grantor decide, and read the answer."""
        self.state()
        self._grantor.decide()
        self.read()

    def state(self) -> None:
        """One durable statement."""
        assert self.caps is not None
        began = time.monotonic()
        self.number += 1
        version = self.holdings.version
        self._grantor.hear(
            self.holdings.instance, Statement(self.number, self.caps.directory(), version, self.caps.needs())
        )
        self.holdings.stated(self.number, began)

    def read(self) -> None:
        """Take in the leases written for this process."""
        leases = self._grantor.read(self.holdings.instance)
        for lease in leases:
            self.holdings.apply(self.holdings.instance.encode(), None if lease is None else encode(lease))
        if leases:
            self._notify()


class ProcessCaps:
    """The caps of one process, of any kind, and what moves them on. `notify` is called when its lease is another one;
    `directory_end` gives the last offset of the directory that it has read."""

    def __init__(
        self,
        usage: MonthlyUsage,
        directory: Directory,
        how: ApiSibling | Grantor | None,
        notify: Callable[[], None],
        directory_end: Callable[[], int],
    ) -> None:
        self.table: SharedTable | None = None
        self.shared: SharedCaps | None = None
        self.leases: LeaseExchange | None = None
        self.name = ""
        """What its events are counted under (`Source.lease`)."""
        self.caps: Caps
        if isinstance(how, ApiSibling):
            self.table = how.table(QUOTAS)
            self.name = how.name(how.number)
            self.caps = self.shared = SharedCaps(usage, directory, how, self.table)
        elif isinstance(how, Grantor):
            self.leases = LeaseExchange(how, notify)
            self.name = self.leases.holdings.instance
            self.caps = self.leases.caps = LeasedCaps(
                usage, directory, self.leases.holdings, self.leases, directory_end
            )
        else:
            self.caps = OwnCaps(usage, directory)

    def tick(self) -> None:
        """What a process does now and then, whether batches come or not."""
        if self.shared is not None:
            self.shared.tick()
            self.shared.lower()
        if self.leases is not None:
            self.leases.exchange()

    def close(self) -> None:
        """Let go of the table, if there is one."""
        if self.table is not None:
            self.table.close()


class Graces:
    """In place of the loop's clock: a test says when the graces of given-up writes end."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def later(self, seconds: float, then: Callable[[], None]) -> None:
        """See `MonthlyUsage`."""
        self._waiting.append(then)

    def end(self) -> None:
        """All of them."""
        for then in self._waiting:
            then()
        self._waiting.clear()
