"""The worker's group, without a broker: what must hold whatever librdkafka says when."""

from collections import deque
from typing import Any

from confluent_kafka import TopicPartition as Assigned
from faust.types import TP

from processor.log.kafka_transport import Consumer
from processor.log.topics import EVENTS


class Client:
    """Has partition 1 of two; to seek in another is an erroneous state."""

    def __init__(self) -> None:
        self.sought: list[tuple[int, int]] = []
        self.resumed: list[int] = []

    def assignment(self) -> list[Assigned]:
        return [Assigned(EVENTS, 1)]

    def committed(self, asked: list[Assigned], patience: float) -> list[Assigned]:
        return [Assigned(found.topic, found.partition, 7) for found in asked]

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
    assert consumer._seek_committed([TP(EVENTS, 0), TP(EVENTS, 1)]) == {TP(EVENTS, 1): 7}
    assert (client.sought, client.resumed) == ([(1, 7)], [1])
    assert consumer._seek_committed([TP(EVENTS, 0)]) == {}
