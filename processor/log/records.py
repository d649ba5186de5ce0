"""Records as they are read from and appended to any log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from msgspec import Struct

if TYPE_CHECKING:  # most commands need no numpy, whose loading is a fifth of their start
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
    """Its checksum does not match, so its content must not be used. Only for readers that ask for such records."""


class Fetched(Sequence[Record], ABC):
    """Records of one read that are not objects until one is looked at: most readers want `pairs_of` them."""

    @abstractmethod
    def pairs(self) -> list[tuple[bytes, bytes | None]]:
        """See `pairs_of`."""


def pairs_of(records: Sequence[Record]) -> list[tuple[bytes, bytes | None]]:
    """Return key and value of each record; a missing key is an empty one."""
    if isinstance(records, Fetched):
        return records.pairs()
    return [(record.key or b"", record.value) for record in records]


class Append(NamedTuple):
    """Records to append to one partition, in order: pairs of key and value (None: a tombstone)."""

    to: TopicPartition
    records: Sequence[tuple[bytes | None, bytes | None]]


class Row(NamedTuple):
    """The newest record of a key."""

    offset: int
    key: bytes
    value: bytes | None


class NewestRecords(NamedTuple):
    """The newest record of each key among some records of a partition, read from the end backwards."""

    keys: list[bytes]
    """Keys of the rows of sums, in packed form."""
    hashes: Records
    """Hashes of the keys, see `row_block.key_hashes`."""
    values: Records
    """`row_dtype.DTYPE`."""
    offsets: I64
    """Offsets of the rows' records, all the same for rows of one block."""
    others: list[Row]
    """All other rows, the progress among them. A reader that follows a growing log applies them when it has read on to
    its end: by then it has what was replaced and compacted meanwhile."""
    replaced: list[int]
    """Offsets of records that newer ones have replaced."""
    size: int
    """For a block, how many rows it has, including replaced ones; else 0."""


class Delivered(Protocol):
    """A message of the stream; `ack` is called when its effects are durable."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def is_damaged(self) -> bool:
        """Its checksum does not match."""
        ...

    def ack(self) -> None: ...
