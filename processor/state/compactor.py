"""Compaction of the changelog in the embedded log: a little at a time, beside the flushes.

Only the owner of a partition knows which record of a row is the newest without reading them all, so it does the
compaction: in rounds from the beginning to where the changelog ended when the round began.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from structlog.stdlib import get_logger

from processor.log.errors import LogUnavailable
from processor.log.store import TopicPartition
from processor.log.topics import ROWS
from processor.state.loader import Partition

SLACK: Final = 100_000
"""Replaced records that may lie about whatever the number of rows."""

STEP: Final = 2000
"""Records looked at in one transaction."""

PAUSE: Final = 0.02
"""Seconds between two steps, so that the writers get their turns."""

HASTY_STEP: Final = 10_000
HASTY_PAUSE: Final = 0.004
"""The same when the changelog is twice as long as it should be, for whoever starts next has to read all of it. That is
while a backlog is worked off; then a flush may wait for as long as such a step takes."""

INTERVAL: Final = 1.0

Compact = Callable[[TopicPartition, int, int, int, Callable[[bytes, int], bool]], Awaitable[tuple[int | None, int]]]
"""`Log.compact` on the writer's thread."""


class Compactor:
    """Starts a round whenever more than half of a partition's changelog (and `SLACK`) has been replaced."""

    def __init__(self, owned: Callable[[], Mapping[int, Partition]], compact: Compact) -> None:
        self._owned = owned
        self._compact = compact

    async def run(self) -> None:
        """Compact for ever."""
        while True:
            await asyncio.sleep(INTERVAL)
            for partition in list(self._owned().values()):
                if partition.records > _room(partition):
                    try:
                        await self.round(partition)
                    except LogUnavailable as error:
                        get_logger().warning("compaction.postponed", partition=partition.number, error=str(error))

    async def round(self, partition: Partition) -> int:
        """One round over a partition; returns how many records went."""
        end, room = partition.tables.progress.changelog, _room(partition)
        start: int | None = 0
        removed = 0
        while start is not None and partition.number in self._owned():
            to = TopicPartition(ROWS, partition.number)
            step, pause = (STEP, PAUSE) if partition.records < 2 * room else (HASTY_STEP, HASTY_PAUSE)
            start, gone = await self._compact(to, start, end, step, partition.tables.is_live)
            removed += gone
            partition.records -= gone
            await asyncio.sleep(pause)
        get_logger().info("compaction.done", partition=partition.number, removed=removed, left=partition.records)
        return removed


def _room(partition: Partition) -> int:
    """Records that the changelog may have."""
    return 2 * len(partition.tables) + SLACK
