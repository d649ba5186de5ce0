"""The worker's group, without a broker: what must hold whatever librdkafka says when."""

import os
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as Assigned
from faust.types import TP

from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.transport import EXIT_FENCED, Consumer
from processor.log.topics import EVENTS


class Client:
    """Has partition 1 of two; to seek in another is an erroneous state."""

    def __init__(self) -> None:
        self.sought: list[tuple[int, int]] = []
        self.resumed: list[int] = []

    def assignment(self) -> list[Assigned]:
        return [Assigned(EVENTS, 1)]

    def seek(self, target: Assigned) -> None:
        assert target.partition == 1, "Local: Erroneous state"
        self.sought.append((target.partition, target.offset))

    def resume(self, partitions: list[Assigned]) -> None:
        self.resumed += [found.partition for found in partitions]


class Member(Consumer):
    """One of the group, without the rest of a worker."""

    def __init__(self, client: Client) -> None:
        self.client = cast(Any, client)
        self.app: Any = SimpleNamespace(resume_at=lambda number: 7)
        self._client = self.client
        self._holder = cast(Any, SimpleNamespace(access=KafkaAccess("127.0.0.1:9")))
        self._stash = deque()
        self._epoch, self._paused, self._leaving = 0, False, False

    def seek_committed(self, *partitions: int) -> dict[TP, int]:
        return self._seek_committed([TP(EVENTS, number) for number in partitions])

    def read(self) -> int:
        """How many messages are there then."""
        self._read(10, 0)
        return len(self._stash)

    def commit_now(self) -> bool:
        return self._commit_now(self.client, EVENTS, {TP(EVENTS, 0): 7})


def test_a_partition_that_was_lost_meanwhile_is_not_sought() -> None:
    """It was, for 20 s, in which the group was not served; then the worker ended."""
    client = Client()
    member = Member(client)
    assert member.seek_committed(0, 1) == {TP(EVENTS, 1): 7}
    assert (client.sought, client.resumed) == ([(1, 7)], [1])
    assert member.seek_committed(0) == {}


class Ended(Exception):
    """Instead of the end of the process."""


class Message:
    """What librdkafka hands out for an error."""

    def __init__(self, error: KafkaError) -> None:
        self.error = lambda: error


class Failing(Client):
    """Meets an error whatever it is asked."""

    def __init__(self, error: KafkaError) -> None:
        super().__init__()
        self._error = error

    def consume(self, limit: int, wait: float) -> list[Message]:
        return [Message(self._error)]

    def commit(self, **_: Any) -> None:
        raise KafkaException(self._error)


@pytest.mark.parametrize(
    "error", [KafkaError(KafkaError.FENCED_INSTANCE_ID), KafkaError(KafkaError._FATAL, "of the client", True)]
)
def test_a_worker_whose_client_is_dead_ends_with_it(error: KafkaError, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that was killed in the middle of a rebalance took its members for others: they stood still."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    member = Member(Failing(error))
    with pytest.raises(Ended, match=str(EXIT_FENCED)):
        member.read()
    with pytest.raises(Ended, match=str(EXIT_FENCED)):
        member.commit_now()


def test_what_passes_is_waited_out() -> None:
    member = Member(Failing(KafkaError(KafkaError._TRANSPORT)))
    assert member.read() == 0
    assert member.commit_now() is False
