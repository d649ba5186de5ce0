"""Compaction of the changelog in the embedded log, in small steps beside the flushes.

The owner of a partition knows without reading which record of a row is the newest: it keeps the offsets of the records
that it has replaced (`Partition.replaced`), and deletes those in the order of the log. So a page of the file is written
once in a round, and the older records of a row are deleted first: a tombstone only after all records before it.

A block of rows is deleted as a whole, once all of its rows have been written again. Most are by normal traffic; the few
rows that keep a block are written with the next flush, first those of the blocks with the fewest of them.
"""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import numpy as np

from processor.log.errors import LogUnavailable
from processor.log.records import TopicPartition
from processor.log.topics import ROWS
from processor.state.loader import Partition
from processor.structured_log import get_logger

SLACK: Final = 100_000
"""Replaced records that may stay, whatever the number of rows."""

STEP: Final = 2000
"""Records deleted in one transaction."""

PAUSE: Final = 0.02
"""Seconds between two steps, so that other writers get the lock."""

HASTY_STEP: Final = 40_000
HASTY_PAUSE: Final = 0.004
"""The same while the changelog is twice as long as it should be, as the next start has to read all of it. That happens
while a backlog is applied, when flushes are large and compete with the deletions."""

REWRITE: Final = 20_000
"""Rows written again in one step, approximately."""

INTERVAL: Final = 1.0

Delete = Callable[[TopicPartition, list[int]], Awaitable[None]]
"""`Log.delete` on the writer's thread."""


class Compactor:
    """Starts a round whenever more than half of a partition's changelog (and `SLACK`) has been replaced."""

    def __init__(self, owned: Mapping[int, Partition], delete: Delete, flush: Callable[[], Awaitable[None]]) -> None:
        """`flush`: `Applier.flush`."""
        self._owned = owned
        self._delete = delete
        self._flush = flush

    async def run(self) -> None:
        """Compact, for ever."""
        while True:
            await asyncio.sleep(INTERVAL)
            for partition in list(self._owned.values()):
                if partition.records > _room(partition):
                    try:
                        await self.round(partition)
                    except LogUnavailable as error:
                        get_logger().warning("compaction.postponed", partition=partition.number, error=str(error))

    async def round(self, partition: Partition) -> int:
        """Delete what has been replaced by now; return how many rows' records were deleted. The rest is left to the
        next round."""
        surplus = partition.records - _room(partition) - len(partition.replaced or ()) - sum(partition.sizes.values())
        if surplus > 0 and partition.tables.rewrite(surplus, REWRITE):
            await self._flush()
        assert partition.replaced is not None
        due = np.sort(np.array(partition.replaced, np.int64))
        partition.replaced = array("q")
        room, done, gone = _room(partition), 0, 0
        try:
            while done < len(due) and partition.number in self._owned:
                step, pause = (STEP, PAUSE) if partition.records < 2 * room else (HASTY_STEP, HASTY_PAUSE)
                chunk = due[done : done + step].tolist()
                await self._delete(TopicPartition(ROWS, partition.number), chunk)
                done += len(chunk)
                rows = sum(partition.sizes.pop(offset, 1) for offset in chunk)
                partition.records -= rows
                gone += rows
                await asyncio.sleep(pause)
        finally:
            partition.replaced.extend(due[done:].tolist())
        get_logger().info("compaction.done", partition=partition.number, removed=gone, left=partition.records)
        return gone


def _room(partition: Partition) -> int:
    """Return how many records the changelog may have."""
    return 2 * len(partition.tables) + SLACK
