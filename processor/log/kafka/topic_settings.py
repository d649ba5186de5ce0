"""The settings of the topics on a cluster: what the log needs of each, what was found, and the command that mends it.

An administrator may have changed them since the topics were made. What would lose or repeat events is refused at every
start; what is only less safe is warned of.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource

from processor.log.errors import LogError, LogUnavailable
from processor.log.kafka.config import MAX_RECORD_BYTES, KafkaAccess
from processor.log.topics import COMPACTED, EVENTS, USERS
from processor.structured_log import get_logger

PATIENCE: Final = 10.0
"""Seconds to wait for the answer."""

MAX_BYTES: Final = "max.message.bytes"
_DENIED: Final = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)


def insync(replicas: int) -> int:
    """How many replicas must have a record before it is acknowledged."""
    return 2 if replicas > 2 else 1


def wanted(topic: str, replicas: int) -> dict[str, str]:
    """The settings that a topic is made with."""
    compacted = topic in COMPACTED
    return {
        "cleanup.policy": "compact" if compacted else "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        MAX_BYTES: str(MAX_RECORD_BYTES),
        "min.insync.replicas": str(insync(replicas)),
        "unclean.leader.election.enable": "false",
        "message.timestamp.type": "CreateTime",
        **({"min.cleanable.dirty.ratio": "0.3", "segment.ms": "3600000"} if compacted else {}),
        **({"compression.type": "lz4"} if topic == USERS else {}),
    }


class SettingFault(NamedTuple):
    """A setting of a topic that is not as it has to be."""

    setting: str
    found: str
    needed: str
    is_fatal: bool
    """True: events would be lost or counted twice, or could not be stored. False: they are only less safe."""

    def told(self, servers: str, wire: str) -> str:
        """What is wrong, and the command that mends it; `wire` is the topic's name on the cluster."""
        command = (
            f"kafka-configs.sh --bootstrap-server {servers} --alter --entity-type topics --entity-name {wire} "
            f"--add-config {self.setting}={self.needed}"
        )
        return f"{wire}: {self.setting} is {self.found}, and must be {self.needed}: {command}"


def faults(topic: str, replicas: int, found: Mapping[str, str]) -> Iterator[SettingFault]:
    """Return what is wrong with the settings `found` of a topic. A setting that the broker does not know is ignored."""
    needed = wanted(topic, replicas)
    deletes = "delete" in found.get("cleanup.policy", "")
    if found.get("cleanup.policy", needed["cleanup.policy"]) != needed["cleanup.policy"]:
        yield SettingFault("cleanup.policy", found["cleanup.policy"], needed["cleanup.policy"], is_fatal=True)
    for name in ("retention.ms", "retention.bytes"):
        # Of a compacted topic it has no effect; events that are in the tables are needed for `verify` only.
        if int(found.get(name, "-1")) >= 0:
            yield SettingFault(name, found[name], "-1", is_fatal=deletes and topic != EVENTS)
    if int(found.get(MAX_BYTES, needed[MAX_BYTES])) < MAX_RECORD_BYTES:
        yield SettingFault(MAX_BYTES, found[MAX_BYTES], needed[MAX_BYTES], is_fatal=True)
    if int(found.get("min.insync.replicas", needed["min.insync.replicas"])) < insync(replicas):
        yield SettingFault(
            "min.insync.replicas", found["min.insync.replicas"], needed["min.insync.replicas"], is_fatal=False
        )
    for name in ("unclean.leader.election.enable", "message.timestamp.type"):
        if found.get(name, needed[name]) != needed[name]:
            yield SettingFault(name, found[name], needed[name], is_fatal=False)


def check(access: KafkaAccess, replicas: Mapping[str, int]) -> None:
    """Check the settings of topics; log a warning for those that make events less safe.

    `replicas` has the topics that exist, by the names of the program. Raises `LogError`, with a list of all faults, for
    settings that would lose or repeat events; `LogUnavailable`.
    """
    fatal: list[str] = []
    for topic, found in _describe(access, replicas):
        for fault in faults(topic, replicas[topic], found):
            told = fault.told(access.servers, access.wire(topic))
            if fault.is_fatal:
                fatal.append(told)
            else:
                get_logger().warning("topic.setting", problem=told)
    if fatal:
        lines = "\n  ".join(fatal)
        raise LogError(
            f"topics at {access.servers} have settings under which events are lost or counted twice. Correct them, run "
            f"`spendstream verify`, and start again:\n  {lines}"
        )


def check_size(access: KafkaAccess) -> None:
    """Raise `LogUnavailable` if the events topic does not accept the largest message."""
    for _, found in _describe(access, [EVENTS]):
        for fault in faults(EVENTS, 1, found):
            if fault.setting == MAX_BYTES:
                raise LogUnavailable(fault.told(access.servers, access.wire(EVENTS)))


def _describe(access: KafkaAccess, topics: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Return the settings of topics; log a warning for a topic that this client may not describe, and leave it out."""
    asked = {topic: ConfigResource(ConfigResource.Type.TOPIC, access.wire(topic)) for topic in topics}
    if not asked:
        return
    admin = AdminClient(access.client())  # has to live until the answers are there
    answers = admin.describe_configs(list(asked.values()), request_timeout=PATIENCE)
    for topic, resource in asked.items():
        try:
            entries = answers[resource].result(PATIENCE)
        except (KafkaException, TimeoutError) as error:
            code = error.args[0].code() if isinstance(error, KafkaException) else None
            if code not in _DENIED:
                raise LogUnavailable(f"no answer from Kafka at {access.servers}: {error}") from None
            get_logger().warning("topic.unchecked", topic=access.wire(topic), error=str(error))
        else:
            yield topic, {name: entry.value for name, entry in entries.items() if entry.value is not None}
