"""The partitions of one store among several on Kafka, as the transport finds their keeper on the Faust app."""

import asyncio
from collections.abc import Callable

from processor import restart
from processor.event_store.store import Store
from processor.log.address import LogAddress
from processor.log.errors import HistoryMismatch, LogError
from processor.log.kafka.member_name import instance
from processor.log.kafka.transport import Writers
from processor.log.topics import EVENTS
from processor.structured_log import get_logger

RETRY = 2.0
EXIT_BROKEN = 70


class StoreHolder:
    """Brings partitions to the store and gives them up, as the group says. Nothing is fenced: what a store appends that
    has lost a partition is ignored by every reader (`processor.event_store.catalog`)."""

    def __init__(self, address: LogAddress, counts: dict[str, int], store: Store) -> None:
        assert address.kafka is not None
        self.access = address.kafka
        self.counts = counts
        self.topics = (EVENTS,)
        self.instance = instance(address.data_dir, "store")
        self.writers = Writers(address.kafka)
        self.on_brought: Callable[[], None] = lambda: None
        """Called when partitions were brought, or the group had none."""
        self._store = store

    async def bring(self, partitions: set[int]) -> None:
        """Find out where to go on with these partitions. Waits while the log or the directory is away."""
        while True:
            try:
                await self._store.bring(partitions)
            except HistoryMismatch as error:
                get_logger().critical("store.broken", error=str(error))
                restart.end(EXIT_BROKEN)
            except (LogError, OSError) as error:
                get_logger().warning("store.waits", error=str(error))
                await asyncio.sleep(RETRY)
            else:
                self.on_brought()
                return

    async def release(self, partitions: set[int]) -> dict[int, int]:
        """Give partitions up, after the cut that is being made; return partition -> next message to read."""
        return await self._store.release(partitions)

    async def drop(self, partitions: set[int]) -> None:
        """Give up partitions that may belong to another store by now."""
        await self._store.release(partitions)
