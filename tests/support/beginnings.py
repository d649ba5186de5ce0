"""Takes the beginnings of topics on a broker away, as retention does."""

import time
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource

from tests.support.patience import PROCESS_PATIENCE


def set_policy(admin: Any, topic: str, policy: str) -> None:
    """Set `cleanup.policy` of a topic; the broker goes by it a moment later."""
    entry = ConfigEntry("cleanup.policy", policy, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(20)


def delete_beginnings(admin: Any, heads: list[TopicPartition], *, is_compacted: bool) -> None:
    """Delete the records before these offsets of one topic; then it is set up as before.

    What is compacted is not deleted until somebody says so, and no start takes it as it is then.
    """
    if is_compacted:
        set_policy(admin, heads[0].topic, "compact,delete")
    deadline = time.monotonic() + PROCESS_PATIENCE
    for head in heads:
        while True:
            [future] = admin.delete_records([head]).values()
            try:
                future.result(20)
            except KafkaException as error:  # the answer came before the setting was in force
                if error.args[0].code() != KafkaError.POLICY_VIOLATION or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                break
    if is_compacted:
        set_policy(admin, heads[0].topic, "compact")
