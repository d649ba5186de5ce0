"""The topics of a log on Kafka: made with the right settings, checked when it is opened; and their meta record."""

import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.cimpl import NewTopic
from msgspec import Struct

from processor.log.errors import FormatError, LogError, LogUnavailable, PartitionMismatch
from processor.log.kafka import topic_settings
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.topic_settings import insync, wanted
from processor.log.topics import EVENTS, PARTITIONED_ON_KAFKA
from processor.log.topics import SINGLE_ON_KAFKA as SINGLE

FORMAT: Final = 1
DEFAULT_PARTITIONS: Final = 6
MAX_PARTITIONS: Final = 1024
OLDEST: Final = "2.3"
"""The first Kafka whose groups have static members (KIP-345)."""
PATIENCE: Final = 10.0
"""Seconds to wait for the cluster to answer."""

_TOPICS: Final = "kafka-topics.sh"
ALL: Final = (*PARTITIONED_ON_KAFKA, *SINGLE)

META: Final = b"meta/"
"""Key prefix of the meta record in the directory. The first one counts; each has a key of its own, so that compaction
keeps the first."""


class Meta(Struct, frozen=True):
    """What is chosen once for a log."""

    format: int
    salt: str
    identity: str
    partitions: int | None = None
    """Partitions of the events and their tables. None in records of earlier versions: a later record has it."""


class TopicLayout(NamedTuple):
    """The topics that exist."""

    topics: Mapping[str, int]
    """topic -> partitions"""
    replicas: Mapping[str, int]
    """topic -> copies of its first partition"""
    brokers: int

    @property
    def fewest(self) -> int:
        """The least number of partitions among the topics that are partitioned; 0 if there are none yet.

        An administrator can only add partitions: where no record has the number, this is the best guess.
        """
        counts = [count for name, count in self.topics.items() if name not in SINGLE and count]
        return min(counts, default=0)


def layout(access: KafkaAccess) -> TopicLayout:
    """Return the product's topics on the cluster. Raises `LogUnavailable`, with the reason if known, if no broker
    answers."""
    found = _ask(access)
    wires = {name: access.wire(name) for name in ALL}
    there = {name: found.topics[wire].partitions for name, wire in wires.items() if wire in found.topics}
    counts = {name: len(partitions) for name, partitions in there.items()}
    replicas = {name: len(partitions[0].replicas) for name, partitions in there.items() if partitions}
    return TopicLayout(counts, replicas, len(found.brokers))


def _ask(access: KafkaAccess) -> Any:
    reasons: list[str] = []
    settings: Any = {**access.client(), "error_cb": lambda error: reasons.append(error.str())}
    admin = AdminClient(settings)
    try:
        return admin.list_topics(timeout=PATIENCE)
    except KafkaException as error:
        admin.poll(0)  # collects the client's errors, like a wrong password or an untrusted certificate
        told = next(iter(reasons), _text(error))
        raise LogUnavailable(f"no Kafka broker answers at {access.servers}: {told}") from None


def check_version(access: KafkaAccess) -> None:
    """Raise `LogError` for brokers that are too old for the workers, before anything is created there.

    Kafka's protocol does not report a broker's version. But IncrementalAlterConfigs (KIP-339) came with the same
    release as static members, and librdkafka knows which brokers have it. So one is asked to validate, without applying
    it, an empty change. Any other answer, even a refusal, comes from a broker that is new enough.
    """
    entry = ConfigEntry("retention.ms", "-1", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, access.wire(EVENTS), incremental_configs=[entry])
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
        pass  # the next call that needs an answer reports that there is none


def check_writable(access: KafkaAccess) -> None:
    """Raise `LogUnavailable` unless every partition of the events has a leader and enough replicas in sync, and accepts
    the largest message."""
    wire = access.wire(EVENTS)
    events = _ask(access).topics.get(wire)
    if events is None or not events.partitions:
        raise LogUnavailable(f"Kafka at {access.servers} has no topic {wire}")
    for number, partition in events.partitions.items():
        if partition.leader < 0:
            raise LogUnavailable(f"{wire} [{number}] at {access.servers} has no leader")
        if len(partition.isrs) < insync(len(partition.replicas)):
            raise LogUnavailable(f"{wire} [{number}] at {access.servers} has too few replicas in sync")
    topic_settings.check_size(access)


def check(access: KafkaAccess, found: TopicLayout, partitions: int, asked: int | None) -> None:
    """Refuse a log whose partition count, `partitions`, is another one than asked for, or with topics of fewer.

    More are no harm: they are not used. Raises `PartitionMismatch`.
    """
    counts = {access.wire(name): count for name, count in found.topics.items() if name not in SINGLE}
    fewer = [f"{wire} has {count}" for wire, count in sorted(counts.items()) if count < partitions]
    if fewer:
        raise PartitionMismatch(
            f"the log at {access.servers} was made with {partitions} partitions, and {', '.join(fewer)}: a topic was "
            f"deleted and made anew. Add the missing partitions ({_TOPICS} --bootstrap-server {access.servers} "
            f"--alter --topic NAME --partitions {partitions}), and run `spendstream verify` before events are taken"
        )
    if asked is not None and counts and asked != partitions:
        raise PartitionMismatch(
            f"the log at {access.servers} has {partitions} partition(s), not {asked}: the number is chosen once, when "
            f"the topics are made. Start with {partitions} or leave the setting out; for another number, export "
            "the events into a new cluster"
        )


def create(access: KafkaAccess, found: TopicLayout, partitions: int) -> None:
    """Make the topics that are missing. Another process may do the same at the same time."""
    if not 1 <= partitions <= MAX_PARTITIONS:
        raise LogError(f"a log has 1 to {MAX_PARTITIONS} partitions, not {partitions}")
    replication = max(1, min(access.replication, found.brokers))
    missing = [
        NewTopic(
            access.wire(name),
            num_partitions=1 if name in SINGLE else partitions,
            replication_factor=replication,
            config=wanted(name, replication),
        )
        for name in ALL
        if name not in found.topics
    ]
    if not missing:
        return
    admin = AdminClient(access.client())
    for wire, future in admin.create_topics(missing, operation_timeout=PATIENCE).items():
        try:
            future.result(PATIENCE)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise LogError(f"cannot create the topic {wire} at {access.servers}: {_text(error)}") from None


def proposal(known: Meta | None, partitions: int) -> tuple[bytes, bytes]:
    """Key and value of a meta record: of a new log, or of one whose record lacks the number of partitions."""
    made = known or Meta(FORMAT, secrets.token_hex(32), secrets.token_hex(4))
    made = msgspec.structs.replace(made, partitions=partitions)
    return META + secrets.token_hex(8).encode(), msgspec.json.encode(made)


def settled(values: Iterable[bytes], servers: str) -> Meta | None:
    """What the meta records say, in the order of the directory; None if there is none.

    The first one counts, and the first of the same identity that has the number of partitions for that. Raises
    `FormatError` for a record of a newer program.
    """
    found: Meta | None = None
    for value in values:
        meta = _decode(value, servers)
        if found is None:
            found = meta
        elif meta.identity == found.identity:
            found = msgspec.structs.replace(found, partitions=meta.partitions)
        if found.partitions is not None:
            return found
    return found


def _decode(value: bytes, servers: str) -> Meta:
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
