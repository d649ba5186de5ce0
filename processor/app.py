"""The Faust application: topics, the table and the agent. What it computes is in `core`; what it keeps in `state`."""

import os
from functools import partial
from pathlib import Path
from typing import Any, Final

import faust
from faust.types import EventT
from structlog.stdlib import get_logger

from processor.log.store import Log
from processor.log.topics import EVENTS, ROWS
from processor.settings import Settings
from processor.state.applier import Applier
from processor.state.compactor import Compactor
from processor.state.loader import Partition, load
from processor.state.rows import RowTable
from processor.state.sealer import Sealer

NAME: Final = "spendstream"
EXIT_BROKEN: Final = 70
"""The process ends with it when its rows cannot be trusted; started again it reads them back."""


class Delivery:
    """A Faust event as the applier takes it."""

    __slots__ = ("_event", "offset", "partition", "value")

    def __init__(self, event: EventT[Any]) -> None:
        self._event = event
        self.partition: int = event.message.partition
        self.offset: int = event.message.offset
        self.value: bytes | None = event.message.value

    def ack(self) -> None:
        self._event.ack()


class Application:
    """The app and what the worker's process needs of it."""

    def __init__(self, settings: Settings, clock: Any) -> None:
        directory = settings.data_dir
        log = Log(directory, partitions=settings.partitions)
        self.partitions = log.partitions
        log.close()
        self.faust = _faust_app(directory, self.partitions)
        self.table = RowTable(
            self.faust,
            load=partial(load, directory),
            name="rows",
            partitions=self.partitions,
            changelog_topic=self._topic(ROWS),
            key_type=bytes,
            value_type=bytes,
        )
        self.faust.tables.add(self.table)
        self.applier = Applier(self._owned, self._append, clock, settings.flush_interval)
        self.compactor = Compactor(self._owned, self._compact)
        self.faust.agent(self._topic(EVENTS), name=f"{NAME}.tables", concurrency=1)(self._tables)
        self.faust.task(self.applier.run)
        self.faust.task(self.compactor.run)
        if settings.retention:
            sealer = Sealer(directory, self._owned, clock, settings.retention, settings.retention_interval)
            self.faust.task(sealer.run)

    def _topic(self, name: str) -> Any:
        return self.faust.topic(
            name,
            partitions=self.partitions,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            internal=True,
        )

    async def _tables(self, stream: Any) -> None:
        async for event in stream.noack().events():
            try:
                await self.applier.take(Delivery(event))
            except Exception as error:  # noqa: BLE001 - an agent that raises goes on without the message: it would be lost
                get_logger().critical("worker.broken", error=str(error) or repr(error))
                os._exit(EXIT_BROKEN)

    def _owned(self) -> dict[int, Partition]:
        return self.table.owned

    async def _append(self, appends: Any) -> list[int]:
        producer: Any = self.faust.producer
        found: list[int] = await producer.append(appends)
        return found

    async def _compact(self, *args: Any) -> tuple[int | None, int]:
        producer: Any = self.faust.producer
        found: tuple[int | None, int] = await producer.compact(*args)
        return found


def _faust_app(directory: Path, partitions: int) -> faust.App:
    return faust.App(
        NAME,
        broker=f"spendstream-sqlite://{directory}",
        store="memory://",
        datadir=str(directory / "faust"),
        topic_partitions=partitions,
        topic_disable_leader=True,
        topic_allow_declare=True,
        web_enabled=False,
        broker_commit_interval=1.0,
        stream_wait_empty=False,
        stream_buffer_maxsize=64,
        producer_partitioner=None,
        autodiscover=False,
    )
