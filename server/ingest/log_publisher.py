"""The log behind the API process: group commit on a thread, and what becomes of it while the log takes nothing."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from processor.core.tables.history import ACKNOWLEDGED, Loss
from processor.core.tables.table_rows import NEVER
from processor.log import losses
from processor.log.address import LogAddress
from processor.log.errors import LogError, LogUnavailable
from processor.log.records import TopicPartition
from processor.log.topics import EVENTS
from processor.structured_log import get_logger
from server.errors import Refused
from server.ingest.acknowledged import Acknowledged
from server.ingest.group_commit import GroupCommitter, Job, Written
from server.ingest.publisher import Done, NotPublished, Parts

PROBE: Final = 1.0
"""Seconds between two tries while the log is failing."""


class LogPublisher:
    """`Publisher` over the group commit of this process."""

    def __init__(
        self,
        address: LogAddress,
        clock: Callable[[], int],
        max_waiting_bytes: int,
        guard: Callable[[], None] = lambda: None,
        contained: Callable[[], Mapping[int, int]] = dict,
        settled: Callable[[], Mapping[int, int]] = dict,
        marks: Path | None = None,
    ) -> None:
        """`contained`: partition -> the last offset that the tables contain, as far as this process knows; `settled`:
        the same, but it may wait to know all that is in the changelog. `marks`: a file for what was acknowledged
        (`server.ingest.acknowledged`).

        An append at an offset up to one of these means that the log has lost its end: no table will ever contain what
        stands there, so it is not acknowledged. Nor is what comes after it, until the partition's owner has filled up
        what is missing (`processor.state.recovery`).
        """
        log = address.open()
        self.partitions = log.partitions
        self.identity = log.identity
        self.failure: str | None = None
        """Why the log took nothing the last time; None while it takes events."""
        if address.kafka is None:
            try:
                log.probe(clock())
            except LogUnavailable as error:  # a disk that is full when we start: reads are answered all the same
                self.failure = str(error)
        log.close()
        self._address = address
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._ends = address.ends([TopicPartition(EVENTS, number) for number in range(self.partitions)])
        self._guard = guard
        self._contained = contained
        self._settled = settled
        self._before: Mapping[int, int] = {}
        """What the tables contained when the append under way began."""
        self._used: dict[int, int] = {}
        """partition -> an offset that was used when the append under way began. Of the committer."""
        self._acknowledged = Acknowledged(marks, self.identity, self.partitions)
        """Changed by the committer."""
        self._fails_fast = address.kafka is not None
        """On Kafka a try takes seconds while the broker is away: the prober's alone are enough."""
        self._committer = GroupCommitter(
            address.open, clock, self._decided, self._begin, fails_together=self._fails_fast
        )
        self._committer.start()
        self._submitted: deque[Job] = deque()
        """What this turn of the loop has brought."""
        self._max_waiting = max_waiting_bytes
        self._waiting_bytes = 0
        """Of what was submitted and has no outcome yet."""
        self._prober: asyncio.Task[None] | None = None
        if self.failure is not None:
            self._begin_failing()

    def submit(self, parts: Parts, size: int, done: Done) -> None:
        """See `Publisher.submit`."""
        if self._fails_fast and self.failure is not None:
            raise NotPublished(_cannot_take(self.failure).message)

        if self._waiting_bytes and self._waiting_bytes + size > self._max_waiting:
            raise NotPublished(_refused("Too many events wait for the disk").message)
        if not self._submitted:
            self._loop.call_soon(self._hand_over)
        self._submitted.append(Job(parts, size, done))
        self._waiting_bytes += size

    def _hand_over(self) -> None:
        """The turn of the loop is over: all that it brought is one commit."""
        self._committer.submit(self._submitted)

    def _begin(self) -> None:
        """In the committer's thread, right before an append. Raises `LogUnavailable` to keep it from being begun."""
        self._guard()
        contained = self._before = self._contained()  # before: the worker may be quicker than the answer
        self._used = {
            partition: max(contained.get(partition, NEVER), self._acknowledged[partition])
            for partition in range(self.partitions)
        }

    def _decided(self, decided: Sequence[tuple[Job, Written]]) -> None:
        """In the committer's thread: one hop to the loop for all requests of a commit."""
        lost = self._cut_off(decided)
        if lost is not None:
            decided = [(job, lost) for job, _ in decided]
        try:
            self._loop.call_soon_threadsafe(self._deliver, decided)
        except RuntimeError:  # the loop has ended: nobody waits any more
            return

    def _cut_off(self, decided: Sequence[tuple[Job, Written]]) -> LogUnavailable | None:
        """Why nothing of a commit may be acknowledged: the log gave offsets that were used before."""
        given: dict[int, int] = {}
        for _, outcome in decided:
            if isinstance(outcome, dict):
                for partition, offset in outcome.items():
                    given[partition] = max(offset, given.get(partition, NEVER))
        if any(offset < 0 for offset in given.values()):  # librdkafka: it is there, nobody knows where
            return LogUnavailable("the broker did not say where it put the events")
        again = {partition: offset for partition, offset in given.items() if offset <= self._used[partition]}
        if again:
            return self._lost_end(again)
        self._acknowledged.advance(given)
        return None

    def _lost_end(self, again: Mapping[int, int]) -> LogUnavailable:
        """Report what is lost where the log has given offsets again (partition -> offset), and say so."""
        for partition, offset in again.items():
            if offset <= self._acknowledged[partition]:
                self._report_lost(partition, offset, self._before)  # by now they may contain what took its place
        where = ", ".join(f"partition {partition} at {offset}" for partition, offset in sorted(again.items()))
        return LogUnavailable(f"it has lost its end ({where}), which has to be filled up first")

    def check_acknowledged(self) -> None:
        """Report what a life of this process before this one acknowledged, and the log does not have. Blocks.

        To be called once the tables are known, before the first event is published.
        """
        for partition, last in self._ends().items():
            if last < self._acknowledged[partition]:
                self._report_lost(partition, last + 1, self._settled())

    def _report_lost(self, partition: int, offset: int, contained: Mapping[int, int]) -> None:
        """What was acknowledged from `offset` on is gone, and not in the tables as they were known before, `contained`:
        rather one too many is reported than one too few. Blocks."""
        start, end = max(offset, contained.get(partition, NEVER) + 1), self._acknowledged[partition] + 1
        self._acknowledged.forget(partition)  # nobody has to wait for what is gone
        if start >= end:
            return
        loss = Loss(start, end, counted=False, reason="acknowledged, and then lost by the log", topic=ACKNOWLEDGED)
        get_logger().error("events.lost", topic=ACKNOWLEDGED, partition=partition, first=start, last=end - 1)
        try:
            log = self._address.open()
            try:
                losses.report(log, partition, [loss], self._clock())
            finally:
                log.close()
        except LogError as error:
            get_logger().error("events.lost_unreported", partition=partition, error=str(error))

    def _deliver(self, decided: Sequence[tuple[Job, Written]]) -> None:
        for job, outcome in decided:
            self._waiting_bytes -= job.size
            try:
                job.done(_cannot_take(outcome) if isinstance(outcome, LogUnavailable) else outcome)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others get their outcomes
                self._loop.call_exception_handler({"message": "A batch's outcome was not taken", "exception": error})
        last = decided[-1][1]
        if isinstance(last, LogUnavailable):
            before, self.failure = self.failure, str(last)
            if before is None:
                self._begin_failing()
        elif self.failure is not None:
            self._recovered()

    def _begin_failing(self) -> None:
        get_logger().error("log.unavailable", error=self.failure)
        self._prober = asyncio.create_task(self._probe())

    def _recovered(self) -> None:
        self.failure = None
        get_logger().info("log.available_again")

    async def _probe(self) -> None:
        """Find out that the log takes writes again, also when nobody sends."""
        while self.failure is not None:
            await asyncio.sleep(PROBE)
            try:
                await asyncio.to_thread(self._try)
            except Exception as error:  # noqa: BLE001 - whatever it is, without another try nothing would be taken again
                self.failure = str(error) or repr(error)
            else:
                if self.failure is not None:
                    self._recovered()

    def _try(self) -> None:
        log = self._address.open()
        try:
            log.probe(self._clock())
        finally:
            log.close()

    def log_end(self) -> dict[int, int]:
        """partition -> last offset of the events topic (-1: none), at least of all that this process had acknowledged.

        Microseconds.
        """
        return {partition: max(end, self._acknowledged[partition]) for partition, end in self._ends().items()}

    def close(self) -> None:
        """Write what is queued and end. Blocks."""
        if self._prober is not None:
            self._prober.cancel()
        self._committer.submit(self._submitted)
        self._committer.stop()
        self._acknowledged.close()


def _cannot_take(why: object) -> Refused:
    return _refused(f"The log cannot take events now ({why})")


def _refused(message: str) -> Refused:
    return Refused("unavailable", f"{message}; send the same events again", retry_after=1)
