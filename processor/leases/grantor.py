"""The grantor of leases: the worker that owns partition 0 follows what is charged and what API processes need, and
writes their leases."""

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final

import msgspec
from msgspec import Struct

from processor.leases.followed_ledger import FollowedLedger
from processor.leases.grants import Grants, MonthlyQuota
from processor.leases.lease_messages import GAP, Lease, decode_lease, decode_statement, encode
from processor.log.address import LogAddress
from processor.log.kafka.writer import Fenced, PartitionWriter
from processor.log.port import LogWriter, scan
from processor.log.records import Append, Record, TopicPartition
from processor.log.topics import DIRECTORY, EVENTS, GROUP, LEASES, STATEMENTS
from processor.structured_log import get_logger

HOME: Final = 0
"""The partition whose owner is the grantor."""

PAUSE: Final = 1.0
"""Seconds after a failure until the next try."""

ASK_EVERY: Final = 0.5
"""Seconds between two requests for the end of the statements."""

GAP_BITS: Final = 40
"""Random bits of the step between the versions of two grantors: see `Grants`."""

NOTHING: Final = [(b"grantor", None)]
"""A record of no API process. Its transaction ends an earlier one whose end the broker has lost: else nothing behind
that could be read."""

EVERY: Final = 1.0
"""Most seconds between two decisions, which also notice API processes that fell silent."""

CHARGED_EVERY: Final = 0.1
"""The same where something was charged meanwhile."""


class _Organization(Struct):
    """The part of an organization's record in the directory that is used here (`server.tenancy.keys.Organization`)."""

    monthly_quota: int | None = None


_organization = msgspec.json.Decoder(_Organization).decode


class Grantor(threading.Thread):
    """Grants leases while `is_owner` returns True. Being fenced only ends a term: another owner has begun one."""

    def __init__(
        self,
        address: LogAddress,
        partitions: int,
        is_owner: Callable[[], bool],
        clock: Callable[[], int],
        ledger: FollowedLedger,
    ) -> None:
        """`ledger` is kept up to date by another thread, as long as this process lives."""
        super().__init__(name="grantor", daemon=True)
        self._ledger = ledger
        self._address = address
        self._partitions = partitions
        self._is_owner = is_owner
        self._clock = clock
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.1):
            if not self._is_owner():
                continue
            try:
                self._serve()
            except Fenced:
                get_logger().info("grantor.replaced")
            except Exception as error:  # noqa: BLE001 - without leases metered senders wait; try again
                get_logger().warning("grantor.failed", error=str(error) or repr(error))
            self._stopping.wait(PAUSE)

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        self.join(timeout=5)

    def _serve(self) -> None:
        assert self._address.kafka is not None
        log = self._address.open()
        try:
            # An earlier grantor is fenced from here on: what is read next is all that it ever wrote.
            writer = PartitionWriter(self._address.kafka, f"{GROUP}.leases")
            writer.append([Append(TopicPartition(topic, 0), NOTHING) for topic in (STATEMENTS, LEASES)], self._clock())
            _Term(self._address, log, writer, self._partitions, self._clock, self._ledger).run(self._goes_on)
        finally:
            log.close()

    def _goes_on(self) -> bool:
        return self._is_owner() and not self._stopping.is_set()


class _Term:
    """The time for which this process is the owner of `HOME`."""

    def __init__(
        self,
        address: LogAddress,
        log: LogWriter,
        writer: PartitionWriter,
        partitions: int,
        clock: Callable[[], int],
        ledger: FollowedLedger,
    ) -> None:
        self._address = address
        self._log = log
        self._writer = writer
        self._clock = clock
        self._partitions = range(partitions)
        self._grants = Grants(GAP + secrets.randbits(GAP_BITS))
        self._ledger = ledger
        self._quotas: dict[str, MonthlyQuota] = {}
        self._heard_until = 0.0
        """Monotonic seconds: all statements from before that have been read."""
        self._heard_to = 0
        """The offset up to which the statements have been read."""
        self._asked = (0.0, 0)
        """When the end of the statements was looked up, and what it was."""
        self._tail = address.tail([TopicPartition(STATEMENTS, 0), TopicPartition(DIRECTORY, 0)])

    def run(self, goes_on: Callable[[], bool]) -> None:
        """Follow the topics and decide. Blocks. Raises `Fenced` and `LogUnavailable`."""
        try:
            self._catch_up(goes_on)
            get_logger().info("grantor.ready", front_ends=len(self._grants.members))
            decided, charged = 0.0, -1
            while goes_on():
                polled = time.monotonic()
                brought = self._follow()
                self._watch(polled)
                since = polled - decided
                if brought or since >= EVERY or (since >= CHARGED_EVERY and charged != self._ledger.changes):
                    decided, charged = polled, self._ledger.changes
                    self._decide()
        finally:
            self._tail.close()

    def _watch(self, polled: float) -> None:
        """Update the time up to which all statements have been read: a process is silent only after that.

        `polled` is when the last poll of the log began.
        """
        if self._tail.is_current:
            self._heard_until = polled
            return
        at, end = self._asked
        if self._heard_to >= end:
            self._heard_until = max(self._heard_until, at)
            if polled - at > ASK_EVERY:
                self._asked = time.monotonic(), self._log.end(TopicPartition(STATEMENTS, 0))

    def _catch_up(self, goes_on: Callable[[], bool]) -> None:
        statements: list[Record] = []
        while goes_on():
            for tp, records in self._tail.poll():
                if tp.topic == STATEMENTS:
                    statements += records
                else:
                    self._apply_directory(records)
            if self._tail.is_current and self._ledger.has_read_all.is_set():
                break
        with closing(self._address.open()) as log:  # one that stays open asks a broker a hundred times a second
            restored = {_name(record): _decoded(record) for record in scan(log, TopicPartition(LEASES, 0))}
        for name, lease in restored.items():
            self._grants.restore(name, lease, time.monotonic())
        self._hear(statements)
        self._grants.begin(self._log_end())

    def _follow(self) -> bool:
        brought = False
        for tp, records in self._tail.poll():
            if tp.topic == STATEMENTS:
                self._hear(records)
            else:
                self._apply_directory(records)
            brought = True
        return brought

    def _apply_directory(self, records: Sequence[Record]) -> None:
        for record in records:
            kind, _, name = (record.key or b"").decode().partition("/")
            if kind == "org":
                found = _Organization() if record.value is None else _organization(record.value)
                self._quotas[name] = MonthlyQuota(found.monthly_quota, record.offset)

    def _hear(self, records: Sequence[Record]) -> None:
        for record in records:
            statement = None if record.value is None else decode_statement(record.value)
            name = _name(record)
            self._grants.hear(name, statement, time.monotonic())
            if statement is not None and self._grants.members[name].is_strange:
                get_logger().warning("lease.unknown", front_end=name, version=statement.lease)
            self._heard_to = max(self._heard_to, record.offset + 1)

    def _decide(self) -> None:
        with self._ledger.held() as ledger:
            leases = self._grants.decide(self._quotas, ledger, self._log_end, self._heard_until)
        if not leases:
            return
        appends = [
            Append(
                TopicPartition(LEASES, 0),
                [(name.encode(), None if lease is None else encode(lease)) for name, lease in leases.items()],
            )
        ]
        gone = [(name.encode(), None) for name, lease in leases.items() if lease is None]
        if gone:
            appends.append(Append(TopicPartition(STATEMENTS, 0), gone))
            get_logger().info(
                "grantor.front_end_gone", front_ends=[name for name, lease in leases.items() if not lease]
            )
        self._writer.append(appends, self._clock())

    def _log_end(self) -> dict[int, int]:
        return {number: self._log.end(TopicPartition(EVENTS, number)) - 1 for number in self._partitions}


def _name(record: Record) -> str:
    return (record.key or b"").decode()


def _decoded(record: Record) -> Lease | None:
    return None if record.value is None else decode_lease(record.value)
