"""The embedded log behind the front end: the publisher, and the follower that feeds the view and the directory."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from structlog.stdlib import get_logger

from processor.log.committer import Backlogged, GroupCommitter, Job, Outcome
from processor.log.errors import LogUnavailable
from processor.log.store import Log, TopicPartition
from processor.log.topics import DIRECTORY, EVENTS, ROWS
from server.errors import Refused
from server.keys import Directory
from server.publisher import Parts
from server.views import View

POLL: Final = 0.01
"""Seconds between two looks for new records."""

BATCH: Final = 5000

PROBE: Final = 1.0
"""Seconds between two tries while the log is failing."""


class EmbeddedPublisher:
    """`Publisher` over the group commit of this process."""

    def __init__(self, data_dir: Path, clock: Callable[[], int], max_pending_bytes: int) -> None:
        self._log = Log(data_dir, create=False)
        self.partitions = self._log.partitions
        self.identity = self._log.identity
        self.failure: str | None = None
        """Why the log took nothing the last time; None while it takes events."""
        self._data_dir = data_dir
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._tps = [TopicPartition(EVENTS, number) for number in range(self.partitions)]
        self._committer = GroupCommitter(data_dir, clock, self._decided, max_pending_bytes)
        self._committer.start()
        self._prober: asyncio.Task[None] | None = None

    async def publish(self, parts: Parts, size: int) -> dict[int, int]:
        """See `Publisher.publish`."""
        future: asyncio.Future[dict[int, int]] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if future.done():  # the sender has gone
                return
            if isinstance(outcome, LogUnavailable):
                future.set_exception(_refused(f"The log cannot take events now ({outcome})"))
            else:
                future.set_result(outcome)

        try:
            self._committer.submit(Job(parts, size, done))
        except Backlogged:
            raise _refused("Too many events wait for the disk") from None
        return await future

    def _decided(self, decided: Sequence[tuple[Job, Outcome]]) -> None:
        """In the committer's thread: one hop to the loop for all requests of a commit."""
        try:
            self._loop.call_soon_threadsafe(self._deliver, decided)
        except RuntimeError:  # the loop has ended: nobody waits any more
            return

    def _deliver(self, decided: Sequence[tuple[Job, Outcome]]) -> None:
        for job, outcome in decided:
            job.done(outcome)
        last = decided[-1][1]
        if isinstance(last, LogUnavailable):
            if self.failure is None:
                get_logger().error("log.unavailable", error=str(last))
                self._prober = asyncio.create_task(self._probe())
            self.failure = str(last)
        elif self.failure is not None:
            self._recovered()

    def _recovered(self) -> None:
        self.failure = None
        get_logger().info("log.available_again")

    async def _probe(self) -> None:
        """Find out that the log takes writes again, also when nobody sends."""
        while self.failure is not None:
            await asyncio.sleep(PROBE)
            try:
                await asyncio.to_thread(self._write_something)
            except LogUnavailable as error:
                self.failure = str(error)
            else:
                if self.failure is not None:
                    self._recovered()

    def _write_something(self) -> None:
        log = Log(self._data_dir, create=False)
        try:
            log.commit("probe", [(self._tps[0], self._clock())])
        finally:
            log.close()

    def log_end(self) -> dict[int, int]:
        """partition -> last offset of the events topic (-1: none). Reads the file; microseconds."""
        return {tp.partition: self._log.end(tp) - 1 for tp in self._tps}

    def close(self) -> None:
        """Write what is queued and end. Blocks."""
        if self._prober is not None:
            self._prober.cancel()
        self._committer.stop()
        self._log.close()


def _refused(message: str) -> Refused:
    return Refused("unavailable", f"{message}; send the same events again", retry_after=1)


class Follower(threading.Thread):
    """Tails the directory and the tables' changelog into what this process answers from.

    `notify` is called in this thread after each round that brought something.
    """

    def __init__(
        self, data_dir: Path, view: View, directory: Directory, clock: Callable[[], int], notify: Callable[[], None]
    ) -> None:
        super().__init__(name="follower", daemon=True)
        self._log = Log(data_dir, create=False)
        self._view = view
        self._directory = directory
        self._clock = clock
        self._notify = notify
        self._stopping = threading.Event()
        self._positions: dict[TopicPartition, int] = {
            TopicPartition(DIRECTORY, 0): 0,
            **{TopicPartition(ROWS, number): 0 for number in range(self._log.partitions)},
        }
        self.read_all = threading.Event()
        """Set once everything that was there at the start has been read."""

    def run(self) -> None:
        seen = -1
        while not self._stopping.is_set():
            try:
                version = self._log.version()
                at = self._clock()
                if version != seen:
                    if self._round():
                        self._notify()
                    seen = version
                self._view.mark_current(at - at % 1000)
                self.read_all.set()
            except Exception:  # noqa: BLE001 - a view that stands still is seen by /readyz; the next round may go well
                get_logger().exception("follower.failed")
                self._stopping.wait(1)
            self._stopping.wait(POLL)
        self._log.close()

    def _round(self) -> bool:
        """Read on until there is nothing left; a batch of each partition at a time, so that a revoked key
        does not wait for a million rows."""
        brought = False
        while sum(map(self._take, self._positions)) and not self._stopping.is_set():
            brought = True
        return brought

    def _take(self, tp: TopicPartition) -> bool:
        records = self._log.read(tp, self._positions[tp], BATCH)
        if not records:
            return False
        if tp.topic == DIRECTORY:
            for record in records:
                self._directory.apply(record.key, record.value)
        else:
            self._view.apply(tp.partition, [(record.key or b"", record.value) for record in records])
        self._positions[tp] = records[-1].offset + 1
        return True

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        self.join(timeout=5)


class LogHealth:
    """`Health`: can events be made durable, and does the worker get on with them?"""

    def __init__(
        self,
        publisher: EmbeddedPublisher,
        view: View,
        max_lag: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._publisher = publisher
        self._view = view
        self._max_lag = max_lag
        self._monotonic = monotonic
        self._at_start: Mapping[int, int] = publisher.log_end()
        self._caught_up = False
        self._moved_at = monotonic()
        self._seen: dict[int, int] = {}

    @property
    def caught_up(self) -> bool:
        """True once the view contains all that was in the log when this process started."""
        self._caught_up = self._caught_up or self._view.contains(self._at_start)
        return self._caught_up

    def unready(self) -> Sequence[str]:
        """See `Health.unready`. To be called often enough to notice a standstill: by the probes, or once a second."""
        reasons = []
        if self._publisher.failure is not None:
            reasons.append(f"the log cannot take events: {self._publisher.failure}")
        if not self.caught_up:
            reasons.append("the tables have not caught up with the log yet")
        still = self._standstill()
        if still > self._max_lag:
            reasons.append(f"the worker has made no progress for {still:.0f} s with events waiting")
        return reasons

    def _standstill(self) -> float:
        """Seconds without progress while events wait."""
        now = self._monotonic()
        position = dict(self._view.position)
        if position != self._seen or self._view.contains(self._publisher.log_end()):
            self._seen = position
            self._moved_at = now
        return now - self._moved_at
