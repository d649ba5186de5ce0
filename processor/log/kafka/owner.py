"""A stand-in for the workers of a log on Kafka while none of them runs: the only writer of their partitions."""

import time
from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Assigned
from confluent_kafka.admin import AdminClient

from processor.log.errors import Locked, LogError, LogUnavailable
from processor.log.kafka.config import SESSION_MS, KafkaAccess
from processor.log.kafka.topics import PATIENCE
from processor.log.kafka.writer import Fenced, PartitionWriter
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS, GROUP

TRANSACTION_MS: Final = 900_000
"""The longest transaction that a broker allows by default, in milliseconds."""

LEAVE_PATIENCE: Final = SESSION_MS / 1000 + 10
"""Seconds to wait for members that were stopped: static members leave the group only after their session's timeout."""


class Owner:
    """The only writer of partitions of the tables (`processor.state.rebuild.Target`). If a worker joins meanwhile,
    either this writer is fenced or its commit is refused. `at` is the time of what is appended, in microseconds."""

    packs = False
    """A broker that compacts by key needs a record for each row."""

    def __init__(self, access: KafkaAccess, at: int) -> None:
        self._access = access
        self.at = at

    def check_alone(self, patience: float = LEAVE_PATIENCE) -> None:
        """Wait until the workers' group has no members. Raises `Locked` if it still has some, `LogUnavailable`."""
        deadline = time.monotonic() + patience
        while members := self._members():
            if time.monotonic() > deadline:
                raise Locked(
                    f"workers run on the log at {self._access.servers} ({', '.join(members)}): stop all of them first"
                )
            time.sleep(0.5)

    def _members(self) -> list[str]:
        admin: Any = AdminClient(self._access.client())
        try:
            group = self._access.wire(GROUP)
            found = admin.describe_consumer_groups([group], request_timeout=PATIENCE)[group].result(PATIENCE)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return []
            raise self._unavailable(error) from None
        except TimeoutError:
            raise LogUnavailable(f"no answer from Kafka at {self._access.servers}") from None
        return sorted(f"{member.group_instance_id or member.client_id} on {member.host}" for member in found.members)

    def append(self, number: int, appends: Sequence[Append]) -> list[int]:
        """Append to partitions of one number in one transaction, after fencing the process that wrote to them before.

        Return the offset of each append's first record. Durable on return, or nothing is appended. Raises `Locked` if a
        worker has taken over the partition meanwhile, `LogUnavailable`.
        """
        writer = PartitionWriter(self._access, f"{GROUP}.tables.{number}", TRANSACTION_MS)
        try:
            return writer.append(appends, self.at)
        except Fenced as error:
            raise Locked(
                f"a worker has taken partition {number} at {self._access.servers} meanwhile, so nothing of it was "
                f"written ({error}): stop all workers first"
            ) from None

    def delete(self, tp: TopicPartition, before: int) -> None:
        """Do nothing: the broker compacts replaced records."""

    def drop_damaged(self, tp: TopicPartition, offset: int) -> None:
        """Do nothing: a broker cannot delete a single record."""

    def commit(self, number: int, offset: int) -> None:
        """Commit the next offset of the events for the workers' group. Raises `LogError` if it has members."""
        client = Consumer({**self._access.reader(), "group.id": self._access.wire(GROUP)})
        try:
            client.commit(offsets=[Assigned(self._access.wire(EVENTS), number, offset)], asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_MEMBER_ID:
                raise LogError(
                    f"a worker has joined the group {self._access.wire(GROUP)} at {self._access.servers} meanwhile: "
                    "stop all workers, and run this again"
                ) from None
            raise self._unavailable(error) from None
        finally:
            client.close()

    def _unavailable(self, error: KafkaException) -> LogUnavailable:
        return LogUnavailable(f"no answer from Kafka at {self._access.servers}: {error.args[0].str()}")
