"""What the rest of the program may ask of a log, whichever it is: the embedded one or a broker's.

All calls block. Offsets grow but may have gaps: whoever reads on goes by the offsets of what was read.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from processor.log.records import Append, Record, TopicPartition


class LogReader(Protocol):
    """A log that is read. Raises `LogError` where there is no such partition or the log cannot be reached."""

    @property
    def partitions(self) -> int:
        """Number of partitions of the events topic."""
        ...

    @property
    def identity(self) -> str:
        """The log's name, made up when it was created."""
        ...

    @property
    def salt(self) -> bytes:
        """The secret that claim keys are derived with."""
        ...

    def topics(self) -> dict[str, int]:
        """Topic name -> number of partitions."""
        ...

    def first(self, tp: TopicPartition, /) -> int:
        """The first offset that retention has left."""
        ...

    def end(self, tp: TopicPartition, /) -> int:
        """The next offset to be given in the partition."""
        ...

    def read(self, tp: TopicPartition, offset: int, limit: int = ..., max_bytes: int = ..., /) -> list[Record]:
        """Records from `offset` on, at most `limit` and about `max_bytes`; at least one if there is one."""
        ...

    def committed(self, group: str, tp: TopicPartition, /) -> int | None:
        """The next offset to read for a consumer group; None if it has committed none."""
        ...

    def close(self) -> None:
        """Let go of the log."""
        ...


class LogWriter(LogReader, Protocol):
    """A log that is written to, too."""

    def append(self, appends: Sequence[Append], at: int, /) -> list[int]:
        """Append to partitions; returns the first offset given in each. Durable on return.

        Only the embedded log promises that all of it or nothing was appended. Raises `LogUnavailable`.
        """
        ...

    def probe(self, at: int, /) -> None:
        """Find out whether the log takes writes. Raises `LogUnavailable` if it does not."""
        ...


Read = Callable[[TopicPartition, int, int], Sequence[Record]]
"""`LogReader.read`, or one that does the same with more to it: partition, first offset, limit."""


def polls(
    read: Read, tp: TopicPartition, start: int = 0, end: int | None = None, limit: int = 5000
) -> Iterator[Sequence[Record]]:
    """What `scan` gives, one read of the log at a time: up to `limit` records each, never none."""
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
    """All records of a partition from `start` on, up to `end` (exclusive; None: all), `limit` at a time.

    What compaction removes meanwhile has been replaced by a record further on, so a scan to the end that finds nothing
    more has seen the newest record of every key.
    """
    for found in polls(log.read, tp, start, end, limit):
        yield from found
