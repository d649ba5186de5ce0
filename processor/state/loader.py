"""Bringing a partition back: its rows from the changelog, its ids from the index on disk and the claims since."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from structlog.stdlib import get_logger

from processor.core import claims
from processor.core.pipeline import Tables
from processor.log.address import LogAddress
from processor.log.store import Record, TopicPartition
from processor.log.topics import CLAIMS, DEAD_LETTERS, EVENTS, ROWS
from processor.state.index import IdIndex

if TYPE_CHECKING:
    from processor.log.address import AnyLog

BATCH = 5000
PROGRESS_EVERY = 1_000_000


class Partition:
    """One partition as its owner holds it."""

    def __init__(self, number: int, tables: Tables, index: IdIndex) -> None:
        self.number = number
        self.tables = tables
        self.index = index
        self.loaded = -1
        """Offset of the last changelog record that was read back."""
        self.records = 0
        """Records in the changelog, about: what compaction goes by."""
        self.claims_end = 0
        """The next offset of the claims log."""
        self.expected = 0
        """The offset of the next message: a later one means that some were skipped."""
        self.dead: set[int] = set()
        """Offsets of messages that are in the dead letters already."""


class DeadLetter(NamedTuple):
    """Where a message that could not be processed came from, and why: the key of its dead-letter record."""

    topic: str
    partition: int
    offset: int
    reason: str
    at: int
    """Microseconds since the epoch."""

    def encode(self) -> bytes:
        return msgspec.json.encode(self._asdict())

    @classmethod
    def decode(cls, key: bytes) -> "DeadLetter":
        return cls(**msgspec.json.decode(key))


def load(address: LogAddress, number: int) -> Partition:
    """Read a partition back. Blocks for as long as that takes; progress goes to the log of the program."""
    store = address.open()
    try:
        index = IdIndex(address.data_dir / "index" / f"{number:04d}", store.identity)
        partition = Partition(number, Tables(number, store.salt, index), index)
        _load_rows(store, partition)
        _load_claims(store, partition)
        partition.dead = dead_letters(store, number)
        partition.expected = partition.tables.progress.offset + 1
        return partition
    finally:
        store.close()


def _load_rows(store: "AnyLog", partition: Partition) -> None:
    log = get_logger()
    tp = TopicPartition(ROWS, partition.number)
    for record in records(store, tp, 0):
        partition.tables.restore(record.key or b"", record.value, record.offset)
        partition.records += 1
        partition.loaded = record.offset
        if partition.records % PROGRESS_EVERY == 0:
            log.info("partition.loading", partition=partition.number, rows=partition.records)


def _load_claims(store: "AnyLog", partition: Partition) -> None:
    log = get_logger()
    tp = TopicPartition(CLAIMS, partition.number)
    partition.claims_end = store.end(tp)
    start = min(partition.index.checkpointed or 0, partition.claims_end)
    for record in records(store, tp, start):
        for claimed in claims.decode(record.value or b""):
            keys = np.frombuffer(claimed.keys, "<u8").reshape(-1, 2)
            partition.index.claim(keys, np.frombuffer(claimed.digests, "<u8"), claimed.offset)
        if record.offset % 1000 == 0 and record.offset > start:
            log.info(
                "index.rebuilding",
                partition=partition.number,
                done=f"{100 * (record.offset - start) // max(1, partition.claims_end - start)} %",
                ids=len(partition.index),
            )


def dead_letters(store: "AnyLog", number: int) -> set[int]:
    """Offsets of a partition's events messages that are dead letters: no table contains them."""
    letters = (
        DeadLetter.decode(record.key or b"") for record in records(store, TopicPartition(DEAD_LETTERS, number), 0)
    )
    return {letter.offset for letter in letters if letter.topic == EVENTS}


def records(store: "AnyLog", tp: TopicPartition, start: int, limit: int = BATCH) -> Iterator[Record]:
    """All records of a partition from `start` on, `limit` at a time."""
    position = start
    while found := store.read(tp, position, limit):
        yield from found
        position = found[-1].offset + 1
