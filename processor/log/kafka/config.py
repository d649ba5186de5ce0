"""The address of a Kafka cluster, and librdkafka's configuration for each use.

The names are librdkafka's (its CONFIGURATION.md). Only what exactness and bounds need is set; the rest are defaults.
"""

from dataclasses import dataclass
from typing import Any, Final

from processor.log.topics import PREFIX
from processor.settings import Settings

ROOT: Final = PREFIX.rstrip(".")

MAX_RECORD_BYTES: Final = 32 * 1024 * 1024
"""Most bytes of a record that a topic has to accept: one message of a request of 20 MiB, with a margin."""

DELIVERY_MS: Final = 8_000
"""Milliseconds for which an append waits for all in-sync replicas before it fails."""

SESSION_MS: Final = 10_000
"""Milliseconds of silence after which a worker loses its partitions."""

TRANSACTION_MS: Final = 60_000
"""Milliseconds after which the broker aborts a flush that is not committed."""


@dataclass(frozen=True, slots=True)
class KafkaAccess:
    """The cluster's addresses, security settings, and the prefix of the product's names."""

    servers: str
    """host:port, separated by commas."""
    security: tuple[tuple[str, str], ...] = ()
    """librdkafka's security settings; kept out of logs and errors."""
    replication: int = 3
    """Copies of each partition when topics are made; fewer if there are fewer brokers."""
    prefix: str = PREFIX
    """The prefix of this product's topics, groups and transactional ids on the cluster."""

    @classmethod
    def of(cls, settings: Settings) -> "KafkaAccess":
        """Make it from `kafka://host:port;host:port` and the other settings."""
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
        """Return the name on the cluster of what the program calls `name`: a topic, a group or a transactional id.

        With the default prefix they are the same. With `team-a.` the topic `spendstream.rows` is `team-a.rows` and the
        group `spendstream` is `team-a.workers`. No other module knows names of the cluster.
        """
        if self.prefix == PREFIX:
            return name
        return self.prefix + (name.removeprefix(ROOT).lstrip(".-") or "workers")

    def topic(self, wire: str) -> str:
        """Return the program's name of the topic that is called `wire` on the cluster."""
        return PREFIX + wire.removeprefix(self.prefix)

    def client(self) -> dict[str, Any]:
        """Return the configuration that all clients have in common."""
        return {
            "bootstrap.servers": self.servers,
            "client.id": "spendstream",
            "socket.keepalive.enable": True,
            "reconnect.backoff.max.ms": 1_000,
            "log_level": 2,  # a missing broker is logged once, by this program
            "receive.message.max.bytes": 4 * MAX_RECORD_BYTES,
            **dict(self.security),
        }

    def reader(self) -> dict[str, Any]:
        """Return the configuration of a consumer with manual assignment that never commits."""
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
        """Return the configuration of a producer whose records are on all in-sync replicas, once and in order."""
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
        """Return the configuration of a transactional producer; a process that later uses the same id fences it."""
        return {
            **self.producer(),
            "transactional.id": self.wire(transactional_id),
            "transaction.timeout.ms": TRANSACTION_MS,
            "message.timeout.ms": TRANSACTION_MS // 2,
            "linger.ms": 2,
            "compression.type": "lz4",
        }

    def member(self, group: str, instance: str) -> dict[str, Any]:
        """Return the configuration of a static member of the workers' group: if it is back within the session, it keeps
        its partitions.

        Not cooperative: a static member that is killed between giving partitions up and joining again would leave them
        without an owner, as its return starts no rebalance. Partitions that are given up are kept as warm copies
        instead, so that getting them back is fast.
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
