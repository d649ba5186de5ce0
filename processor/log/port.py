"""The port of the log, for both adapters: the embedded log and Kafka.

All calls block. Offsets grow but may have gaps: a reader continues after the offset of the last record it read.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from processor.log.records import Append, Record, TopicPartition


class LogReader(Protocol):
    """A log to read. Methods raise `LogError` if there is no such partition or the log cannot be reached."""

    @property
    def partitions(self) -> int:
        """Number of partitions of the events topic."""
        ...

    @property
    def identity(self) -> str:
        """The log's random name, made when it was created."""
        ...

    @property
    def salt(self) -> bytes:
        """The secret from which claim keys are derived."""
        ...

    def topics(self) -> dict[str, int]:
        """Return topic name -> number of partitions."""
        ...

    def name_of(self, topic: str, /) -> str:
        """Return the name of a topic for operators: on Kafka the one that it has on the cluster."""
        ...

    def first(self, tp: TopicPartition, /) -> int:
        """Return the first offset that retention has left."""
        ...

    def end(self, tp: TopicPartition, /) -> int:
        """Return the next offset to be assigned in the partition."""
        ...

    def read(self, tp: TopicPartition, offset: int, limit: int = ..., max_bytes: int = ..., /) -> list[Record]:
        """Return records from `offset` on, at most `limit` and about `max_bytes`; at least one if there is one."""
        ...

    def committed(self, group: str, tp: TopicPartition, /) -> int | None:
        """Return the next offset to read for a consumer group; None if it has committed none."""
        ...

    def close(self) -> None:
        """Close the log."""
        ...


class LogWriter(LogReader, Protocol):
    """A log to read and write."""

    def append(self, appends: Sequence[Append], at: int, /) -> list[int]:
        """Append to partitions; return the first offset assigned in each. Durable on return.

        Only in the embedded log is this atomic. Raises `LogUnavailable`.
        """
        ...

    def probe(self, at: int, /) -> None:
        """Check whether the log accepts writes. Raises `LogUnavailable` if it does not."""
        ...


Read = Callable[[TopicPartition, int, int], Sequence[Record]]
"""`LogReader.read`, or a function like it: partition, first offset, limit -> records."""


def polls(
    read: Read, tp: TopicPartition, start: int = 0, end: int | None = None, limit: int = 5000
) -> Iterator[Sequence[Record]]:
    """Yield the records of `scan` in polls, one read of the log each: up to `limit` records, at least one."""
    position = start
    while end is None or position < end:
        found = read(tp, position, limit if end is None else min(limit, end - position))
        if not found:
            return
        position = found[-1].offset + 1
        if end is not None and position > end:  # offsets have gaps
            found = [record for record in found if record.offset < end]
        if found:
            yield found


def scan(
    log: LogReader, tp: TopicPartition, start: int = 0, end: int | None = None, limit: int = 5000
) -> Iterator[Record]:
    """Yield all records of a partition from `start` up to `end` (exclusive; None: all), read `limit` at a time.

    A record that compaction removes meanwhile has been replaced by a later one, so a scan to the end sees the newest
    record of every key.
    """
    for found in polls(log.read, tp, start, end, limit):
        yield from found
