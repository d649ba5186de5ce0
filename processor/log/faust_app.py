"""What the Faust applications of this program share: opening the log, the app's settings, its topics and deliveries."""

from typing import Any, NamedTuple

import faust
import faust.tables
from faust.types import EventT

from processor.log import losses
from processor.log.address import LogAddress
from processor.settings import Settings


class TableManager(faust.tables.TableManager):
    """Starts without the second that Faust's own class sleeps for late tables: ours exist before it starts."""

    async def on_start(self) -> None:
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


class LogFound(NamedTuple):
    """The log that an application reads."""

    address: LogAddress
    partitions: int
    counts: dict[str, int]
    """Topic -> its number of partitions."""


def find_log(settings: Settings) -> LogFound:
    """Open the log, make it if there is none, and claim the data directory for it. Blocks; raises `LogError`."""
    address = LogAddress.of(settings)
    log = address.open(settings.partitions, create=True, upgrade=True)
    try:
        address.claim(log.identity, keeps=True)
        losses.check_directory(log)
        return LogFound(address, log.partitions, log.topics())
    finally:
        log.close()


def make_app(group: str, log: LogFound, folder: str, commit_interval: float) -> Any:
    """Return a Faust app for a consumer group, whose name the transports take from it.

    `folder` is its own in the data directory; progress is committed every `commit_interval` seconds.
    """
    address = log.address
    embedded = f"spendstream-sqlite://{address.data_dir}"
    return faust.App(
        group,
        broker=embedded if address.kafka is None else "spendstream-kafka://cluster",
        store="memory://",
        datadir=str(address.data_dir / folder),
        topic_partitions=log.partitions,
        topic_disable_leader=True,
        topic_allow_declare=True,
        web_enabled=False,
        broker_commit_interval=commit_interval,
        stream_wait_empty=False,
        stream_buffer_maxsize=64,
        stream_recovery_delay=0.0,
        producer_partitioner=None,
        autodiscover=False,
        TableManager=TableManager,
    )


def topic_of(app: Any, name: str, partitions: int) -> Any:
    """Return a topic of the log, whose keys and values are bytes."""
    return app.topic(
        name,
        partitions=partitions,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        internal=True,
    )


class Delivery:
    """A Faust event as a `Delivered`."""

    __slots__ = ("_event", "is_damaged", "key", "offset", "partition", "value")

    def __init__(self, event: EventT[Any]) -> None:
        self._event = event
        self.partition: int = event.message.partition
        self.offset: int = event.message.offset
        self.key: bytes | None = event.message.key
        self.value: bytes | None = event.message.value
        self.is_damaged = bool(event.message.headers)
        """Only damaged records have a header, see `faust_transport.DAMAGED`."""

    def ack(self) -> None:
        """Acknowledge it: its effects are durable."""
        self._event.ack()
