"""A consumer ends only when nothing that it has asked for is left to arrive."""

from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from processor.log.kafka.closing import ANSWER_PATIENCE, close_reader


class FakeConsumer:
    """Writes down what is called; `away`: no broker answers."""

    def __init__(self, assigned: list[TopicPartition], *, away: bool = False) -> None:
        self.calls: list[str] = []
        self.patience: list[float] = []
        self._assigned = assigned
        self._away = away

    def assignment(self) -> list[TopicPartition]:
        return list(self._assigned)

    def unassign(self) -> None:
        self.calls.append("unassign")
        self._assigned = []

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        self.calls.append(f"ask {partition.partition}")
        self.patience.append(timeout)
        if self._away:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return 0, 1

    def close(self) -> None:
        self.calls.append("close")


def closed(*numbers: int, **options: Any) -> FakeConsumer:
    consumer = FakeConsumer([TopicPartition("events", number) for number in numbers], **options)
    close_reader(cast(Consumer, consumer))
    return consumer


def test_each_leader_has_answered_before_the_end() -> None:
    assert closed(3, 5).calls == ["unassign", "ask 3", "ask 5", "close"]


def test_one_that_reads_nothing_asks_nobody() -> None:
    assert closed().calls == ["unassign", "close"]


@pytest.mark.parametrize("numbers", [(0,), (0, 1, 2)])
def test_brokers_that_are_away_are_asked_once_and_not_for_long(numbers: tuple[int, ...]) -> None:
    consumer = closed(*numbers, away=True)
    assert consumer.calls == ["unassign", "ask 0", "close"]
    assert 0 < sum(consumer.patience) <= ANSWER_PATIENCE
