"""Compaction of the changelog in the embedded log: a little at a time, beside the flushes.

Only the owner of a partition knows which record of a row is the newest, and it knows without reading: it remembers
where it wrote what it has replaced since (`Partition.replaced`), and deletes that in the order of the log. So a page of
the file is written once in a round, and of one row the older records go first: a tombstone goes when all that it buries
has gone.

A block of rows goes as a whole, once all of its rows have been written anew. Most are by the traffic itself; the few
rows that keep a block are written with the next flush, those of the blocks with the least of them first.
"""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import numpy as np
from structlog.stdlib import get_logger

from processor.log.errors import LogUnavailable
from processor.log.records import TopicPartition
from processor.log.topics import ROWS
from processor.state.loader import Partition

SLACK: Final = 100_000
"""Replaced records that may lie about whatever the number of rows."""

STEP: Final = 2000
"""Records deleted in one transaction."""

PAUSE: Final = 0.02
"""Seconds between two steps, so that the writers get their turns."""

HASTY_STEP: Final = 40_000
HASTY_PAUSE: Final = 0.004
"""The same when the changelog is twice as long as it should be, for the next start has to read all of it. That is
while a backlog is worked off, when a flush has so many rows, too, and each of them waits for the other."""

REWRITE: Final = 20_000
"""Rows written anew in one step, about."""

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
        """Compact for ever."""
        while True:
            await asyncio.sleep(INTERVAL)
            for partition in list(self._owned.values()):
                if partition.records > _room(partition):
                    try:
                        await self.round(partition)
                    except LogUnavailable as error:
                        get_logger().warning("compaction.postponed", partition=partition.number, error=str(error))

    async def round(self, partition: Partition) -> int:
        """Delete what has been replaced by now; returns how many rows' records went. What is left is for the next
        round."""
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
    """Records that the changelog may have."""
    return 2 * len(partition.tables) + SLACK
