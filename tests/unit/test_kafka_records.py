"""What is made of the messages that librdkafka hands out, without a broker."""

import pytest
from confluent_kafka import KafkaError

from processor.log.errors import DamagedRecord, LogUnavailable
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.log import records_until_damage, sound_records
from processor.log.topics import ROWS

ACCESS = KafkaAccess("localhost:9092", prefix="team-a.")


class Message:
    """One of the topic team-a.rows, partition 3."""

    def __init__(self, offset: int, error: int | None = None) -> None:
        self._offset = offset
        self._error = None if error is None else KafkaError(error)

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return "team-a.rows"

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"v"

    def timestamp(self) -> tuple[int, int]:
        return (1, 5)


EOF = KafkaError._PARTITION_EOF


def test_records_up_to_the_end() -> None:
    records, at_end = sound_records([Message(1), Message(4), Message(5, EOF)], at_end=False, access=ACCESS)
    assert ([record.offset for record in records], at_end) == ([1, 4], True)
    assert sound_records([], at_end=True, access=ACCESS) == ([], True)
    assert sound_records([Message(6)], at_end=True, access=ACCESS)[1] is False


@pytest.mark.parametrize(
    "code", [KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError._NOT_IMPLEMENTED, KafkaError.INVALID_MSG]
)
def test_a_damaged_record_is_named_and_nothing_after_it_is_believed(code: int) -> None:
    messages = [Message(1), Message(2), Message(3, code), Message(10**18, KafkaError._NOT_IMPLEMENTED), Message(0)]
    records, at_end, damaged = records_until_damage(messages, at_end=False, access=ACCESS)
    assert ([record.offset for record in records], at_end) == ([1, 2], False)
    assert damaged is not None
    assert (damaged.topic, damaged.name, damaged.partition, damaged.offset) == (ROWS, "team-a.rows", 3, 3)
    with pytest.raises(DamagedRecord, match=r"record team-a\.rows:3:3 is damaged"):
        sound_records(messages, at_end=False, access=ACCESS)


def test_offsets_that_go_back_name_the_record_before() -> None:
    """The checksum of a batch leaves its first offset out: with a bit flipped there, 3 becomes 11."""
    records, _, damaged = records_until_damage(
        [Message(1), Message(2), Message(11), Message(4), Message(5)], at_end=False, access=ACCESS
    )
    assert [record.offset for record in records] == [1, 2]
    assert damaged is not None
    assert str(damaged) == "record team-a.rows:3:11 is damaged: the offsets go back from it to 4"


def test_errors_of_the_connection_pass_and_others_do_not() -> None:
    records, _ = sound_records(
        [Message(1), Message(-1, KafkaError._TRANSPORT), Message(2)], at_end=False, access=ACCESS
    )
    assert [record.offset for record in records] == [1, 2]
    with pytest.raises(LogUnavailable, match="cannot read from Kafka"):
        sound_records([Message(-1, KafkaError.TOPIC_AUTHORIZATION_FAILED)], at_end=False, access=ACCESS)
