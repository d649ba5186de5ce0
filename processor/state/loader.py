"""Bringing a partition back: its rows from the changelog, its ids from the index on disk and the claims since."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from structlog.stdlib import get_logger

from processor.core import claims
from processor.core.pipeline import Tables
from processor.log.letters import dead_offsets
from processor.log.store import Log, Record, TopicPartition
from processor.log.topics import CLAIMS, ROWS
from processor.state.index import IdIndex

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
        self.dead: set[int] = set()
        """Offsets of messages that are in the dead letters already."""


def load(data_dir: Path, number: int) -> Partition:
    """Read a partition back. Blocks for as long as that takes; progress goes to the log of the program."""
    store = Log(data_dir, create=False)
    try:
        index = IdIndex(data_dir / "index" / f"{number:04d}", store.identity)
        partition = Partition(number, Tables(number, store.salt, index), index)
        _load_rows(store, partition)
        _load_claims(store, partition)
        partition.dead = dead_offsets(store, number)
        return partition
    finally:
        store.close()


def _load_rows(store: Log, partition: Partition) -> None:
    log = get_logger()
    tp = TopicPartition(ROWS, partition.number)
    for record in records(store, tp, 0):
        partition.tables.restore(record.key or b"", record.value, record.offset)
        partition.records += 1
        partition.loaded = record.offset
        if partition.records % PROGRESS_EVERY == 0:
            log.info("partition.loading", partition=partition.number, rows=partition.records)


def _load_claims(store: Log, partition: Partition) -> None:
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


def records(store: Log, tp: TopicPartition, start: int, limit: int = BATCH) -> Iterator[Record]:
    """All records of a partition from `start` on, `limit` at a time."""
    position = start
    while found := store.read(tp, position, limit):
        yield from found
        position = found[-1].offset + 1
