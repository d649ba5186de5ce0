"""A plain consumer of `spendstream.users`, as anybody would write one."""

import asyncio
import json
import time
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, TopicPartition

from tests.support.clients import Reader
from tests.support.patience import PROCESS_PATIENCE
from tests.support.truth import plain_decimal

USERS = "spendstream.users"

_SETTINGS: Final[dict[str, str | bool]] = {
    "group.id": "a-reader",
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
    "enable.partition.eof": True,
}


class Said(NamedTuple):
    """What the topic says."""

    rows: dict[tuple[str, str | None], dict[str, Any]]
    """(project, user) -> the newest row."""
    fell: list[str]
    """Rows that were followed by an older value."""


class TopicFollower:
    """Keeps a table of the topic; it reads on where it broke off, as a consumer that keeps its own offsets does."""

    def __init__(self, servers: str) -> None:
        self.said = Said({}, [])
        self.records = 0
        self.offsets: dict[int, int] = {}
        self._settings = {**_SETTINGS, "bootstrap.servers": servers}

    @property
    def requests(self) -> int:
        """Events in the table."""
        return sum(row["requests"] for row in self.said.rows.values())

    def read(self, seconds: float) -> None:
        """Read for so long, then break off. Blocks."""
        consumer = Consumer(self._settings)
        try:
            there = consumer.list_topics(USERS, 10).topics[USERS].partitions
            consumer.assign([TopicPartition(USERS, number, self.offsets.get(number, 0)) for number in there])
            deadline = time.monotonic() + seconds
            message: Any
            while time.monotonic() < deadline:
                for message in consumer.consume(1000, 0.05):
                    if message.error() is None:
                        _take(self.said, message.key(), message.value())
                        self.offsets[message.partition()] = message.offset() + 1
                        self.records += 1
        finally:
            consumer.close()


def consume(servers: str, topic: str = USERS) -> Said:
    """Read the topic, by its name on the cluster, from its beginning to its end. Blocks."""
    consumer = Consumer({**_SETTINGS, "bootstrap.servers": servers})
    try:
        open_ = set(consumer.list_topics(topic, 10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in open_])
        said = Said({}, [])
        deadline = time.monotonic() + PROCESS_PATIENCE
        while open_:
            assert time.monotonic() < deadline, f"partitions {open_} have no end"
            message: Any
            for message in consumer.consume(5000, 0.1):
                error = message.error()
                if error is not None:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    open_.discard(message.partition())
                else:
                    _take(said, message.key(), message.value())
        return said
    finally:
        consumer.close()


def _take(said: Said, key: bytes, value: bytes | None) -> None:
    project, user = json.loads(key)
    old = said.rows.pop((project, user), None)
    if value is None:
        return
    row = json.loads(value, parse_float=plain_decimal)
    assert (row["project_id"], row["user_id"]) == (project, user)
    if old is not None and (row["requests"] < old["requests"] or row["cost_usd"] < old["cost_usd"]):
        said.fell.append(f"{user!r}: {old} was followed by {row}")
    said.rows[project, user] = row


async def differences(
    servers: str, reader: Reader, project: str = "default", patience: float = PROCESS_PATIENCE, topic: str = USERS
) -> list[str]:
    """What the topic says of a project that all pages of `GET /v1/users` do not, once it has had time to."""
    deadline = time.monotonic() + patience
    while True:
        listed = {row["user_id"]: row for row in (await reader.users())[0]}
        said = await asyncio.to_thread(consume, servers, topic)
        rows = {user: dict(row) for (home, user), row in said.rows.items() if home == project}
        for row in rows.values():
            assert row.pop("project_id") == project
        found = [
            f"{user!r}: {rows.get(user)}, not {listed.get(user)}"
            for user in rows.keys() | listed.keys()
            if rows.get(user) != listed.get(user)
        ]
        if not found or time.monotonic() > deadline:
            return found + said.fell
        await asyncio.sleep(0.2)
