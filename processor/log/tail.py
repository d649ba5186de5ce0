"""Following partitions of the log as they grow."""

from collections.abc import Iterator
from typing import Final, Protocol

from processor.log.records import Found, Record, TopicPartition

POLL: Final = 0.01
"""Seconds between two looks for new records."""


class Tail(Protocol):
    """Partitions from their beginning on. One thread uses it."""

    @property
    def is_current(self) -> bool:
        """True if all that was in the log when the last `poll` began has been handed out by it or before."""
        ...

    def known_at(self, tp: TopicPartition) -> float:
        """Until when the partition is known: all that was in it then has been handed out.

        In seconds of `time.monotonic`; -inf: not yet. A process that stood still finds an old value here, not a new
        one. Only for partitions that are followed; cheap.
        """
        ...

    def has_more(self, tp: TopicPartition) -> bool:
        """Whether the batch in hand is only the first part of what was there when it was read; in doubt True.

        What replaces a record may be in the rest, and the record have been compacted before it was read.
        """
        ...

    def newest(self) -> Iterator[tuple[TopicPartition, Found]]:
        """The newest record of each key of all that is there now (see `processor.log.embedded.newest`),
        before the first `poll`.

        That goes on from there. Nothing where it is no quicker than to read everything.
        """
        ...

    def poll(self) -> Iterator[tuple[TopicPartition, list[Record]]]:
        """Batches of new records, each of one partition and in order; waits a moment if there is none.

        A batch counts as handed out once the next is asked for.
        """
        ...

    def close(self) -> None:
        """Close its connections."""
        ...
