"""The topics of a log on Kafka: made with the right settings, checked when it is opened; and their meta record."""

import secrets
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.cimpl import NewTopic
from msgspec import Struct

from processor.log.errors import FormatError, LogError, LogUnavailable, PartitionMismatch
from processor.log.kafka_config import MAX_RECORD_BYTES, KafkaAccess
from processor.log.topics import COMPACTED, EVENTS, PARTITIONED_ON_KAFKA, SINGLE, USERS

FORMAT: Final = 1
DEFAULT_PARTITIONS: Final = 6
MAX_PARTITIONS: Final = 1024
OLDEST: Final = "2.3"
"""The first Kafka whose groups have static members (KIP-345)."""
PATIENCE: Final = 10.0
"""Seconds to wait for the cluster to answer."""

META: Final = b"meta/"
"""Key prefix of the meta record in the directory. The first one counts; every try has a key of its own, so that
compaction keeps the first."""


class Meta(Struct, frozen=True):
    """What is chosen once for a log."""

    format: int
    salt: str
    identity: str


class Layout(NamedTuple):
    """What is there."""

    topics: Mapping[str, int]
    """topic -> partitions"""
    brokers: int

    @property
    def partitions(self) -> int:
        return self.topics.get(EVENTS, 0)


def layout(access: KafkaAccess) -> Layout:
    """The topics of the cluster that are ours. Raises `LogUnavailable` if no broker answers, and says why if known."""
    found = _ask(access)
    ours = {*PARTITIONED_ON_KAFKA, *SINGLE}
    counts = {name: len(topic.partitions) for name, topic in found.topics.items() if name in ours}
    return Layout(counts, len(found.brokers))


def _ask(access: KafkaAccess) -> Any:
    reasons: list[str] = []
    settings: Any = {**access.client(), "error_cb": lambda error: reasons.append(error.str())}
    admin = AdminClient(settings)
    try:
        return admin.list_topics(timeout=PATIENCE)
    except KafkaException as error:
        admin.poll(0)  # what it met on the way: a wrong password, a certificate that is not trusted
        told = next(iter(reasons), _text(error))
        raise LogUnavailable(f"no Kafka broker answers at {access.servers}: {told}") from None


def check_version(access: KafkaAccess) -> None:
    """Refuse brokers that are too old for what the workers need, before anything is made there.

    No client is told a broker's version. But IncrementalAlterConfigs (KIP-339) came with the same release as static
    members, and librdkafka knows without asking further which brokers have it: so one is asked to validate, and not to
    make, a change of nothing. All other answers, a refusal too, come from a broker that is new enough.
    """
    entry = ConfigEntry("retention.ms", "-1", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, EVENTS, incremental_configs=[entry])
    admin = AdminClient(access.client())
    try:
        admin.incremental_alter_configs([resource], validate_only=True)[resource].result(PATIENCE)
    except KafkaException as error:
        if error.args[0].code() == KafkaError._UNSUPPORTED_FEATURE:
            raise LogError(
                f"the brokers at {access.servers} are too old: spendstream needs Kafka {OLDEST} or newer, for workers "
                "that keep their partitions over a restart. Upgrade the cluster, or name another one"
            ) from None
    except TimeoutError:
        pass  # whoever needs an answer next says that there is none


def check_writable(access: KafkaAccess) -> None:
    """Raises `LogUnavailable` unless every partition of the events has a leader and enough replicas in sync."""
    events = _ask(access).topics.get(EVENTS)
    if events is None or not events.partitions:
        raise LogUnavailable(f"Kafka at {access.servers} has no topic {EVENTS}")
    for number, partition in events.partitions.items():
        if partition.leader < 0:
            raise LogUnavailable(f"{EVENTS} [{number}] at {access.servers} has no leader")
        if len(partition.isrs) < _insync(len(partition.replicas)):
            raise LogUnavailable(f"{EVENTS} [{number}] at {access.servers} has too few replicas in sync")


def _insync(replicas: int) -> int:
    """How many replicas must have a record before it is acknowledged."""
    return 2 if replicas > 2 else 1


def check(found: Layout, servers: str, asked: int | None) -> None:
    """Refuse a log whose partition count is another one than asked for, or whose topics do not fit each other."""
    counts = {name: count for name, count in found.topics.items() if name not in SINGLE}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
        raise PartitionMismatch(
            f"the topics at {servers} have different numbers of partitions ({told}): somebody changed one of them; "
            "events would be counted twice. Put it back, or export the events into a new cluster"
        )
    if asked is not None and counts and asked != found.partitions:
        raise PartitionMismatch(
            f"the log at {servers} has {found.partitions} partition(s), not {asked}: the number is chosen once, when "
            f"the topics are made. Start with {found.partitions} or leave the setting out; for another number, export "
            "the events into a new cluster"
        )


def create(access: KafkaAccess, found: Layout, asked: int | None) -> None:
    """Make the topics that are missing. Another process may do the same at the same time."""
    partitions = found.partitions or asked or DEFAULT_PARTITIONS
    if not 1 <= partitions <= MAX_PARTITIONS:
        raise LogError(f"a log has 1 to {MAX_PARTITIONS} partitions, not {partitions}")
    replication = max(1, min(access.replication, found.brokers))
    missing = [
        NewTopic(
            name,
            num_partitions=1 if name in SINGLE else partitions,
            replication_factor=replication,
            config=_config(name, replication),
        )
        for name in (*PARTITIONED_ON_KAFKA, *SINGLE)
        if name not in found.topics
    ]
    if not missing:
        return
    admin = AdminClient(access.client())
    for name, future in admin.create_topics(missing, operation_timeout=PATIENCE).items():
        try:
            future.result(PATIENCE)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise LogError(f"cannot create the topic {name} at {access.servers}: {_text(error)}") from None


def _config(name: str, replication: int) -> dict[str, str]:
    compacted = name in COMPACTED
    return {
        "cleanup.policy": "compact" if compacted else "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "max.message.bytes": str(MAX_RECORD_BYTES),
        "min.insync.replicas": str(_insync(replication)),
        "unclean.leader.election.enable": "false",
        "message.timestamp.type": "CreateTime",
        **({"min.cleanable.dirty.ratio": "0.3", "segment.ms": "3600000"} if compacted else {}),
        **({"compression.type": "lz4"} if name == USERS else {}),
    }


def new_meta() -> tuple[bytes, bytes]:
    """Key and value of a proposal."""
    meta = Meta(FORMAT, secrets.token_hex(32), secrets.token_hex(4))
    return META + secrets.token_hex(8).encode(), msgspec.json.encode(meta)


def read_meta(value: bytes, servers: str) -> Meta:
    """The record that counts. Raises `FormatError` for one of a newer program."""
    meta = msgspec.json.decode(value, type=Meta)
    if meta.format > FORMAT:
        raise FormatError(
            f"the log at {servers} has format {meta.format}, this program knows formats up to {FORMAT}: "
            "it was written by a newer spendstream; use that one"
        )
    return meta


def _text(error: KafkaException) -> str:
    found = error.args[0]
    return found.str() if isinstance(found, KafkaError) else str(error)
