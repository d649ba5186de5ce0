"""An API process's side of the leases: what it holds, and the statements of what it needs."""

import asyncio
import secrets
import time
from collections.abc import Callable
from threading import Lock
from typing import Final, Protocol

from processor.leases.lease_messages import FRESH, GAP, Account, Lease, Need, Statement, decode_lease, encode
from processor.log.address import LogAddress
from processor.log.errors import LogError, LogUnavailable
from processor.log.port import LogWriter
from processor.log.records import Append, TopicPartition
from processor.log.topics import STATEMENTS
from processor.log.under_way import ArrivalsUnderWay
from processor.structured_log import get_logger

BEAT: Final = 1.0
"""Most seconds between two statements."""

SPACING: Final = 0.04
"""Least seconds between two statements."""


class LeaseHoldings:
    """The caps of this process's lease. The follower's thread writes, the event loop reads."""

    def __init__(self) -> None:
        self.instance = secrets.token_hex(4)
        """The name of this process among API processes, a new one after each start."""
        self._lock = Lock()
        self._lease = Lease(0, 0, [])
        self._caps: dict[Account, int] = {}
        self._stated = -1e9
        self._answer_to = 0
        """Leases that do not take this statement into account do not count."""
        self.is_asked = False
        """Whether a new grantor waits for a statement that confirms its lease; it grants nothing before that."""

    def drop(self) -> None:
        """Use no lease until there is another one: the topic has lost some."""
        with self._lock:
            self._caps = {}

    def apply(self, name: bytes | None, value: bytes | None) -> None:
        """Apply one record of the leases. One older than the newest known is ignored: it is read again where the topic
        has lost its end, and what it granted may belong to another process by now."""
        if (name or b"").decode() != self.instance:
            return
        lease = None if value is None else decode_lease(value)
        with self._lock:
            if lease is None or lease.answers < self._answer_to:
                self._caps = {}
            elif lease.version > self._lease.version:
                if lease.version >= self._lease.version + GAP:
                    self.is_asked = True
                self._caps, self._lease = {cap.account: cap.cap for cap in lease.caps}, lease

    @property
    def version(self) -> int:
        """The version of the lease in use."""
        return self._lease.version

    @property
    def answers(self) -> int:
        """The number of the last statement that the lease takes into account."""
        return self._lease.answers

    def cap(self, account: Account) -> int:
        """Return how many unique events this process may be charged with, since its start."""
        return self._caps.get(account, 0)

    def stated(self, number: int, began: float) -> None:
        """Note that a statement that was begun at `began` (monotonic seconds) is durable.

        If the one before is too long ago, the lease may have been granted to others meanwhile: no lease counts until
        there is one that takes this statement into account.
        """
        with self._lock:
            if not self.is_fresh:
                self._answer_to, self._caps = number, {}
            self._stated = began

    @property
    def is_fresh(self) -> bool:
        """False if the grantor may soon count this process as gone and grant its lease to others."""
        return time.monotonic() - self._stated < FRESH

    def check(self) -> None:
        """Raise `LogUnavailable` if the lease has expired; called right before events are written."""
        if not self.is_fresh:
            raise LogUnavailable("this process could not renew its lease")


class Speaker(Protocol):
    """Knows what this process needs."""

    def needs(self) -> list[Need]:
        """Return what is needed now, for every account with events on their way or waiting."""
        ...

    def directory(self) -> int:
        """Return `Statement.directory`."""
        ...


class LeaseStatements:
    """Writes statements: one a second, and at once when `wake` is called."""

    def __init__(self, address: LogAddress, book: LeaseHoldings, clock: Callable[[], int]) -> None:
        self._address = address
        self._book = book
        self._clock = clock
        self._wake = asyncio.Event()
        self._log: LogWriter | None = None
        self._number = 0
        self._directory = -1
        self.speaker: Speaker | None = None
        self.under_way: ArrivalsUnderWay | None = None
        """What this process stamps; None: it stamps nothing yet."""

    @property
    def number(self) -> int:
        """The number of the last statement that was begun."""
        return self._number

    def wake(self) -> None:
        """Make a statement now."""
        self._wake.set()

    async def run(self) -> None:
        """Make statements, for ever."""
        while True:
            self._wake.clear()
            await self.state()
            await asyncio.sleep(SPACING)
            try:
                async with asyncio.timeout(BEAT - SPACING):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def state(self, *, leaving: bool = False) -> bool:
        """Make one statement durable; return False if the log refused it."""
        began = time.monotonic()
        self._number += 1
        speaker = self.speaker
        # The version first: what is admitted from here on uses this lease or a later one.
        self._book.is_asked = False
        version = self._book.version
        needs: list[Need] = []
        if speaker is not None:
            self._directory, needs = speaker.directory(), speaker.needs()
        statement = Statement(self._number, self._directory, version, needs, leaving, self._arrived())
        try:
            await asyncio.to_thread(self._append, encode(statement))
        except LogError as error:
            get_logger().warning("leases.not_stated", error=str(error))
            return False
        self._book.stated(statement.number, began)
        return True

    def _arrived(self) -> int:
        at = self._clock()  # the time first: whatever is stamped after the look has at least this one
        first = 0 if self.under_way is None else self.under_way.shown
        return min(at, first) if first else at

    def _append(self, value: bytes) -> None:
        if self._log is None:
            self._log = self._address.open()
        record = (self._book.instance.encode(), value)
        self._log.append([Append(TopicPartition(STATEMENTS, 0), [record])], self._clock())

    async def leave(self) -> None:
        """Make the last statement, when all that was written is in the log."""
        self.speaker = None
        await self.state(leaving=True)
        if self._log is not None:
            await asyncio.to_thread(self._log.close)
