"""What is made of many of librdkafka's messages at once is what is made of one after the other."""

import random
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message

from processor.log.errors import LogUnavailable
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.fetched import by_partition, sound_part
from processor.log.kafka.log import records_until_damage
from processor.log.records import Record, pairs_of
from tests.support.examples import tries

ACCESS = KafkaAccess("localhost:9092", prefix="")


def message(offset: int, error: int | None = None, key: bytes | None = b"k", topic: str = "rows") -> Any:
    """One of partition 3."""
    made: Any = Message
    found = None if error is None else KafkaError(error)
    return made(topic, 3, offset, key, b"v%d" % offset, None, found, (1, 5))


KINDS = [None] * 12 + [
    KafkaError._PARTITION_EOF,
    KafkaError._BAD_MSG,
    KafkaError._TRANSPORT,
]


def test_equals_one_after_the_other() -> None:
    for seed in range(tries(200)):
        check(random.Random(seed))


def check(rng: random.Random) -> None:
    """Some messages, read both ways."""
    offsets = sorted(rng.sample(range(100), rng.randrange(12)))
    if rng.random() < 0.2:
        rng.shuffle(offsets)
    messages = [message(offset, rng.choice(KINDS), rng.choice([b"a", b"", None])) for offset in offsets]
    at_end = rng.random() < 0.5
    records, ended, damaged = sound_part(messages, at_end, ACCESS)
    expected, expected_end, expected_damage = records_until_damage(messages, at_end, ACCESS)
    assert (list(records), ended, repr(damaged)) == (expected, expected_end, repr(expected_damage))
    assert pairs_of(records) == pairs_of(expected)
    if records:
        assert (records[0], records[-1], records[1:]) == (expected[0], expected[-1], expected[1:])


def test_an_error_that_does_not_pass_is_raised() -> None:
    with pytest.raises(LogUnavailable, match="cannot read from Kafka"):
        sound_part([message(1), message(2, KafkaError.TOPIC_AUTHORIZATION_FAILED)], at_end=False, access=ACCESS)


def test_messages_of_several_partitions_stay_in_order() -> None:
    messages = [message(1), message(7, topic="claims"), message(2), message(3, KafkaError._PARTITION_EOF)]
    found = by_partition(messages)
    assert {place: [each.offset() for each in group] for place, group in found.items()} == {
        ("rows", 3): [1, 2, 3],
        ("claims", 3): [7],
    }


def test_a_record_is_an_object_where_it_is_looked_at() -> None:
    records, at_end, _ = sound_part(
        [message(4), message(9), message(10, KafkaError._PARTITION_EOF)], at_end=False, access=ACCESS
    )
    assert at_end
    assert list(records) == [Record(4, 5000, b"k", b"v4"), Record(9, 5000, b"k", b"v9")]
    assert pairs_of(records) == [(b"k", b"v4"), (b"k", b"v9")]
