"""What is read from a log and appended to it, whichever log it is."""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from processor.core.growing_arrays import I64, Records


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


class Record(Struct, gc=False, frozen=True):
    """One record as it is read."""

    offset: int
    at: int
    """When it was appended, microseconds since the epoch."""
    key: bytes | None
    value: bytes | None
    is_damaged: bool = False
    """Its checksum does not match: what it says must not be believed. Only for readers that ask for such records."""


class Append(NamedTuple):
    """Records to append to one partition, in order: pairs of key and value (None: a tombstone)."""

    to: TopicPartition
    records: Sequence[tuple[bytes | None, bytes | None]]


class Row(NamedTuple):
    """The newest record of a key."""

    offset: int
    key: bytes
    value: bytes | None


class Found(NamedTuple):
    """What some records of a partition come to, the newest first."""

    keys: list[bytes]
    """Of sums in their packed form."""
    hashes: Records
    """Of the keys, see `row_block.key_hashes`."""
    values: Records
    """`row_bytes.DTYPE`."""
    offsets: I64
    """Of the sums' records; of a block they are all the same."""
    others: list[Row]
    """The progress among them. Who follows a log that grows applies them when it has read on to its end: what was
    replaced and compacted meanwhile is there."""
    replaced: list[int]
    """Offsets of records that say nothing any more."""
    size: int
    """Of a block, how many rows it has, those that were replaced among them; else 0."""
