"""The Faust application of the event store: a consumer of the events with a group of its own, and no tables."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

import faust
from faust.types import TP, EventT
from structlog.stdlib import get_logger

from processor import restart
from processor.event_store.parquet_writer import ParquetWriter
from processor.event_store.store import DirectoryGone, Overtaken, Store
from processor.event_store.store_directory import StoreDirectory
from processor.event_store.upkeep import Upkeep
from processor.log import losses
from processor.log.address import LogAddress
from processor.log.embedded.checkpointer import end_process
from processor.log.errors import LogBroken
from processor.log.faust_tables import TableManager
from processor.log.topics import EVENTS, STORE_GROUP
from processor.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processor.event_store.holder import Holder
    from processor.event_store.segment_writer import SegmentWriter

EXIT_BROKEN: Final = 70
"""Exit code of a process that cannot go on; the next start finds out where to."""


class Delivery:
    """A Faust event in the form that the store keeps."""

    __slots__ = ("_event", "is_damaged", "offset", "partition", "value")

    def __init__(self, event: EventT[Any]) -> None:
        self._event = event
        self.partition: int = event.message.partition
        self.offset: int = event.message.offset
        self.value: bytes | None = event.message.value
        self.is_damaged = bool(event.message.headers)
        """Only damaged records have a header, see `faust_transport.DAMAGED`."""

    def ack(self) -> None:
        self._event.ack()


class Application:
    """The Faust app, and the store's parts around it."""

    def __init__(
        self, settings: Settings, clock: "Callable[[], int]", writer: "Callable[[Path], SegmentWriter]" = ParquetWriter
    ) -> None:
        self._address = address = LogAddress.of(settings)
        log = address.open(settings.partitions, create=True)
        try:
            address.claim(log.identity, keeps=True)
            self.partitions = log.partitions
            counts = log.topics()
            losses.check_directory(log)
        finally:
            log.close()
        directory = StoreDirectory(settings.segments_dir, settings.store_min_free)
        payload = settings.payload_retention
        self.store = Store(address, directory, writer(directory.path), clock, payload, self._hold, self._go_on)
        self.upkeep = Upkeep(self.store, settings.retention, payload)
        self.faust = _faust_app(address, self.partitions)
        self.faust.resume_at = self.store.reached
        self.holder: Holder | None = None
        if address.kafka is not None:
            self.faust.spendstream = self.holder = self._hold_together(counts)
        topic = self.faust.topic(
            EVENTS,
            partitions=self.partitions,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            internal=True,
        )
        self.faust.agent(topic, name=f"{STORE_GROUP}.segments", concurrency=1)(self._keep)
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
        await self.upkeep.run()

    async def _guard(self, work: Any) -> None:
        """Do what goes on for ever; the process ends where it cannot, and the next one begins with what is durable."""
        try:
            await work
        except LogBroken as error:
            end_process(error)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, a store that stands still must not look alive
            is_known = isinstance(error, Overtaken | DirectoryGone)
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

    def _hold_together(self, counts: dict[str, int]) -> "Holder":
        from processor.event_store.holder import Holder

        return Holder(self._address, counts, self.store)

    def _hold(self, number: int) -> None:
        consumer: Any = self.faust.consumer
        consumer.leave_out(TP(EVENTS, number))

    async def _go_on(self, number: int) -> None:
        consumer: Any = self.faust.consumer
        await consumer.go_on(TP(EVENTS, number))


def _faust_app(address: LogAddress, partitions: int) -> Any:
    embedded = f"spendstream-sqlite://{address.data_dir}"
    return faust.App(
        STORE_GROUP,
        broker=embedded if address.kafka is None else "spendstream-kafka://cluster",
        store="memory://",
        datadir=str(address.data_dir / "faust-store"),
        topic_partitions=partitions,
        topic_disable_leader=True,
        topic_allow_declare=True,
        web_enabled=False,
        broker_commit_interval=1.0,
        stream_wait_empty=False,
        stream_buffer_maxsize=64,
        stream_recovery_delay=0.0,
        producer_partitioner=None,
        autodiscover=False,
        TableManager=TableManager,
    )
