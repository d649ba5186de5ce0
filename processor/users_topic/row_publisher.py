"""On Kafka: publish the users' rows, summed over all partitions of the changelog, to the topic `spendstream.users`.

The worker that owns partition k of the events also owns partition k of the users, whatever partitions their events are
in. It fences the earlier publisher of the partition, reads the changelog up to the end it has then, reads the partition
of the topic back and publishes every row that differs; from then on it publishes what changes. So after any crash no
row is missing, none goes back to an older value (each owner has read at least what the one before had), and a fenced
publisher cannot write. The rows follow from the changelog alone; no other state is kept.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import xxhash

from processor import restart
from processor.leases.followed_ledger import FollowedLedger
from processor.log.address import LogAddress
from processor.log.errors import LogBroken, LogError, LogUnavailable
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.tail import KafkaTail
from processor.log.kafka.writer import Fenced, PartitionWriter
from processor.log.port import LogReader, scan
from processor.log.records import Append, TopicPartition
from processor.log.topics import GROUP, ROWS, USERS
from processor.structured_log import get_logger
from processor.users_topic.changelog_reader import ChangelogReader
from processor.users_topic.merged_rows import MergedRows, Row

INTERVAL: Final = 1.0
"""Least seconds between two publications."""

SHARE: Final = 4
"""Publishing takes at most one in so many seconds: the worker has other things to do."""

BATCH: Final = 5000
"""Rows in one transaction."""

THREADS: Final = 8
"""Transactions at the same time."""

PAUSE: Final = 1.0
"""Seconds after a failure until the next try."""

FENCED_PAUSE: Final = 5.0
"""Seconds after which a partition is taken over again from which this process was fenced: long enough for a process
that was suspended to learn that it no longer owns it."""

EXIT_BROKEN: Final = 70

CHECK_EVERY: Final = 5.0
"""Seconds between two checks that all that was published still exists."""

FINISH_PATIENCE: Final = 2.0
REPORT_EVERY: Final = 60.0
SLOW: Final = 10.0
"""Seconds of delay from the changelog to the topic that are logged as a warning."""


class _Held:
    """A partition of the topic that this process may publish to."""

    def __init__(self, number: int, name: str, writer: PartitionWriter, until: dict[TopicPartition, int]) -> None:
        """`name` is the topic's on the cluster."""
        self.number = number
        self._name = name
        self.until = until
        """The ends of the changelog once the earlier publisher was fenced."""
        self.is_ready = False
        """True once the topic's partition agrees with the changelog."""
        self._writer = writer
        self._to = TopicPartition(USERS, number)
        self._first: int | None = None
        """The first offset of the topic's partition when it was read back or checked last."""
        self._end = 0
        """The offset after the last record that is known to have existed."""

    def publish(self, rows: list[Row], at: int) -> None:
        """Append rows; durable on return. Raises `Fenced`, and `LogUnavailable`, also where the topic lost its end."""
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            [first] = self._writer.append([Append(self._to, batch)], at)
            if first < self._end:
                raise LogUnavailable(
                    f"{self._name} {self.number} has lost its end: it assigned the offset {first} again"
                )
            self._end = first + len(batch)

    def check(self, log: LogReader) -> None:
        """Raise `LogUnavailable` if the topic lost something since it was read back or checked last."""
        first, end = log.first(self._to), log.end(self._to)
        before = first if self._first is None else self._first
        if end < self._end or first > before:
            raise LogUnavailable(
                f"{self._name} {self.number} has lost records: it has those from {first} to {end}, and had some from "
                f"{before} to {self._end}"
            )
        self._first, self._end = first, end


class UsersTopicPublisher(threading.Thread):
    """Publishes the users' rows to the partitions that `owned` returns, which it asks in every round."""

    def __init__(
        self,
        address: LogAddress,
        partitions: int,
        owned: Callable[[], Collection[int]],
        clock: Callable[[], int],
        ledger: FollowedLedger,
    ) -> None:
        """`ledger` gets what this thread reads of the changelog, too."""
        super().__init__(name="users", daemon=True)
        assert address.kafka is not None
        self._access: KafkaAccess = address.kafka
        self._address = address
        self._partitions = partitions
        self._owned = owned
        self._clock = clock
        self._feed = MergedRows(partitions)
        self._reader = ChangelogReader(self._feed, ledger)
        self._held: dict[int, _Held] = {}
        self._lost: dict[int, float] = {}
        """Partition from which this process was fenced -> when it may be taken over again (monotonic seconds)."""
        self._threads = ThreadPoolExecutor(THREADS, "users-writer")
        self._stopping = threading.Event()
        self._due = 0.0
        self._check_due = 0.0
        self._report = PublishingReport()

    # --- life -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        tail: KafkaTail | None = None
        while not self._stopping.is_set():
            try:
                if tail is None:
                    tail = self._open()
                self._round(tail)
            except LogBroken as error:
                get_logger().critical("users.broken", error=str(error))
                restart.end(EXIT_BROKEN)
            except Exception as error:  # noqa: BLE001 - whatever it is, what has been published is checked again
                get_logger().warning("users.failed", error=str(error) or repr(error), exc_info=not _is_passing(error))
                self._held.clear()
                self._stopping.wait(PAUSE)
        if tail is not None:
            self._finish(tail)
            tail.close()
        self._held.clear()
        self._threads.shutdown()

    def finish(self) -> None:
        """Publish what is in the changelog by now, for up to `FINISH_PATIENCE` seconds, and end. Blocks."""
        self._stopping.set()
        if self.is_alive():
            self.join(2 * FINISH_PATIENCE)

    def _open(self) -> KafkaTail:
        return KafkaTail(self._access, {TopicPartition(ROWS, number): 0 for number in range(self._partitions)})

    def _round(self, tail: KafkaTail) -> None:
        self._reader.read(tail)
        now = time.monotonic()
        if now < self._due:
            return
        owned = set(self._owned())
        for number in self._held.keys() - owned:
            del self._held[number]
        self._publish(tail)
        took = time.monotonic() - now
        fresh = [number for number in sorted(owned - self._held.keys()) if now >= self._lost.get(number, now)]
        if fresh:
            self._take_over(fresh, tail)
        self._reader.apply()
        coming = [
            held
            for held in self._held.values()
            if not held.is_ready and all(tail.reached[tp] >= end for tp, end in held.until.items())
        ]
        self._make_ready(coming, tail)
        self._due = now + max(INTERVAL, SHARE * took)
        if now >= self._check_due:
            self._check_due = now + CHECK_EVERY
            self._check()
        self._report.tell(now, lambda: self._behind(tail))

    def _finish(self, tail: KafkaTail) -> None:
        deadline = time.monotonic() + FINISH_PATIENCE
        try:
            ends = tail.ends(FINISH_PATIENCE / 2)
            while time.monotonic() < deadline and any(tail.reached[tp] < end for tp, end in ends.items()):
                self._reader.read(tail)
            self._publish(tail)
        except Exception as error:  # noqa: BLE001 - the next owner publishes what is missing
            get_logger().warning("users.unfinished", error=str(error) or repr(error))

    def _behind(self, tail: KafkaTail) -> int:
        """Return how many records of the changelog have not been read, approximately."""
        return sum(max(0, end - tail.reached[tp]) for tp, end in tail.ends().items())

    # --- publishing -------------------------------------------------------------------------------------------------

    def _publish(self, tail: KafkaTail) -> None:
        """Publish what has changed since the last time."""
        ready = [held for held in self._held.values() if held.is_ready]
        changed = self._feed.drain([held.number for held in ready])
        oldest, self._reader.oldest = self._reader.oldest, None
        if not changed:
            return
        at = self._clock()
        having = [held for held in ready if held.number in changed]
        sent = [(held, self._threads.submit(held.publish, changed[held.number], at)) for held in having]
        for held, future in sent:
            self._unless_fenced(held, future, tail)
        self._report.count(sum(map(len, changed.values())), self._clock() - (oldest or at))

    def _take_over(self, numbers: Collection[int], tail: KafkaTail) -> None:
        """Become the only publisher of these partitions, then look up the ends of the changelog."""
        writers = [self._threads.submit(self._fence, number) for number in numbers]
        taken = {number: self._reader.wait(each, tail) for number, each in zip(numbers, writers, strict=True)}
        ends = tail.ends()
        name = self._access.wire(USERS)
        self._held |= {number: _Held(number, name, writer, ends) for number, writer in taken.items()}

    def _fence(self, number: int) -> PartitionWriter:
        return PartitionWriter(self._access, f"{GROUP}.users.{number}")

    def _make_ready(self, coming: Sequence[_Held], tail: KafkaTail) -> None:
        """Publish every row in which the topic differs from the changelog, as far as it was applied."""
        read = [self._threads.submit(self._read_back, held) for held in coming]
        for held, each in zip(coming, read, strict=True):
            self._put_right(held, self._reader.wait(each, tail), tail)

    def _put_right(self, held: _Held, there: dict[bytes, bytes], tail: KafkaTail) -> None:
        began = time.monotonic()
        known = len(there)
        different = 0
        sent: Future[None] | None = None
        for rows in self._differences(held.number, there, tail):  # the next part is made while one is written
            different += len(rows)
            if sent is not None and not self._unless_fenced(held, sent, tail):
                return
            sent = self._threads.submit(held.publish, rows, self._clock())
        if sent is not None and not self._unless_fenced(held, sent, tail):
            return
        held.is_ready = True
        get_logger().info(
            "users.taken_over",
            partition=held.number,
            rows=known,
            different=different,
            seconds=round(time.monotonic() - began, 2),
        )

    def _read_back(self, held: _Held) -> dict[bytes, bytes]:
        """Return key -> hash of the row, for all rows in a partition of the topic."""
        there: dict[bytes, bytes] = {}
        log = self._address.open()
        try:
            held.check(log)
            for record in scan(log, TopicPartition(USERS, held.number)):
                if record.key is not None and record.value is not None:
                    there[record.key] = xxhash.xxh3_128_digest(record.value)
                elif record.key is not None:
                    there.pop(record.key, None)
        finally:
            log.close()
        return there

    def _differences(self, number: int, there: dict[bytes, bytes], tail: KafkaTail) -> Iterator[list[Row]]:
        """Yield the rows to publish, in parts; empties `there`."""
        for rows in self._feed.everything(number):
            self._reader.look(tail)
            different = []
            for key, value in rows:
                found = there.pop(key, None)
                if found != (None if value is None else xxhash.xxh3_128_digest(value)):
                    different.append((key, value))
            if different:
                yield different
        if there:  # users that the changelog does not know
            yield [(key, None) for key in there]

    def _check(self) -> None:
        """Raise `LogUnavailable` if something that was published is gone: then `run` takes everything over anew.

        A broker that stopped without a flush may come back with less, and no row need change after that.
        """
        ready = [held for held in self._held.values() if held.is_ready]
        if ready:
            log = self._address.open()
            try:
                for held in ready:
                    held.check(log)
            finally:
                log.close()

    def _unless_fenced(self, held: _Held, published: "Future[None]", tail: KafkaTail) -> bool:
        try:
            self._reader.wait(published, tail)
        except Fenced as error:
            get_logger().warning("users.fenced", partition=held.number, error=str(error))
            self._held.pop(held.number, None)
            self._lost[held.number] = time.monotonic() + FENCED_PAUSE
            return False
        return True


class PublishingReport:
    """What the program's log says of the publishing, every `REPORT_EVERY` seconds."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()
        self._rows = 0
        self._slowest = 0

    def count(self, rows: int, micros: int) -> None:
        """Count rows that were published; the oldest change was `micros` old by then."""
        self._rows += rows
        self._slowest = max(self._slowest, micros)
        if micros > SLOW * 1_000_000:
            get_logger().warning("users.slow", rows=rows, lag=round(micros / 1e6, 1))

    def tell(self, now: float, behind: Callable[[], int]) -> None:
        """Log the lag, if it is time and rows were published."""
        if now - self._told_at < REPORT_EVERY:
            return
        self._told_at = now
        if self._rows:
            get_logger().info("users.published", rows=self._rows, lag=round(self._slowest / 1e6, 2), behind=behind())
        self._rows, self._slowest = 0, 0


def _is_passing(error: Exception) -> bool:
    return isinstance(error, LogError)
