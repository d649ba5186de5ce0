"""Group commit: the events of all requests of a moment become one message per partition and one fsync.

A moment is what the caller says: `submit` each job, then `hand_over` all of them. An event loop does so once a turn. To
wake this thread for each would make it take a few of them, again and again, and each of its steps takes the GIL from
the loop that decodes the others. docs/decisions/0026.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from processor.core.events import message
from processor.core.events.message import Block
from processor.log.errors import LogUnavailable
from processor.log.port import LogWriter
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS

MAX_MESSAGE_EVENTS: Final = 1000
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""A message is closed at the first of the two: bounds on what the worker has to take in one piece."""

MAX_COMMIT_BYTES: Final = 32 * 1024 * 1024


class Job(NamedTuple):
    """One request's events by partition, how large they are, and what to call once it is decided."""

    parts: Mapping[int, Block]
    size: int
    done: Callable[["Outcome"], None]


Outcome = dict[int, int] | LogUnavailable
"""partition -> offset of the message that contains the events, or why they are not durable."""


class Backlogged(Exception):
    """More events wait for the disk than are allowed to."""


class GroupCommitter(threading.Thread):
    """Writes jobs to the events topic on a thread of its own.

    `deliver` is called in this thread once per commit with the decided jobs: the one place to hop back to a loop.
    `guard` is called right before a write and raises `LogUnavailable` to keep it from being begun.
    """

    def __init__(
        self,
        open_log: Callable[[], LogWriter],
        clock: Callable[[], int],
        deliver: Callable[[Sequence[tuple[Job, Outcome]]], None],
        max_pending_bytes: int,
        guard: Callable[[], None] = lambda: None,
        *,
        fails_together: bool = False,
    ) -> None:
        """`fails_together`: when a commit fails, all that wait behind it fail with it, where each try takes seconds."""
        super().__init__(name="group-commit", daemon=True)
        self._open_log = open_log
        self._clock = clock
        self._deliver = deliver
        self._max_pending = max_pending_bytes
        self._guard = guard
        self._fails_together = fails_together
        self._submitted: list[Job] = []
        self._pending: deque[Job] = deque()
        self._pending_bytes = 0
        """Of both."""
        self._wake = threading.Condition()
        self._stopping = False

    def submit(self, job: Job) -> None:
        """Take a job, for `hand_over`; does not block. Raises `Backlogged` beyond the bound."""
        with self._wake:
            if self._pending_bytes and self._pending_bytes + job.size > self._max_pending:
                raise Backlogged
            self._submitted.append(job)
            self._pending_bytes += job.size

    def hand_over(self) -> None:
        """Have what was submitted committed; does not block."""
        with self._wake:
            self._pending += self._submitted
            self._submitted.clear()
            self._wake.notify()

    def stop(self) -> None:
        """Write what was submitted, then end the thread and wait for it."""
        self.hand_over()  # before: a thread that finds nothing and is to stop ends
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self.join()

    def run(self) -> None:
        log = self._open_log()
        while jobs := self._next():
            outcomes = self._write(log, jobs)
            if self._fails_together and isinstance(outcomes[-1], LogUnavailable):
                behind = self._waiting()
                jobs += behind
                outcomes += [outcomes[-1]] * len(behind)
            with self._wake:
                self._pending_bytes -= sum(job.size for job in jobs)
            self._deliver(list(zip(jobs, outcomes, strict=True)))
        log.close()

    def _next(self) -> list[Job]:
        """The jobs of the next commit; empty when stopping."""
        jobs: list[Job] = []
        size = 0
        with self._wake:
            while not self._pending and not self._stopping:
                self._wake.wait()
            while self._pending and size < MAX_COMMIT_BYTES:
                job = self._pending.popleft()
                jobs.append(job)
                size += job.size
        return jobs

    def _waiting(self) -> list[Job]:
        """Take all jobs that are queued."""
        with self._wake:
            jobs = list(self._pending)
            self._pending.clear()
        return jobs

    def _write(self, log: LogWriter, jobs: Sequence[Job]) -> list[Outcome]:
        grouped = _group(jobs)
        messages = [(partition, members, parts) for partition, groups in grouped.items() for parts, members in groups]
        try:
            appends = [
                Append(TopicPartition(EVENTS, partition), [(None, message.encode(parts))])
                for partition, _, parts in messages
            ]
            self._guard()
            # Nothing arrives after it is written, also if the clock has been set back in between: an export by arrival
            # passes over messages that were written before its start.
            latest = max(block.arrival for job in jobs for block in job.parts.values())
            offsets = log.append(appends, max(self._clock(), latest))
        except LogUnavailable as error:
            return [error] * len(jobs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread goes on and the senders get an answer
            return [LogUnavailable(repr(error))] * len(jobs)
        outcomes: list[dict[int, int]] = [{} for _ in jobs]
        for (partition, members, _), offset in zip(messages, offsets, strict=True):
            for member in members:
                outcomes[member][partition] = offset
        return list(outcomes)


def _group(jobs: Sequence[Job]) -> dict[int, list[tuple[list[Block], list[int]]]]:
    """partition -> messages to be: their blocks, and the numbers of the jobs in each."""
    grouped: dict[int, list[tuple[list[Block], list[int]]]] = {}
    filled: dict[int, tuple[int, int]] = {}
    for number, job in enumerate(jobs):
        for partition, block in job.parts.items():
            events, size = filled.get(partition, (MAX_MESSAGE_EVENTS, 0))
            groups = grouped.setdefault(partition, [])
            if events + len(block) > MAX_MESSAGE_EVENTS or size > MAX_MESSAGE_BYTES:
                groups.append(([], []))
                events, size = 0, 0
            groups[-1][0].append(block)
            groups[-1][1].append(number)
            filled[partition] = (events + len(block), size + block.size)
    return grouped
