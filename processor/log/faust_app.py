"""What the Faust applications of this program share: opening the log, the app's settings, its topics and deliveries."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from processor.log import losses
from processor.log.address import LogAddress
from processor.log.faust_assignment import Assignment, NoLeader
from processor.log.faust_library import EventT, faust, tables
from processor.log.port import LogWriter
from processor.settings import Settings


class TableManager(tables.TableManager):
    """Starts without the second that Faust's own class sleeps for late tables: ours exist before it starts."""

    async def on_start(self) -> None:
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


class App(faust.App):
    """An application that Faust does not have to find.

    Faust's decorators let Venusian note the module that calls them, so that a scan of packages finds agents and tasks.
    For each it compares the files of all modules, 2,000 of them, which was half of a worker's start after its imports.
    """

    open_log: Callable[[], LogWriter]
    """For transports, which open the log for themselves."""

    def add_agent(self, name: str, topic: Any, function: Callable[[Any], Awaitable[None]]) -> None:
        """Have `function` process the stream of a topic, in order."""
        conf: Any = self.conf
        agent = conf.Agent(function, name=name, app=self, channel=topic, concurrency=1, on_error=self._on_agent_error)
        self.agents[agent.name] = agent
        self.topics.beacon.add(agent)

    def add_task(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run `function` once the application has started."""
        self._app_tasks.append(function)

    def _init_fixups(self) -> list[Any]:
        return []  # they are for Django, and looked for in the metadata of all that is installed


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
    """Return an `App` for a consumer group, whose name the transports take from it.

    `folder` is its own in the data directory; progress is committed every `commit_interval` seconds.
    """
    address = log.address
    embedded = f"spendstream-sqlite://{address.data_dir}"
    app = App(
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
        PartitionAssignor=Assignment,
        LeaderAssignor=NoLeader,
        HttpClient=object,
    )
    app.open_log = address.open
    make = _transport_of(address)
    app.transport = make(app.conf.broker_consumer, app)
    app.producer_transport = make(app.conf.broker_producer, app)
    return app


def _transport_of(address: LogAddress) -> Any:
    if address.kafka is None:
        from processor.log.embedded.transport import Transport
    else:
        from processor.log.kafka.transport import Transport  # type: ignore[assignment]
    return Transport


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
