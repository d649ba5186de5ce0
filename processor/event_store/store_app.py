"""The Faust application of the event store: a consumer of the events with a group of its own, and no tables."""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from processor import restart
from processor.core.clock import DAY, SECOND
from processor.event_store.fresh_messages import MessagesSkipped
from processor.event_store.parquet_writer import ParquetWriter
from processor.event_store.scrub import Scrub
from processor.event_store.store import DirectoryGone, Overtaken, Store
from processor.event_store.store_directory import StoreDirectory
from processor.event_store.upkeep import Upkeep
from processor.log import faust_app
from processor.log.embedded.checkpointer import end_process
from processor.log.errors import LogBroken
from processor.log.faust_app import Delivery
from processor.log.faust_library import TP
from processor.log.topics import EVENTS, STORE_GROUP
from processor.settings import Settings
from processor.structured_log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processor.event_store.holder import StoreHolder
    from processor.event_store.segment_writer import SegmentWriter
    from processor.log.embedded.writer_process import WriterProcess

COMMIT_INTERVAL: Final = 1.0
"""Seconds between two commits of progress."""

EXIT_BROKEN: Final = 70
"""Exit code of a process that cannot go on; the next start finds out where to."""


class StoreApplication:
    """The Faust app, and the store's parts around it."""

    def __init__(
        self,
        settings: Settings,
        clock: "Callable[[], int]",
        log_writer: "WriterProcess | None" = None,
        writer: "Callable[[Path], SegmentWriter]" = ParquetWriter,
    ) -> None:
        found = faust_app.find_log(settings)
        found = found._replace(address=replace(found.address, writer=log_writer))
        self._address, self.partitions, counts = found
        address = found.address
        directory = StoreDirectory(settings.segments_dir, settings.store_min_free)
        payload = settings.payload_retention
        self.store = Store(address, directory, writer(directory.path), clock, payload, self._hold, self._go_on)
        self.upkeep = Upkeep(self.store, settings.retention, payload)
        self._scrub_days = settings.store_scrub
        self.faust = faust_app.make_app(STORE_GROUP, found, "faust-store", COMMIT_INTERVAL)
        self.faust.resume_at = self.store.reached
        self.holder: StoreHolder | None = None
        if address.kafka is not None:
            self.faust.spendstream = self.holder = self._hold_together(counts)
        topic = faust_app.topic_of(self.faust, EVENTS, self.partitions)
        self.faust.add_agent(f"{STORE_GROUP}.segments", topic, self._keep)
        self.has_partitions = asyncio.Event()
        """Set when the store knows where to go on with its partitions."""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Bring the partitions, those of Kafka as the group assigns them, and begin. Raises `LogError`."""
        if self.holder is None:
            await self.store.bring(range(self.partitions))
            self.has_partitions.set()
        else:
            self.holder.on_brought = self.has_partitions.set
        await self.faust.start()
        self._tasks = [asyncio.create_task(self._guard(each)) for each in (self.store.run(), self._look_after())]

    async def _look_after(self) -> None:
        await self.has_partitions.wait()
        works = [self.upkeep.run()]
        if self._scrub_days:
            works.append(Scrub(self.store, self.upkeep, self._scrub_days * DAY / SECOND).run())
        await asyncio.gather(*works)

    async def _guard(self, work: Any) -> None:
        """Do what goes on for ever; the process ends where it cannot, and the next one begins with what is durable."""
        try:
            await work
        except LogBroken as error:
            end_process(error)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, a store that stands still must not look alive
            is_known = isinstance(error, Overtaken | DirectoryGone | MessagesSkipped)
            get_logger().critical("store.broken", error=str(error) or repr(error), exc_info=not is_known)
            restart.end(EXIT_BROKEN)

    async def stop(self) -> None:
        """Finish the cut that is being made, and acknowledge; what is being merged is given up."""
        for task in self._tasks:
            task.cancel()
        await self.store.close()
        await self.faust.stop()

    async def _keep(self, stream: Any) -> None:
        async for event in stream.noack().events():
            self.store.deliver(Delivery(event))

    def _hold_together(self, counts: dict[str, int]) -> "StoreHolder":
        from processor.event_store.holder import StoreHolder

        return StoreHolder(self._address, counts, self.store)

    def _hold(self, number: int) -> None:
        consumer: Any = self.faust.consumer
        consumer.leave_out(TP(EVENTS, number))

    async def _go_on(self, number: int) -> None:
        consumer: Any = self.faust.consumer
        await consumer.go_on(TP(EVENTS, number))
