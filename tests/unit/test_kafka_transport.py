"""The worker's group, without a broker: what must hold whatever librdkafka says when."""

import os
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as Assigned
from faust.types import TP

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


def test_a_partition_that_was_lost_meanwhile_is_not_sought() -> None:
    """It was, for 20 s, in which the group was not served; then the worker ended."""
    client = Client()
    consumer: Any = object.__new__(Consumer)
    consumer._client = client
    consumer._stash = deque()
    consumer.app = SimpleNamespace(resume_at=lambda number: 7)
    assert consumer._seek_committed([TP(EVENTS, 0), TP(EVENTS, 1)]) == {TP(EVENTS, 1): 7}
    assert (client.sought, client.resumed) == ([(1, 7)], [1])
    assert consumer._seek_committed([TP(EVENTS, 0)]) == {}


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


def failing(error: KafkaError) -> Any:
    consumer: Any = object.__new__(Consumer)
    consumer._client = Failing(error)
    consumer._stash, consumer._epoch, consumer._paused, consumer._leaving = deque(), 0, False, False
    return consumer


@pytest.mark.parametrize(
    "error", [KafkaError(KafkaError.FENCED_INSTANCE_ID), KafkaError(KafkaError._FATAL, "of the client", True)]
)
def test_a_worker_whose_client_is_dead_ends_with_it(error: KafkaError, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that was killed in the middle of a rebalance took its members for others: they stood still."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    consumer = failing(error)
    with pytest.raises(Ended, match=str(EXIT_FENCED)):
        consumer._read(10, 0)
    with pytest.raises(Ended, match=str(EXIT_FENCED)):
        consumer._commit_now(consumer._client, EVENTS, {TP(EVENTS, 0): 7})


def test_what_passes_is_waited_out() -> None:
    consumer = failing(KafkaError(KafkaError._TRANSPORT))
    consumer._read(10, 0)
    assert consumer._commit_now(consumer._client, EVENTS, {TP(EVENTS, 0): 7}) is False
    assert not consumer._stash
