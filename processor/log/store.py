"""The embedded log: topics, partitions and offsets in one SQLite file.

Any number of processes read; writes take turns (`log.lock`, then SQLite's own). The file is in WAL mode with
`synchronous=FULL`: what a commit has returned is on disk (fsync), and a reader never sees what is not.
A record's rowid is its partition's number and its offset, so appending and reading are range operations on one B-tree:

    id = partition number << 40 | offset

A `Log` belongs to one thread at a time.
"""

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw
import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from processor.log.errors import FormatError, LogError, LogUnavailable, PartitionMismatch
from processor.log.locks import FileLock
from processor.log.topics import COMPACTED, DIRECTORY, EVENTS, PARTITIONED

FORMAT: Final = 3
"""2 added the topic of checkpoints, 3 blocks of rows in the changelog (`processor.core.rowblock`)."""
FILE_NAME: Final = "log.db"
OFFSET_BITS: Final = 40
DEFAULT_PARTITIONS: Final = 1
MAX_PARTITIONS: Final = 1024
BUSY_MS: Final = 10_000

_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT;
CREATE TABLE partition (
    number INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    first INTEGER NOT NULL DEFAULT 0,
    next INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, partition)
) STRICT;
CREATE TABLE record (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, key BLOB, value BLOB) STRICT;
CREATE TABLE committed (
    consumer TEXT NOT NULL,
    number INTEGER NOT NULL REFERENCES partition,
    next INTEGER NOT NULL,
    PRIMARY KEY (consumer, number)
) STRICT, WITHOUT ROWID;
"""


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


class Block(NamedTuple):
    """Records of one partition without an object for each, the newest first."""

    offsets: list[int]
    keys: list[bytes]
    lengths: list[int | None]
    """Of the values; None: a tombstone."""
    values: bytes
    """All of them in a row."""


class Append(NamedTuple):
    """Records to append to one partition, in order: pairs of key and value (None: a tombstone)."""

    to: TopicPartition
    records: Sequence[tuple[bytes | None, bytes | None]]


CHUNK: Final = 250
"""Records in one INSERT. Every statement gives up the GIL and must get it back, and whoever waits for the GIL in here
makes other processes wait for the lock: so a flush of thousands of rows is a few statements, not thousands."""


def _bind(records: Sequence[tuple[bytes | None, bytes | None]], at: int) -> "list[list[Any]]":
    """The parameters of each INSERT, all but the first one: the id of its first record."""
    return [
        [0, at, *(part for record in records[start : start + CHUNK] for part in record)]
        for start in range(0, len(records), CHUNK)
    ]


LONG: Final = 256
"""Records side by side that are worth a statement of their own."""

_decode_offsets: Final = msgspec.json.Decoder(list[int]).decode
_decode_lengths: Final = msgspec.json.Decoder(list[int | None]).decode


@cache
def _insert(rows: int) -> str:
    values = ",".join(f"(?1+{row},?2,?{2 * row + 3},?{2 * row + 4})" for row in range(rows))
    return f"INSERT INTO record VALUES {values}"  # noqa: S608 - numbers only


def _runs(offsets: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Long stretches without a gap, each from its first offset to before its end, and all other offsets."""
    found = np.array(offsets, np.int64)
    starts = np.flatnonzero(np.diff(found, prepend=-2) != 1)
    ends = np.append(starts[1:], len(found))
    is_long = ends - starts >= LONG
    runs = [
        (int(found[start]), int(found[end - 1]) + 1) for start, end in zip(starts[is_long], ends[is_long], strict=True)
    ]
    return runs, found[~np.repeat(is_long, ends - starts)].tolist()


class Log:
    """One process's view of the log file. Raises `LogError` when it cannot be opened."""

    def __init__(self, data_dir: Path, *, partitions: int | None = None, create: bool = True) -> None:
        """Open the log in `data_dir`, making it with `partitions` (default 1) if there is none yet."""
        self.path = data_dir / FILE_NAME
        if not create and not self.path.exists():
            raise LogError(
                f"there is no log in {data_dir}: start the server there once, or name another data directory"
            )
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = FileLock(data_dir / "log.lock")
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = apsw.Connection(str(self.path))
            self._db.set_busy_timeout(BUSY_MS)
            with self._lock.held():
                self._prepare(partitions)
        except (apsw.Error, OSError) as error:
            raise LogError(f"cannot open the log {self.path}: {error}") from error
        self._numbers: dict[TopicPartition, int] = {
            TopicPartition(topic, partition): number
            for number, topic, partition in self._db.execute("SELECT number, topic, partition FROM partition")
        }
        self.partitions = sum(1 for tp in self._numbers if tp.topic == EVENTS)
        if partitions is not None and partitions != self.partitions:
            raise PartitionMismatch(
                f"the log {self.path} has {self.partitions} partition(s), not {partitions}: the number is chosen once, "
                f"when the log is made. Start with {self.partitions} or leave the setting out; for another number, "
                "export the events into a new data directory"
            )
        meta = dict(self._db.execute("SELECT name, value FROM meta"))
        self.salt: bytes = meta["salt"]
        self.identity: str = meta["identity"]

    def _prepare(self, partitions: int | None) -> None:
        db = self._db
        db.execute("PRAGMA page_size = 8192")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 0")  # the checkpointer's thread does it
        db.execute("PRAGMA journal_size_limit = 16777216")
        db.execute("PRAGMA cache_size = -16384")
        found = db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'").get
        if not found:
            self._create(DEFAULT_PARTITIONS if partitions is None else partitions)
            return
        version = db.execute("SELECT value FROM meta WHERE name = 'format'").get
        if version > FORMAT:
            raise FormatError(
                f"the log {self.path} has format {version}, this program knows formats up to {FORMAT}: "
                "it was written by a newer spendstream; use that one"
            )
        if version < FORMAT:
            self._migrate()

    def _migrate(self) -> None:
        """Bring a log of an older format to this one: it gets the topics that it lacks."""
        db = self._db
        with self._transaction():
            count: int = db.execute("SELECT count(*) FROM partition WHERE topic = ?", (EVENTS,)).get
            tps = [(topic, number) for topic in PARTITIONED for number in range(count)]
            db.executemany("INSERT OR IGNORE INTO partition (topic, partition) VALUES (?, ?)", tps)
            db.execute("UPDATE meta SET value = ? WHERE name = 'format'", (FORMAT,))

    def _create(self, partitions: int) -> None:
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise LogError(f"a log has 1 to {MAX_PARTITIONS} partitions, not {partitions}")
        db = self._db
        with db:
            db.execute(_SCHEMA)
            meta = {"format": FORMAT, "salt": secrets.token_bytes(32), "identity": secrets.token_hex(4)}
            db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            tps = [(topic, number) for topic in PARTITIONED for number in range(partitions)] + [(DIRECTORY, 0)]
            db.executemany("INSERT INTO partition (topic, partition) VALUES (?, ?)", tps)

    def close(self) -> None:
        """Close the file."""
        self._db.close()
        self._lock.close()

    # --- writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: durable when the block is left, or not there at all. Raises `LogUnavailable`."""
        with self._lock.held():
            try:
                with self._transaction():
                    yield
            except apsw.Error as error:
                raise LogUnavailable(f"cannot write to {self.path}: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if not db.get_autocommit():
                db.execute("ROLLBACK")
            raise

    def append(self, appends: Iterable[Append], at: int) -> list[int]:
        """Append to any number of partitions in one transaction; returns the first offset given in each.

        Durable on return. `at` is the time of the append in microseconds. Blocks for an fsync, without the GIL.
        Raises `LogUnavailable`: then none of it was appended, unless the machine is failing.
        """
        bound = [(self.number(append.to), len(append.records), _bind(append.records, at)) for append in appends]
        with self._writing():
            return [self._append(number, count, chunks) for number, count, chunks in bound]

    def _append(self, number: int, count: int, chunks: "list[list[Any]]") -> int:
        grown = "UPDATE partition SET next = next + ? WHERE number = ? RETURNING next"
        first: int = self._db.execute(grown, (count, number)).get - count
        at = (number << OFFSET_BITS) + first
        for chunk in chunks:
            chunk[0] = at
            rows = len(chunk) // 2 - 1
            self._db.execute(_insert(rows), chunk)
            at += rows
        return first

    def probe(self, at: int) -> None:
        """Find out whether the log takes writes. Raises `LogUnavailable` if it does not."""
        self.commit("probe", [(TopicPartition(EVENTS, 0), at)])

    def commit(self, consumer: str, offsets: Iterable[tuple[TopicPartition, int]]) -> None:
        """Remember the next offset to read of each partition for a consumer group. Durable on return."""
        rows = [(consumer, self.number(tp), offset) for tp, offset in offsets]
        with self._writing():
            self._db.executemany("INSERT OR REPLACE INTO committed VALUES (?, ?, ?)", rows)

    def trim(self, tp: TopicPartition, before: int, limit: int = 1000) -> int:
        """Retention: delete up to `limit` records with offsets below `before`; returns how many there were."""
        number = self.number(tp)
        base = number << OFFSET_BITS
        with self._writing():
            found: list[Any] = self._db.execute(
                "SELECT id FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
                (base, base + before, limit),
            ).fetchall()
            self._db.executemany("DELETE FROM record WHERE id = ?", found)
            first = before if len(found) < limit else found[-1][0] - base + 1
            self._db.execute("UPDATE partition SET first = max(first, ?) WHERE number = ?", (first, number))
        return len(found)

    def compact(
        self, tp: TopicPartition, start: int, end: int, limit: int, live: NDArray[np.int64]
    ) -> tuple[int | None, int]:
        """One step of compaction over the offsets `start` to `end`: look at `limit` records, delete the dead ones.

        `live`, ascending, are the offsets of all records below `end` that no newer record has replaced. Returns where
        the next step starts (None: nothing is left below `end`) and how many records went. The partition's newest
        record always stays. For the partition's one writer: only it knows what is live.
        """
        if tp.topic not in COMPACTED:
            raise LogError(f"{tp.topic} is not compacted")
        base = self.number(tp) << OFFSET_BITS
        last = min(end, self.end(tp) - 1)
        query = "SELECT id FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"
        found: list[Any] = self._db.execute(query, (base + start, base + last, limit)).fetchall()
        offsets = np.array([number - base for (number,) in found], np.int64)
        dead = offsets[~np.isin(offsets, live[slice(*np.searchsorted(live, (start, last)))])].tolist()
        if dead:
            query = "DELETE FROM record WHERE id IN (SELECT ?1 + value FROM json_each(?2))"
            with self._writing():
                self._db.execute(query, (base, json.dumps(dead)))
        return (int(offsets[-1]) + 1 if len(found) == limit else None), len(dead)

    def delete(self, tp: TopicPartition, offsets: Sequence[int]) -> None:
        """Compaction by whoever knows what was replaced: these records go, and the partition's newest one never does.

        Ascending. Records of one key have to go in the order in which they came. 2 µs each, 0.5 µs side by side.
        """
        if tp.topic not in COMPACTED:
            raise LogError(f"{tp.topic} is not compacted")
        base = self.number(tp) << OFFSET_BITS
        last = base + self.end(tp) - 1
        runs, others = _runs(offsets)
        with self._writing():
            for first, end in runs:
                self._db.execute(
                    "DELETE FROM record WHERE id >= ? AND id < min(?, ?)", (base + first, base + end, last)
                )
            query = "DELETE FROM record WHERE id IN (SELECT ?1 + value FROM json_each(?2)) AND id < ?3"
            self._db.execute(query, (base, json.dumps(others), last))

    # --- reading ----------------------------------------------------------------------------------------------------

    def number(self, tp: TopicPartition) -> int:
        """The partition's number in the file. Raises `LogError` if there is no such partition."""
        try:
            return self._numbers[tp]
        except KeyError:
            raise LogError(f"the log {self.path} has no partition {tp.partition} of topic {tp.topic}") from None

    def topics(self) -> dict[str, int]:
        """Topic name -> number of partitions."""
        counts: dict[str, int] = {}
        for tp in self._numbers:
            counts[tp.topic] = counts.get(tp.topic, 0) + 1
        return counts

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads inside the block see one instant of the log, whatever is written meanwhile. Keep it short:
        the write-ahead log cannot start anew until it ends."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def version(self) -> int:
        """A number that changes when another connection has committed: cheap enough to ask a hundred times a second."""
        found: int = self._db.execute("PRAGMA data_version").get
        return found

    def end(self, tp: TopicPartition) -> int:
        """The next offset to be given in the partition."""
        found: int = self._db.execute("SELECT next FROM partition WHERE number = ?", (self.number(tp),)).get
        return found

    def first(self, tp: TopicPartition) -> int:
        """The first offset that retention has left."""
        found: int = self._db.execute("SELECT first FROM partition WHERE number = ?", (self.number(tp),)).get
        return found

    def committed(self, consumer: str, tp: TopicPartition) -> int | None:
        """The next offset to read for a consumer group; None if it has committed none."""
        query = "SELECT next FROM committed WHERE consumer = ? AND number = ?"
        found: int | None = self._db.execute(query, (consumer, self.number(tp))).get
        return found

    def read(self, tp: TopicPartition, offset: int, limit: int = 1000, max_bytes: int = 16 << 20) -> list[Record]:
        """Records from `offset` on, at most `limit` and about `max_bytes`; at least one if there is one."""
        base = self.number(tp) << OFFSET_BITS
        rows = self._db.execute(
            "SELECT id, at, key, value FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
            (base + offset, base + (1 << OFFSET_BITS), limit),
        )
        found = []
        size = 0
        for number, at, key, value in rows:
            found.append(Record(number - base, at, key, value))
            size += len(value or b"") + len(key or b"")
            if size >= max_bytes:
                break
        rows.close()
        return found

    def block_before(self, tp: TopicPartition, start: int, end: int, limit: int) -> Block | None:
        """Up to `limit` records from below `end` on downwards, not below `start`; None: there are none.

        Of topics whose keys are JSON. One step of SQLite, which gives up the GIL at each: a fifth of `read`'s time.
        """
        base = self.number(tp) << OFFSET_BITS
        query = (
            "SELECT json_group_array(id - ?1), CAST(group_concat(coalesce(key, x''), x'0a') AS BLOB),"
            " json_group_array(length(value)), CAST(group_concat(value, '') AS BLOB)"
            " FROM (SELECT id, key, value FROM record WHERE id >= ?1 + ?2 AND id < ?1 + ?3 ORDER BY id DESC LIMIT ?4)"
        )
        [(offsets, keys, lengths, values)] = self._db.execute(query, (base, start, end, limit))
        found = Block(_decode_offsets(offsets), (keys or b"").split(b"\n"), _decode_lengths(lengths), values or b"")
        if not found.offsets:
            return None
        if len(found.keys) != len(found.offsets):
            raise LogError(f"{tp.topic} has a key with a line break, which no JSON has, near offset {found.offsets[0]}")
        return found

    def offsets_of(self, tp: TopicPartition, key: bytes, start: int, end: int) -> list[int]:
        """The offsets between two of the records that have this key, ascending. Looks at all keys between them."""
        base = self.number(tp) << OFFSET_BITS
        query = "SELECT id - ?1 FROM record WHERE id >= ?1 + ?2 AND id < ?1 + ?3 AND key = ?4 ORDER BY id"
        return [offset for (offset,) in self._db.execute(query, (base, start, end, key))]

    def count(self, tp: TopicPartition) -> int:
        """How many records the partition holds. Reads them all."""
        base = self.number(tp) << OFFSET_BITS
        query = "SELECT count(*) FROM record WHERE id >= ? AND id < ?"
        found: int = self._db.execute(query, (base, base + (1 << OFFSET_BITS))).get
        return found

    # --- the write-ahead log ----------------------------------------------------------------------------------------

    @property
    def wal_path(self) -> Path:
        """SQLite's write-ahead log."""
        return self.path.with_name(self.path.name + "-wal")

    def checkpoint(self, *, reset: bool = False) -> tuple[int, int]:
        """Move the write-ahead log into the file; returns (its frames, those moved).

        Beside running writers; with `reset` it keeps them out for the rest of it, so that the next one starts the
        write-ahead log anew.
        """
        try:
            if not reset:
                return self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            with self._lock.held():
                self._db.set_busy_timeout(100)  # a reader in the way: the writers do not wait for it
                return self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return (1, 0)
        finally:
            self._db.set_busy_timeout(BUSY_MS)
