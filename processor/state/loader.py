"""Bringing a partition back: its rows from the changelog, its ids from the index on disk and the claims since."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from structlog.stdlib import get_logger

from processor.core.tables import claims
from processor.core.tables.apply import Tables
from processor.core.tables.claims import Claimed
from processor.core.tables.dedupe import resolve
from processor.core.tables.history import RESTORE, Range, void_ranges
from processor.core.tables.user_rows import Dead
from processor.ids.index import MAX_CAPACITY, IdIndex
from processor.ids.manifest import NOTHING, Covered
from processor.log import losses
from processor.log.address import LogAddress
from processor.log.dead_letters import dead_offsets
from processor.log.embedded.log import Log
from processor.log.embedded.newest import FOLD, Kept, collector_off, newest
from processor.log.errors import HistoryMismatch, LogUnavailable
from processor.log.port import LogReader, LogWriter, polls
from processor.log.records import Record, TopicPartition
from processor.log.topics import CLAIMS, ROWS
from processor.state.recovery import AppendTables, Recovery
from processor.wall_clock import now

ATTEMPTS: Final = 4
"""How often a partition is read back before it is given up: each time something was written that makes it fit."""

CLAIMS_BATCH = 500
PROGRESS_EVERY = 1_000_000

CLAIMED_BYTES: Final = 24 << 16
"""Of the claims that are put into an index together: 65,536 ids."""

MAX_CAPACITY_OF_SEVERAL: Final = MAX_CAPACITY // 2
"""Of the indexes of several partitions: each has the less ids the more there are, and memory for its newest ones."""

ONE_BY_ONE = 64
"""Messages that are applied one by one when a partition has been brought, and then flushed: if one of many that were
applied together has failed, a start finds it among these, or begins behind them the next time."""


class Partition:
    """One partition as its owner holds it."""

    def __init__(self, number: int, tables: Tables, index: IdIndex) -> None:
        self.number = number
        self.tables = tables
        self.index = index
        self.rows_end = 0
        """The next offset of the changelog: all before it is in the tables."""
        self.records = 0
        """Rows that the changelog has, those that were replaced among them, about."""
        self.replaced: array[int] | None = None
        """Offsets of records in the changelog that say nothing any more; None: a broker compacts, and there are no
        blocks of rows."""
        self.sizes: dict[int, int] = {}
        """How many rows the blocks among `replaced` have."""
        self.covered = NOTHING
        """How far index and claims log go together: what is durable in the claims log, and how many ids that are."""
        self.expected = 0
        """The offset of the next message: a later one means that some were skipped."""
        self.void: list[Range] = []
        """Events that are gone and in no table: what the claims log says of them is no claim."""
        self.newest: tuple[int, bytes | None, bytes | None] = (-1, None, None)
        """Offset, key and value of the message that was applied last."""
        self.one_by_one = ONE_BY_ONE
        """How many more messages are applied by themselves."""
        self.is_stopped = False
        """Nothing more of it is applied by this program: a message is of a version that it does not know."""
        self.dead: set[int] = set()
        """Offsets of messages that are in the dead letters already."""

    @property
    def claims_end(self) -> int:
        """The next offset of the claims log."""
        return self.covered.claims

    def end(self, dead: Iterable[Dead]) -> None:
        """These records of the changelog say nothing any more."""
        if self.replaced is not None:
            for offset, rows in dead:
                self.replaced.append(offset)
                if rows > 1:
                    self.sizes[offset] = rows


def load(address: LogAddress, number: int, clock: Callable[[], int] = now) -> Partition:
    """Read a partition of the embedded log back, as `bring` does."""
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
    """Read a partition back, from where its copy among `warm` stands if there is one, and make its pieces fit each
    other.

    `append` writes to its rows and claims. Blocks for as long as that takes; progress goes to the log of the program.
    Raises `HistoryMismatch` where the pieces cannot be made to fit, `LogUnavailable`: then what was read is `warm`, and
    after no other error.
    """
    for attempt in range(ATTEMPTS):
        partition = warm.pop(number, None)
        if partition is not None and not _is_within(store, partition):
            partition.index.distrust()
            partition.index.close()
            partition = None
        if partition is None:
            partition = fresh(address, store, number)
        warm[number] = partition
        scratch = address.data_dir / "index" / f"{number:04d}.rebuild"
        try:
            catch_up(store, partition)
            recovery = Recovery(store, number, partition.tables, partition.index, append, clock(), scratch)
            resume = recovery.run(thorough=attempt > 0)
            if resume is not None:
                partition.dead = dead_offsets(store, number)
                partition.expected = resume
                partition.is_stopped = False  # a warm copy may be: at the same message it stops again
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


def _is_within(store: LogWriter, partition: Partition) -> bool:
    """Whether the log still has all that was read of it, and what its claims mean is the same."""
    rows, claims_ = TopicPartition(ROWS, partition.number), TopicPartition(CLAIMS, partition.number)
    return (
        partition.rows_end <= store.end(rows)
        and partition.claims_end <= store.end(claims_)
        and partition.void == void_ranges(losses.of_partition(store, partition.number))
    )


def fresh(address: LogAddress, store: LogWriter, number: int) -> Partition:
    """A partition of which nothing has been read yet but the ids that lie on the disk."""
    directory = address.data_dir / "index" / f"{number:04d}"
    void = void_ranges(losses.of_partition(store, number))
    index = open_index(directory, store, number, void)
    partition = Partition(number, Tables(number, store.salt, index), index)
    partition.void = void
    partition.covered = index.covered
    return partition


def open_index(directory: Path, store: LogReader, number: int, void: Sequence[Range] | None = None) -> IdIndex:
    """A partition's ids that lie on the disk, as far as they agree with the claims log.

    `void`: offsets of events whose claims are no claims; None: as the log reports them.
    """
    if void is None:
        void = void_ranges(losses.of_partition(store, number))
    capacity = MAX_CAPACITY if store.partitions == 1 else MAX_CAPACITY_OF_SEVERAL
    digest_of = partial(_digest_at, store, TopicPartition(CLAIMS, number))
    return IdIndex(directory, store.identity, digest_of, void=void, max_capacity=capacity)


def _digest_at(store: LogReader, tp: TopicPartition, offset: int) -> str | None:
    """The digest of the record at an offset; None: the log has no record there."""
    if not store.first(tp) <= offset < store.end(tp):
        return None
    found = store.read(tp, offset, 1)
    return claims.digest(found[0].value or b"") if found and found[0].offset == offset else None


def catch_up(store: LogWriter, partition: Partition) -> None:
    """Read on to the end of the changelog and of the claims log. Blocks for as long as that takes."""
    _read_rows(store, partition)
    _read_claims(store, partition)
    partition.dead = dead_offsets(store, partition.number)
    partition.expected = partition.tables.progress.offset + 1


def _read_rows(store: LogWriter, partition: Partition) -> None:
    if isinstance(store, Log):
        _read_newest(store, partition)
        return
    log = get_logger()
    kept = Kept(partition.number)
    try:
        for batch in polls(store.read, TopicPartition(ROWS, partition.number), partition.rows_end):
            kept.add(batch)
            partition.records += len(batch)
            partition.rows_end = batch[-1].offset + 1
            if len(kept) >= FOLD:
                _restore(partition, kept)
            if partition.records % PROGRESS_EVERY < len(batch):
                log.info("partition.loading", partition=partition.number, records=partition.records)
    finally:  # a log that goes away is read on from `rows_end`: what came before it has to be in the tables
        _restore(partition, kept)


def _read_newest(store: Log, partition: Partition) -> None:
    log = get_logger()
    tp = TopicPartition(ROWS, partition.number)
    end = store.end(tp)
    restore = partition.tables.restore
    replaced = partition.replaced = array("q")
    with collector_off():
        for found in newest(store, tp, partition.rows_end, end):
            partition.tables.restore_newest(found.keys, found.values, found.offsets, found.hashes, found.size)
            for offset, key, value in found.others:
                restore(key, value, offset)
                if value is None:
                    replaced.append(offset)
            replaced.extend(found.replaced)
            if found.size > 1:
                partition.sizes.update(dict.fromkeys(found.replaced, found.size))
            looked_at = found.size or len(found.keys) + len(found.others) + len(found.replaced)
            partition.records += looked_at
            if partition.records % PROGRESS_EVERY < looked_at:
                log.info("partition.loading", partition=partition.number, records=partition.records)
    partition.rows_end = end


def _restore(partition: Partition, kept: Kept) -> None:
    partition.tables.restore_all((record.key or b"", record.value, record.offset) for record in kept.drain())


def apply_rows(partition: Partition, found: Iterable[Record]) -> None:
    """Take in records of the changelog; those it has are passed over."""
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
    """Take in records of the claims log; those it has are passed over."""
    new = [record for record in found if record.offset >= partition.claims_end]
    claimed: list[Claimed] = []
    size = 0
    for record in new:
        value = record.value or b""
        claimed += [each for each in claims.decode(value) if not any(each.offset in void for void in partition.void)]
        size += len(value)
        # Many at a time: a claim of one id costs as much as that of a hundred.
        if record is new[-1] or size >= CLAIMED_BYTES:
            _claim(partition.index, claimed)
            claimed, size = [], 0
            partition.covered = Covered(record.offset + 1, claims.digest(value), len(partition.index))
            if partition.index.waits:
                sync_index(partition)


def _claim(index: IdIndex, claimed: list[Claimed]) -> None:
    keys = np.frombuffer(b"".join(each.keys for each in claimed), "<u8").reshape(-1, 2)
    digests = np.frombuffer(b"".join(each.digests for each in claimed), "<u8")
    offsets = np.repeat([each.offset for each in claimed], [len(each.digests) // 8 for each in claimed])
    if len(keys):
        resolve(index, keys, digests, offsets)  # of two claims of a key the first one holds


def sync_index(partition: Partition, *, final: bool = False) -> None:
    """`IdIndex.sync` of what is durable by now. Blocks; a disk that refuses is no fault: the claims log has it all."""
    try:
        partition.index.sync(partition.covered, final=final)
    except OSError as error:
        get_logger().warning("index.checkpoint_failed", partition=partition.number, error=str(error))
