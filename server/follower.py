"""What keeps a front end's picture of the log up to date: the follower thread, and the verdict whether it is."""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from structlog.stdlib import get_logger

from processor.core.tables import table_rows
from processor.core.tables.row_block import RowBlock
from processor.log.address import LogAddress
from processor.log.embedded.newest import FOLD, Kept, collector_off
from processor.log.errors import DamagedRecord, LogBroken
from processor.log.losses import Lost
from processor.log.records import Record, TopicPartition
from processor.log.tail import Tail
from processor.log.topics import DIRECTORY, LEASES, ROWS
from processor.view.changes import Change
from server.keys import Directory
from server.leases import LeaseBook
from server.log_publisher import LogPublisher
from server.trust import Trust, always
from server.views import View

HOME: Final = TopicPartition(DIRECTORY, 0)

FEW: Final = 1000
"""Records of one round of reading that say that its end is near."""

LOOK: Final = 0.05
"""Seconds between two looks at the directory: a key's end is to be known within one, and each look takes the GIL from
the event loop seven times."""

EXIT_BROKEN: Final = 70

SHORT: Final = 2.0
"""Seconds for which events may be missing from the tables before that is said to be so."""

COUNT_EVERY: Final = 1.0
"""Seconds between two counts of them."""
HEALING: Final = 5.0
"""Seconds in which a worker that is just starting has made a damaged record anew, or is about to."""
EXIT_DAMAGED: Final = 75
"""EX_TEMPFAIL of sysexits.h: rows are damaged, and a start of the worker would make them anew."""

PAUSE: Final = 1.0
"""Seconds after a failure until the next try."""


class _Following(threading.Thread):
    """A thread that does `_round` again and again, whatever happens in one."""

    def __init__(self, name: str, tail: Tail) -> None:
        super().__init__(name=name, daemon=True)
        self._tail = tail
        self._stopping = threading.Event()
        self.read_all = threading.Event()
        """Set once everything that was there at the start has been read."""
        self.damage: DamagedRecord | None = None
        """The record that cannot be read, and so nothing after it."""

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._round()
                if self.damage is not None and self._tail.is_current:
                    self.damage = None
            except LogBroken as error:  # what is known here may not be in the log any more
                get_logger().critical("follower.broken", error=str(error))
                os._exit(EXIT_BROKEN)
            except DamagedRecord as error:
                if self.damage is None:
                    get_logger().critical("record.damaged", error=str(error))
                self.damage = error
                self._stopping.wait(PAUSE)
            except Exception:  # noqa: BLE001 - what stands still is seen by /readyz; the next round may go well
                get_logger().exception("follower.failed")
                self._stopping.wait(PAUSE)
        self._tail.close()

    def _round(self) -> None:
        raise NotImplementedError

    heals = False
    """Whether somebody else is about to make a damaged record anew."""

    def wait_read_all(self) -> None:
        """Block until everything that was there at the start has been read. Raises `DamagedRecord`.

        Where a start of the worker makes the record anew, and does not within `HEALING`, ends the process: a worker
        that runs reads none of its rows, and its supervisor has to start it anew.
        """
        since: float | None = None
        while not self.read_all.wait(PAUSE / 2):
            if self.damage is None:
                since = None
            elif not self.heals:
                raise self.damage
            elif since is None:
                since = time.monotonic()
            elif time.monotonic() - since > HEALING:
                get_logger().critical("api.waits_for_repair", error=str(self.damage))
                os._exit(EXIT_DAMAGED)

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        self.join(timeout=5)


class DirectoryFollower(_Following):
    """Tails the directory. A thread of its own: a revoked key does not wait for any number of rows."""

    def __init__(self, address: LogAddress, directory: Directory) -> None:
        super().__init__("directory", address.tail([HOME], LOOK))
        self._directory = directory
        self.known_at = float("-inf")
        """Until when (`time.monotonic`) the directory is known: see `Tail.known_at`."""
        self.end = -1
        """The last offset that was taken in."""

    def _round(self) -> None:
        for _, records in self._tail.poll():
            for record in records:
                self._directory.apply(record.key, record.value, record.offset)
                self.end = record.offset
        self.known_at = self._tail.known_at(HOME)
        if self.known_at > float("-inf"):
            self.read_all.set()


class LeaseFollower(_Following):
    """Tails the leases of quotas. `notify` is called in this thread when there is a new one for this process."""

    def __init__(self, address: LogAddress, book: LeaseBook, notify: Callable[[], None]) -> None:
        super().__init__("leases", address.tail([TopicPartition(LEASES, 0)]))
        self._book = book
        self._notify = notify

    def _round(self) -> None:
        version = self._book.version
        for _, records in self._tail.poll():
            for record in records:
                self._book.apply(record.key, record.value)
        if self._book.version != version:
            self._notify()
        if self._tail.is_current:
            self.read_all.set()


class Follower(_Following):
    """Tails the tables' changelog into what this process answers from.

    `notify` is called in this thread after each round that brought something.
    """

    def __init__(
        self,
        address: LogAddress,
        partitions: int,
        view: View,
        clock: Callable[[], int],
        notify: Callable[[], None],
    ) -> None:
        super().__init__("follower", address.tail([TopicPartition(ROWS, number) for number in range(partitions)]))
        self.heals = address.kafka is None  # by a start of the worker
        self._view = view
        self._clock = clock
        self._notify = notify
        self._has_begun = False
        self._kept = {number: Kept(number) for number in range(partitions)}
        """By partition, what was read at the start and is not in the view yet."""
        self._held: dict[int, Change] = {}
        """By partition, progress that the view does not say to have made yet."""

    def _round(self) -> None:
        if self.read_all.is_set():
            self._follow()
        else:
            self._catch_up()

    def _catch_up(self) -> None:
        """At the start most of the changelog is long replaced: only the newest record of each row is applied."""
        at = self._clock()
        brought = 0
        if not self._has_begun:
            self._has_begun = True
            if not self._take_newest():
                return
        for tp, records in self._tail.poll():
            self._kept[tp.partition].add(records)
            brought += len(records)
            if self._stopping.is_set():
                return
            if sum(map(len, self._kept.values())) >= FOLD:
                self._apply_kept()
        is_current = self._tail.is_current
        if brought < FEW or is_current:
            self._apply_kept()
        if is_current:
            self._view.tidy()
            self._view.mark_current(at - at % 1000)
            self.read_all.set()

    def _take_newest(self) -> bool:
        """Apply what there is now; False if we are to end."""
        with collector_off():
            for tp, found in self._tail.newest():
                if found.keys:
                    self._view.take(tp.partition, RowBlock(found.keys, found.hashes, found.values))
                self._kept[tp.partition].add(Record(row.offset, 0, row.key, row.value) for row in found.others)
                if self._stopping.is_set():
                    return False
        return True

    def _apply_kept(self) -> None:
        for partition, kept in self._kept.items():
            if kept:
                self._view.apply(partition, [(record.key or b"", record.value) for record in kept.take()])
        self._notify()

    def _follow(self) -> None:
        at = self._clock()
        brought = False
        for tp, records in self._tail.poll():
            self._take(tp, records)
            self._view.tidy()  # a backlog may keep this round going for long
            brought = True
            if self._stopping.is_set():
                return
        self._say_held()
        if brought:
            self._notify()
        self._view.tidy()
        if self._tail.is_current:
            self._view.mark_current(at - at % 1000)

    def _take(self, tp: TopicPartition, records: Sequence[Record]) -> None:
        """Apply rows first, and how far they go only when all is there that they may have been replaced by: a row that
        was compacted while this process stood still would be missing from what the view says to contain."""
        number = tp.partition
        progress = table_rows.encode_key(number, "progress")
        changes: list[Change] = []
        for record in records:
            if record.key == progress:
                self._held[number] = (progress, record.value)
            else:
                changes.append((record.key or b"", record.value))
        if number in self._held and not self._tail.has_more(tp):
            changes.append(self._held.pop(number))
        self._view.apply(number, changes)

    def _say_held(self) -> None:
        for number, progress in self._held.items():
            self._view.apply(number, [progress])
        self._held.clear()


class LogHealth:
    """`Health`: can events be made durable, and does the worker get on with them?"""

    def __init__(
        self,
        publisher: LogPublisher,
        view: View,
        max_lag: float,
        monotonic: Callable[[], float],
        trust: Trust | None = None,
        damage: Callable[[], DamagedRecord | None] = lambda: None,
        lost: Callable[[], Sequence[Lost]] = list,
    ) -> None:
        """`damage` says which record of the tables or the directory cannot be read, if there is one; `lost`, what is
        gone from the log."""
        self._damage = damage
        self._lost = lost
        self._trust = trust or always()
        self._publisher = publisher
        self._view = view
        self._max_lag = max_lag
        self._monotonic = monotonic
        self._at_start: Mapping[int, int] = publisher.log_end()
        self._caught_up = False
        self._moved_at = monotonic()
        self._seen: dict[int, int] = {}
        self._short_since: float | None = None
        self._shortfall = 0
        self._counted_at: float | None = None

    @property
    def caught_up(self) -> bool:
        """True once the view contains all that was in the log when this process started, and no rows are missing."""
        if not self._caught_up:
            self._caught_up = self._view.contains(self._at_start) and not self._find_shortfall()
        return self._caught_up

    def unready(self) -> Sequence[str]:
        """See `Health.unready`. To be called often enough to notice a standstill: by the probes, or once a second."""
        reasons = []
        if self._publisher.failure is not None:
            reasons.append(f"the log cannot take events: {self._publisher.failure}")
        damage = self._damage()
        if damage is not None:
            reasons.append(f"the log cannot be read on: {damage}")
        if not self.caught_up:
            reasons.append("the tables have not caught up with the log yet")
        if not self._trust.is_fresh:
            reasons.append("the keys known here may be out of date")
        missing = self._missing()
        if missing:
            reasons.append(
                f"rows are missing in the changelog: {missing} events that were counted are not shown. A worker that "
                "is started computes the rows anew"
            )
        still = self._standstill()
        if still > self._max_lag:
            reasons.append(f"the worker has made no progress for {still:.0f} s with events waiting")
        return reasons

    def _missing(self) -> int:
        """Events that the tables have lacked for a while: half a flush may be on its way here."""
        shortfall = self._find_shortfall()
        if shortfall is None:
            return 0
        if shortfall == 0:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = self._monotonic()
        lasted = 0.0 if self._short_since is None else self._monotonic() - self._short_since
        return shortfall if lasted > SHORT else 0

    def _find_shortfall(self) -> int | None:
        """`View.shortfall`, which adds up all projects, at most once in `COUNT_EVERY`, however often that is asked."""
        now = self._monotonic()
        if self._counted_at is None or now - self._counted_at >= COUNT_EVERY:
            found = self._view.shortfall()
            if found is None:  # asked again next time: that costs nothing
                return None
            self._shortfall, self._counted_at = found, now
        return self._shortfall

    def warnings(self) -> Sequence[str]:
        """See `Health.warnings`."""
        return [each.text for each in self._lost()]

    def _standstill(self) -> float:
        """Seconds without progress while events wait."""
        now = self._monotonic()
        position = dict(self._view.position)
        if position != self._seen or self._view.contains(self._publisher.log_end()):
            self._seen = position
            self._moved_at = now
        return now - self._moved_at
