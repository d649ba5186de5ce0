"""Group commit: the events of all requests of a moment become one message per partition and one fsync.

A moment is what the caller says: it submits all jobs of it at once, as an event loop does once a turn. To wake this
thread for each would make it take a few of them, again and again, and each of its steps takes the GIL from the loop
that decodes the others. docs/decisions/0026.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from processor.core.events import message
from processor.core.events.message import Block
from processor.log.errors import LogUnavailable
from processor.log.port import LogWriter
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS
from server.ingest.publisher import Done, Parts

MAX_MESSAGE_EVENTS: Final = 1000
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""A message is closed at the first of the two: bounds on what the worker has to take in one piece."""

MAX_COMMIT_BYTES: Final = 32 * 1024 * 1024


class Job(NamedTuple):
    """Some events by partition, how many bytes they are, and what the publisher calls once they are decided."""

    parts: Parts
    size: int
    done: Done


Written = dict[int, int] | LogUnavailable
"""partition -> offset of the message that contains the events, or why they are not durable."""


class GroupCommitter(threading.Thread):
    """Writes jobs to the events topic on a thread of its own.

    `deliver` is called in this thread once per commit with the decided jobs: the one place to hop back to a loop.
    `guard` is called right before a write and raises `LogUnavailable` to keep it from being begun.
    """

    def __init__(
        self,
        open_log: Callable[[], LogWriter],
        clock: Callable[[], int],
        deliver: Callable[[Sequence[tuple[Job, Written]]], None],
        guard: Callable[[], None] = lambda: None,
        *,
        fails_together: bool = False,
    ) -> None:
        """`fails_together`: when a commit fails, all that wait behind it fail with it, where each try takes seconds."""
        super().__init__(name="group-commit", daemon=True)
        self._open_log = open_log
        self._clock = clock
        self._deliver = deliver
        self._guard = guard
        self._fails_together = fails_together
        self._pending: deque[Job] = deque()
        self._wake = threading.Condition()
        self._stopping = False

    def submit(self, jobs: deque[Job]) -> None:
        """Take all jobs of a moment out of this queue and have them committed; does not block. For any thread."""
        with self._wake:
            while jobs:
                self._pending.append(jobs.popleft())
            self._wake.notify()

    def stop(self) -> None:
        """Write what was submitted, then end the thread and wait for it."""
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

    def _write(self, log: LogWriter, jobs: Sequence[Job]) -> list[Written]:
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
            more = job.size if len(job.parts) == 1 else block.size  # which it would have to add up once more
            filled[partition] = (events + len(block), size + more)
    return grouped
