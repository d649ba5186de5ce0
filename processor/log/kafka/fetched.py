"""Records as librdkafka has read them: one call of C for all of them where Python would need one for each."""

from collections.abc import Sequence
from itertools import islice
from operator import lt
from typing import Any, Final, overload

from confluent_kafka import KafkaError, Message

from processor.log.errors import DamagedRecord
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.log import record_of, records_until_damage
from processor.log.records import Fetched, Record

_EOF: Final = KafkaError._PARTITION_EOF

Messages = list[Any]
"""Of librdkafka."""


class FetchedRecords(Fetched):
    """Sound records of one partition, in order."""

    def __init__(self, messages: Messages, first: int, last: int) -> None:
        """`first` and `last` are the offsets of the first and the last one; there is at least one."""
        self._messages = messages
        self.first, self.last = first, last

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [record_of(message) for message in self._messages[index]]
        return record_of(self._messages[index])

    def pairs(self) -> list[tuple[bytes, bytes | None]]:
        """See `pairs_of`."""
        keys: list[Any] = list(map(Message.key, self._messages))
        if None in keys:
            keys = [key or b"" for key in keys]
        values: Any = map(Message.value, self._messages)
        return list(zip(keys, values, strict=True))


def by_partition(messages: Messages) -> dict[tuple[str | None, int], Messages]:
    """Return (topic, partition) -> its messages, in order; errors of the connection name no topic."""
    found: dict[tuple[str | None, int], Messages] = {}
    places: Any = zip(map(Message.topic, messages), map(Message.partition, messages), strict=True)
    for place, message in zip(places, messages, strict=True):
        found.setdefault(place, []).append(message)
    return found


def sound_part(
    messages: Messages, at_end: bool, access: KafkaAccess
) -> tuple[Sequence[Record], bool, DamagedRecord | None]:
    """What `records_until_damage` returns of messages of one partition, without an object for each record.

    Raises `LogUnavailable` like that.
    """
    errors = list(map(Message.error, messages))
    sound = messages
    if any(errors):
        if any(error.code() != _EOF for error in filter(None, errors)):
            return records_until_damage(messages, at_end, access)
        sound = [message for message, error in zip(messages, errors, strict=True) if error is None]
    offsets: list[Any] = list(map(Message.offset, sound))
    if not all(map(lt, offsets, islice(offsets, 1, None))):
        return records_until_damage(messages, at_end, access)
    if errors:
        at_end = bool(errors[-1])
    return (FetchedRecords(sound, offsets[0], offsets[-1]) if sound else []), at_end, None
