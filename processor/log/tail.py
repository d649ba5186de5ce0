"""The port to follow partitions of the log as they grow."""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from processor.log.records import NewestRecords, Record, TopicPartition

POLL: Final = 0.01
"""Seconds between two checks for new records."""

IDLE_POLL: Final = 0.02
IDLE_AFTER: Final = 1.0
"""Seconds between two looks, at least, once nothing has been committed to the log for this many."""


class Tail(Protocol):
    """Reads partitions from their beginning on. For one thread."""

    @property
    def is_current(self) -> bool:
        """True if all that was in the log when the last `poll` began has been returned."""
        ...

    def known_at(self, tp: TopicPartition) -> float:
        """Return the moment up to which the partition is known: all that was in it then has been returned.

        In seconds of `time.monotonic`; -inf: not known yet. After a process was suspended this is an old moment. Only
        for partitions that are followed; cheap.
        """
        ...

    def has_more(self, tp: TopicPartition) -> bool:
        """Return whether the present batch is only the first part of what was there when it was read; True in doubt.

        The rest may have records that replace some of this part, which may have been compacted before it was read.
        """
        ...

    def newest(self) -> Iterator[tuple[TopicPartition, NewestRecords]]:
        """Yield the newest record of each key of all present records (see `processor.log.embedded.newest`).

        Call it before the first `poll`, which continues from there. Yields nothing where reading all is as fast.
        """
        ...

    def poll(self) -> Iterator[tuple[TopicPartition, Sequence[Record]]]:
        """Yield batches of new records, each of one partition and in order; block for a moment if there are none.

        A batch counts as returned once the next is asked for.
        """
        ...

    def close(self) -> None:
        """Close its connections."""
        ...
