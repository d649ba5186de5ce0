"""Load a partition: its rows from the changelog, its ids from the index on disk and the claims since."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from processor.core.tables import dedupe
from processor.core.tables.apply import Tables
from processor.core.tables.dedupe import Claimed, resolve
from processor.core.tables.history import RESTORE, OffsetRange, void_ranges
from processor.core.tables.numbered_rows import Dead
from processor.ids.index import MAX_CAPACITY, IdIndex
from processor.ids.index_checkpoint import NOTHING, Covered
from processor.log import losses
from processor.log.address import LogAddress
from processor.log.dead_letters import dead_offsets
from processor.log.embedded.log import Log
from processor.log.embedded.newest import FOLD, KeptRecords, collector_off, newest
from processor.log.errors import HistoryMismatch, LogUnavailable
from processor.log.port import LogReader, LogWriter, polls
from processor.log.records import Record, TopicPartition
from processor.log.topics import CLAIMS, ROWS
from processor.state.recovery import AppendTables, Recovery
from processor.structured_log import get_logger
from processor.wall_clock import now

ATTEMPTS: Final = 4
"""How often a partition is read back before the worker gives up: each time, a repair was written."""

CLAIMS_BATCH = 500
PROGRESS_EVERY = 1_000_000

CLAIMED_BYTES: Final = 24 << 16
"""Bytes of claims that are inserted into an index together: 65,536 ids."""

MAX_CAPACITY_OF_SEVERAL: Final = MAX_CAPACITY // 2
"""Most places of a segment where there are several partitions: each has fewer ids, and memory for its newest ones."""

ONE_BY_ONE = 64
"""Messages that are applied one by one after a partition was loaded, and then flushed: if one of many that were applied
together has failed, the next start finds it among these, or continues behind them."""


class Partition:
    """One partition as its owner holds it."""

    def __init__(self, number: int, tables: Tables, index: IdIndex) -> None:
        self.number = number
        self.tables = tables
        self.index = index
        self.rows_end = 0
        """The next offset of the changelog: all before it is in the tables."""
        self.records = 0
        """Rows in the changelog, including replaced ones, approximately."""
        self.replaced: array[int] | None = None
        """Offsets of replaced records in the changelog; None on Kafka, where the broker compacts and there are no
        blocks of rows."""
        self.sizes: dict[int, int] = {}
        """How many rows the blocks among `replaced` have."""
        self.covered = NOTHING
        """Up to where index and claims log agree: what is durable in the claims log, and how many ids that are."""
        self.expected = 0
        """The offset of the next message: a later one means that some were skipped."""
        self.void: list[OffsetRange] = []
        """Events that are gone and in no table: claims for them do not count."""
        self.newest: tuple[int, bytes | None, bytes | None] = (-1, None, None)
        """Offset, key and value of the message that was applied last."""
        self.one_by_one = ONE_BY_ONE
        """How many more messages are applied by themselves."""
        self.is_stopped = False
        """This program applies no more messages of the partition: one is of a version that it does not know."""
        self.dead: set[int] = set()
        """Offsets of messages that are in the dead letters already."""

    @property
    def claims_end(self) -> int:
        """The next offset of the claims log."""
        return self.covered.claims

    def end(self, dead: Iterable[Dead]) -> None:
        """Note replaced records of the changelog."""
        if self.replaced is not None:
            for offset, rows in dead:
                self.replaced.append(offset)
                if rows > 1:
                    self.sizes[offset] = rows


def load(address: LogAddress, number: int, clock: Callable[[], int] = now) -> Partition:
    """Load a partition of the embedded log, as `bring` does. Blocks."""
    store = address.open()
    warm: dict[int, Partition] = {}
    try:
        return bring(address, store, number, lambda appends: store.append(appends, clock()), clock, warm)
    finally:
        for left in warm.values():
            left.index.distrust()
            left.index.close()
        store.close()


def bring(
    address: LogAddress,
    store: LogWriter,
    number: int,
    append: AppendTables,
    clock: Callable[[], int],
    warm: dict[int, Partition],
) -> Partition:
    """Load a partition, from the position of its copy in `warm` if there is one, and repair what does not fit.

    `append` writes to its rows and claims. Blocks for as long as that takes; progress goes to the program's log. Raises
    `HistoryMismatch` for what cannot be repaired, and `LogUnavailable`; only after the latter is what was read kept in
    `warm`.
    """
    for attempt in range(ATTEMPTS):
        partition = warm[number] = _copy_of(address, store, number, warm)
        scratch = address.data_dir / "index" / f"{number:04d}.rebuild"
        try:
            catch_up(store, partition)
            recovery = Recovery(store, number, partition.tables, partition.index, append, clock(), scratch)
            resume = recovery.run(thorough=attempt > 0)
            if resume is not None:
                partition.dead = dead_offsets(store, number)
                partition.expected = resume
                partition.is_stopped = False  # a warm copy may have stopped; it stops again at the same message
        except LogUnavailable:
            raise
        except BaseException:
            del warm[number]
            partition.index.distrust()
            partition.index.close()
            raise
        del warm[number]
        if resume is not None:
            return partition
        partition.index.close()
    raise HistoryMismatch(
        f"partition {number}: its events, rows and claims do not fit each other, and did not after {ATTEMPTS} repairs. "
        f"Stop all processes and {RESTORE}"
    )


def _copy_of(address: LogAddress, store: LogWriter, number: int, warm: dict[int, Partition]) -> Partition:
    """Take a partition out of `warm`, if the log still has all that it has read, or make an empty one."""
    partition = warm.pop(number, None)
    if partition is None:
        return fresh(address, store, number)
    if _is_within(store, partition):
        return partition
    partition.index.distrust()
    partition.index.close()
    return fresh(address, store, number)


def _is_within(store: LogWriter, partition: Partition) -> bool:
    """Return whether the log still has all that was read of it, and the same events are lost."""
    rows, claims_ = TopicPartition(ROWS, partition.number), TopicPartition(CLAIMS, partition.number)
    return (
        partition.rows_end <= store.end(rows)
        and partition.claims_end <= store.end(claims_)
        and partition.void == void_ranges(losses.of_partition(store, partition.number))
    )


def fresh(address: LogAddress, store: LogWriter, number: int) -> Partition:
    """Return a partition with nothing but the ids of the index on disk."""
    directory = address.data_dir / "index" / f"{number:04d}"
    void = void_ranges(losses.of_partition(store, number))
    index = open_index(directory, store, number, void)
    partition = Partition(number, Tables(number, store.salt, index), index)
    partition.void = void
    partition.covered = index.covered
    return partition


def open_index(directory: Path, store: LogReader, number: int, void: Sequence[OffsetRange] | None = None) -> IdIndex:
    """Open a partition's id index on disk; it is emptied if it does not agree with the claims log.

    `void`: offsets of events whose claims do not count; None: those that the log reports.
    """
    if void is None:
        void = void_ranges(losses.of_partition(store, number))
    capacity = MAX_CAPACITY if store.partitions == 1 else MAX_CAPACITY_OF_SEVERAL
    digest_of = partial(_digest_at, store, TopicPartition(CLAIMS, number))
    return IdIndex(directory, store.identity, digest_of, void=void, max_capacity=capacity)


def _digest_at(store: LogReader, tp: TopicPartition, offset: int) -> str | None:
    """Return the digest of the record at an offset; None: the log has no record there."""
    if not store.first(tp) <= offset < store.end(tp):
        return None
    found = store.read(tp, offset, 1)
    return dedupe.digest_of_claims(found[0].value or b"") if found and found[0].offset == offset else None


def catch_up(store: LogWriter, partition: Partition) -> None:
    """Read the changelog and the claims log to their ends. Blocks for as long as that takes."""
    read_rows(store, partition)
    _read_claims(store, partition)
    partition.dead = dead_offsets(store, partition.number)
    partition.expected = partition.tables.progress.offset + 1


def read_rows(store: LogWriter, partition: Partition) -> None:
    """Read the changelog from `rows_end` on to its end. Blocks. After an error the next call reads on."""
    if isinstance(store, Log):
        _read_newest(store, partition)
        return
    log = get_logger()
    kept = KeptRecords(partition.number)
    try:
        for batch in polls(store.read, TopicPartition(ROWS, partition.number), partition.rows_end):
            kept.add(batch)
            partition.records += len(batch)
            partition.rows_end = batch[-1].offset + 1
            if len(kept) >= FOLD:
                _restore(partition, kept)
            if partition.records % PROGRESS_EVERY < len(batch):
                log.info("partition.loading", partition=partition.number, records=partition.records)
    finally:  # also after an error: the next read continues at `rows_end`, so the tables must have all before it
        _restore(partition, kept)


def _read_newest(store: Log, partition: Partition) -> None:
    log = get_logger()
    tp = TopicPartition(ROWS, partition.number)
    end = store.end(tp)
    replaced = partition.replaced = array("q")
    with collector_off():
        for found in newest(store, tp, partition.rows_end, end):
            partition.tables.restore_newest(found.keys, found.values, found.offsets, found.size)
            partition.tables.restore_all((key, value, offset) for offset, key, value in found.others)
            replaced.extend(offset for offset, _, value in found.others if value is None)
            replaced.extend(found.replaced)
            if found.size > 1:
                partition.sizes.update(dict.fromkeys(found.replaced, found.size))
            looked_at = found.size or len(found.keys) + len(found.others) + len(found.replaced)
            partition.records += looked_at
            if partition.records % PROGRESS_EVERY < looked_at:
                log.info("partition.loading", partition=partition.number, records=partition.records)
    partition.rows_end = end


def _restore(partition: Partition, kept: KeptRecords) -> None:
    partition.tables.restore_all((record.key or b"", record.value, record.offset) for record in kept.drain())


def apply_rows(partition: Partition, found: Iterable[Record]) -> None:
    """Apply records of the changelog; skip those that it has."""
    new = [record for record in found if record.offset >= partition.rows_end]
    if new:
        partition.tables.restore_all((record.key or b"", record.value, record.offset) for record in new)
        partition.records += len(new)
        partition.rows_end = new[-1].offset + 1


def _read_claims(store: LogWriter, partition: Partition) -> None:
    log = get_logger()
    tp = TopicPartition(CLAIMS, partition.number)
    start = partition.claims_end
    for batch in polls(store.read, tp, start, limit=CLAIMS_BATCH):
        apply_claims(partition, batch)
        if len(batch) == CLAIMS_BATCH:
            log.info(
                "index.rebuilding",
                partition=partition.number,
                done=f"{100 * (partition.claims_end - start) // max(1, store.end(tp) - start)} %",
                ids=len(partition.index),
            )


def apply_claims(partition: Partition, found: Iterable[Record]) -> None:
    """Apply records of the claims log; skip those that it has."""
    new = [record for record in found if record.offset >= partition.claims_end]
    claimed: list[Claimed] = []
    size = 0
    for record in new:
        value = record.value or b""
        claimed += [
            each for each in dedupe.decode_claims(value) if not any(each.offset in void for void in partition.void)
        ]
        size += len(value)
        # Many together: claiming one id costs as much as claiming a hundred.
        if record is new[-1] or size >= CLAIMED_BYTES:
            _claim(partition.index, claimed)
            claimed, size = [], 0
            partition.covered = Covered(record.offset + 1, dedupe.digest_of_claims(value), len(partition.index))
            if partition.index.waits:
                sync_index(partition)


def _claim(index: IdIndex, claimed: list[Claimed]) -> None:
    keys = np.frombuffer(b"".join(each.keys for each in claimed), "<u8").reshape(-1, 2)
    digests = np.frombuffer(b"".join(each.digests for each in claimed), "<u8")
    offsets = np.repeat([each.offset for each in claimed], [len(each.digests) // 8 for each in claimed])
    if len(keys):
        resolve(index, keys, digests, offsets)  # of two claims of a key the first one holds


def sync_index(partition: Partition, *, final: bool = False) -> None:
    """Call `IdIndex.sync` with what is durable by now. Blocks. Only logs a failure: the claims log has all ids."""
    try:
        partition.index.sync(partition.covered, final=final)
    except OSError as error:
        get_logger().warning("index.checkpoint_failed", partition=partition.number, error=str(error))
