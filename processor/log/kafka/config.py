"""How to reach a Kafka cluster, and how librdkafka is set up for each use.

The names are librdkafka's (its CONFIGURATION.md). What is set here is what exactness and bounds need; the rest is its
own default.
"""

from dataclasses import dataclass
from typing import Any, Final

from processor.log.topics import PREFIX
from processor.settings import Settings

ROOT: Final = PREFIX.rstrip(".")

MAX_RECORD_BYTES: Final = 32 * 1024 * 1024
"""The largest record a topic takes: one message of one request of 20 MiB, and room."""

DELIVERY_MS: Final = 8_000
"""How long an append waits for all in-sync replicas before it has failed."""

SESSION_MS: Final = 10_000
"""A worker that is silent for so long has lost its partitions."""

TRANSACTION_MS: Final = 60_000
"""A flush that is not committed after so long is aborted by the broker."""


@dataclass(frozen=True, slots=True)
class KafkaAccess:
    """The cluster's addresses and what it wants to know of us."""

    servers: str
    """host:port, separated by commas."""
    security: tuple[tuple[str, str], ...] = ()
    """librdkafka's security settings; kept out of logs and errors."""
    replication: int = 3
    """Copies of each partition when topics are made; fewer if there are fewer brokers."""
    prefix: str = PREFIX
    """What the names of this product's topics, groups and transactional ids begin with on the cluster."""

    @classmethod
    def of(cls, settings: Settings) -> "KafkaAccess":
        """From `kafka://host:port;host:port` and the settings beside it."""
        hosts = settings.broker.removeprefix("kafka://").split(";")
        servers = ",".join(host if ":" in host else f"{host}:9092" for host in hosts)
        given = {
            "security.protocol": settings.kafka_security,
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": settings.kafka_username,
            "sasl.password": settings.kafka_password,
            "ssl.ca.location": settings.kafka_ca,
            "ssl.certificate.location": settings.kafka_cert,
            "ssl.key.location": settings.kafka_key,
        }
        security = tuple((name, str(value)) for name, value in given.items() if value is not None)
        return cls(servers, security, settings.kafka_replication, settings.kafka_prefix)

    def wire(self, name: str) -> str:
        """The name on the cluster of what the program calls `name`: a topic, a group or a transactional id.

        With the default prefix they are the same. With `team-a.` the topic `spendstream.rows` is `team-a.rows` and the
        group `spendstream` is `team-a.workers`. No other module knows names of the cluster.
        """
        if self.prefix == PREFIX:
            return name
        return self.prefix + (name.removeprefix(ROOT).lstrip(".-") or "workers")

    def topic(self, wire: str) -> str:
        """What the program calls the topic that is called `wire` on the cluster."""
        return PREFIX + wire.removeprefix(self.prefix)

    def client(self) -> dict[str, Any]:
        """What every client has in common."""
        return {
            "bootstrap.servers": self.servers,
            "client.id": "spendstream",
            "socket.keepalive.enable": True,
            "reconnect.backoff.max.ms": 1_000,
            "log_level": 2,  # a broker that is away is told once, by us
            "receive.message.max.bytes": 4 * MAX_RECORD_BYTES,
            **dict(self.security),
        }

    def reader(self) -> dict[str, Any]:
        """A consumer that is told what to read and never commits."""
        return {
            **self.client(),
            "group.id": self.wire("spendstream-reader"),
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "check.crcs": True,
            "auto.offset.reset": "earliest",
            "fetch.message.max.bytes": 4 * 1024 * 1024,
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": 32 * 1024,
        }

    def producer(self) -> dict[str, Any]:
        """A producer whose deliveries are on all in-sync replicas, once and in order."""
        return {
            **self.client(),
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 0,
            "message.max.bytes": MAX_RECORD_BYTES,
            "message.timeout.ms": DELIVERY_MS,
            "queue.buffering.max.messages": 1_000_000,
        }

    def writer(self, transactional_id: str) -> dict[str, Any]:
        """A transactional producer: the process that initialises the same id later fences it."""
        return {
            **self.producer(),
            "transactional.id": self.wire(transactional_id),
            "transaction.timeout.ms": TRANSACTION_MS,
            "message.timeout.ms": TRANSACTION_MS // 2,
            "linger.ms": 2,
            "compression.type": "lz4",
        }

    def member(self, group: str, instance: str) -> dict[str, Any]:
        """A static member of the workers' group: back within the session it keeps its partitions.

        Not cooperative: a static member that is killed between giving partitions up and joining again leaves them
        without an owner, for its return starts no rebalance. What is given up and comes back is kept warm instead.
        """
        return {
            **self.client(),
            "group.id": self.wire(group),
            "group.instance.id": instance,
            "session.timeout.ms": SESSION_MS,
            "heartbeat.interval.ms": 2_000,
            "max.poll.interval.ms": 600_000,
            "partition.assignment.strategy": "range",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "check.crcs": True,
            "fetch.message.max.bytes": 4 * 1024 * 1024,
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": 32 * 1024,
        }
