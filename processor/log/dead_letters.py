"""The dead-letter topic: messages that could not be processed, why, and which of them were retried.

    a letter    key = {"topic", "partition", "offset", "reason", "at"}, value = the message as it was; with
                "damaged": true for a record whose bytes are not those that were written: it is never retried
    a retry     key = {"retried": [topic, partition, offset], "to": offset, "at"}, no value

A letter is never removed. A retry appends its message to the events again, as a new record with a new offset, and is
noted after that is durable: a crash between the two leads at worst to another copy, which counts as a duplicate.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Final

import msgspec
from msgspec import Struct

from processor.core.events import message
from processor.core.events.message import MessageError
from processor.log.port import LogReader, LogWriter, scan
from processor.log.records import Append, TopicPartition
from processor.log.sound import OnDamage, scan_sound
from processor.log.topics import DEAD_LETTERS, EVENTS

Place = tuple[str, int, int]
"""Topic, partition and offset of a message."""

BATCH: Final = 200
"""Letters read together: each contains a whole message."""


class DeadLetter(Struct, frozen=True, omit_defaults=True):
    """Where a message that could not be processed came from, and why: the key of its dead-letter record."""

    topic: str
    partition: int
    offset: int
    reason: str
    at: int
    """Microseconds since the epoch."""
    damaged: bool = False
    """The record's checksum did not match: the content of its message is not known."""

    @property
    def place(self) -> Place:
        """The message's place in the log."""
        return (self.topic, self.partition, self.offset)

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, key: bytes) -> "DeadLetter":
        return msgspec.json.decode(key, type=cls)


class Retry(Struct, frozen=True):
    """A note that a letter's message was appended to the events again."""

    retried: Place
    to: int
    """The new offset of the message."""
    at: int


class Letter(Struct):
    """A letter as it is listed."""

    dead: DeadLetter
    events: int | None
    """The number of events in its message; None if it cannot be read or is damaged."""
    size: int
    """Bytes of the message."""
    retry: Retry | None = None
    """The last retry."""


_RETRIED: Final = b'{"retried":'


def dead_offsets(log: LogReader, number: int, on_damage: OnDamage | None = None) -> set[int]:
    """Return the offsets of a partition's event messages that are dead letters: no table contains them.

    Raises `DamagedRecord` for a damaged letter, unless `on_damage` is given, which is called with the error.
    """
    tp, found = TopicPartition(DEAD_LETTERS, number), set()
    for record in scan(log, tp) if on_damage is None else scan_sound(log, tp, on_damage):
        key = record.key or b""
        if not key.startswith(_RETRIED):
            letter = DeadLetter.decode(key)
            if letter.topic == EVENTS:
                found.add(letter.offset)
    return found


def letters(log: LogReader, number: int) -> list[Letter]:
    """Return a partition's letters in the order of the topic, one for each message."""
    found: dict[Place, Letter] = {}
    for record in scan(log, TopicPartition(DEAD_LETTERS, number), limit=BATCH):
        key = record.key or b""
        if key.startswith(_RETRIED):
            note = msgspec.json.decode(key, type=Retry)
            if note.retried in found:
                found[note.retried].retry = note
        else:
            letter = DeadLetter.decode(key)
            events = None if letter.damaged else _count(record.value)
            found.setdefault(letter.place, Letter(letter, events, len(record.value or b"")))
    return list(found.values())


def _count(value: bytes | None) -> int | None:
    try:
        return len(message.decode(value or b""))
    except MessageError:
        return None


def retry(log: LogWriter, number: int, places: Collection[Place], clock: Callable[[], int]) -> Iterator[Retry]:
    """Append the messages of a partition's letters to the events again, each followed by its note; durable one by one.

    Damaged ones are skipped, as their content is not known. Raises `LogUnavailable`: then the last message may have
    been appended nevertheless; calling again does no harm.
    """
    tp = TopicPartition(DEAD_LETTERS, number)
    left = set(places)
    for record in scan(log, tp, end=log.end(tp), limit=BATCH):
        key = record.key or b""
        if key.startswith(_RETRIED) or (dead := DeadLetter.decode(key)).place not in left:
            continue
        left.remove(dead.place)
        if dead.damaged:
            continue
        at = clock()
        [to] = log.append([Append(TopicPartition(dead.topic, dead.partition), [(None, record.value)])], at)
        note = Retry(dead.place, to, at)
        log.append([Append(tp, [(msgspec.json.encode(note), None)])], at)
        yield note
