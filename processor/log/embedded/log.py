"""The embedded log: topics, partitions and offsets in one SQLite file.

Any number of processes read; writes take turns (`log.lock`, then SQLite's own). The file is in WAL mode with
`synchronous=FULL`: what a commit has returned is on disk (fsync), and a reader never sees what is not.
A record's rowid is its partition's number and its offset, so appending and reading are range operations on one B-tree:

    id = partition number << 40 | offset

Every record has a checksum (`checksum`), which is compared when it is read. A `Log` belongs to one thread at a time.

Nothing in the program may open this file but SQLite: closing any descriptor of it drops the locks that SQLite holds on
it for the whole process (fcntl(2)), and the next program that closes the file then deletes the write-ahead log under
the server (sqlite.org/howtocorrupt.html, 2.2). `processor.log.embedded.guard` notices it all the same.
"""

import errno
import json
import os
import secrets
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import apsw
import msgspec
import xxhash

from processor.log.data_directory import make_data_directory
from processor.log.durable_names import sync_directory
from processor.log.embedded.guard import Guard, wal_of
from processor.log.errors import (
    DamagedRecord,
    FormatError,
    LogBroken,
    LogError,
    LogUnavailable,
    PartitionMismatch,
    RecoveryNeeded,
)
from processor.log.file_lock import FileLock
from processor.log.port import polls
from processor.log.records import Append, Record, TopicPartition
from processor.log.topics import COMPACTED, DIRECTORY, EVENTS, LATER, PARTITIONED, SINGLE

if TYPE_CHECKING:  # only compaction computes with it: processes that do not compact start without
    import numpy as np
    from numpy.typing import NDArray

FORMAT: Final = 4
"""4 added a checksum to each record."""
OLDEST: Final = 3
"""The oldest format that this program reads; a role that starts brings it to its own."""
SUMMED_FROM: Final = "summed_from"
"""The name in `meta` of JSON, partition number -> the first offset whose records must have a checksum; 0 where none is
said. Logs without it are of earlier versions, or were upgraded by one."""
FILE_NAME: Final = "log.db"
OFFSET_BITS: Final = 40
DEFAULT_PARTITIONS: Final = 1
MAX_PARTITIONS: Final = 1024
COPY_PAGES: Final = 1024
"""Pages of 8 KiB that are copied in one step."""
BUSY_MS: Final = 10_000
IN_THE_WAY: Final = (1, 0)
"""What a checkpoint returns that a reader has kept from being made."""
RECOVERY_PATIENCE_MS: Final = 2_000
"""How long a start waits for those that still have a log open that must be recovered."""

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
CREATE TABLE record (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, key BLOB, value BLOB, checksum INTEGER) STRICT;
CREATE TABLE committed (
    consumer TEXT NOT NULL,
    number INTEGER NOT NULL REFERENCES partition,
    next INTEGER NOT NULL,
    PRIMARY KEY (consumer, number)
) STRICT, WITHOUT ROWID;
"""


class RecordBlock(NamedTuple):
    """Records of one partition without an object for each, the newest first."""

    offsets: list[int]
    keys: list[bytes]
    lengths: list[int | None]
    """Of the values; None: a tombstone."""
    values: bytes
    """All of them in a row."""
    ats: list[int]
    checksums: list[int | None]
    """As they are stored; None: there is none, see `SUMMED_FROM`."""


_FSYNC_FAILED: Final = (apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC)


_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _has_no_room(error: apsw.Error, db: apsw.Connection) -> bool:
    """Whether a checkpoint of this connection failed because the disk is full, or a quota or the largest size of a file
    is reached.

    SQLite has counted none of its pages as written then, so that another checkpoint may follow. A write that the disk
    itself refuses (EIO) is like a failed fsync: nobody knows what else it has dropped.
    """
    if isinstance(error, apsw.FullError):
        return True
    return getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_WRITE and db.system_errno in _NO_ROOM


CHUNK: Final = 250
"""Records in one INSERT. Every statement gives up the GIL and must get it back, and whoever waits for the GIL in here
makes other processes wait for the lock: so a flush of thousands of rows is a few statements, not thousands."""


_SIGN: Final = (1 << 63) - 1
_hash = xxhash.xxh3_64_intdigest
_TOMBSTONE: Final = b"tombstone"


def _digest(at: int, key: bytes | None, value: bytes | None) -> int:
    """All of a record's checksum but its place in the log, which is known only when it is appended."""
    seed = (0 if key is None else _hash(key)) ^ at
    return _hash(_TOMBSTONE if value is None else value, seed)


def checksum(number: int, at: int, key: bytes | None, value: bytes | None) -> int:
    """A record's checksum, 63 bits: XXH3 of its value, with key and time as the seed, and its rowid.

    So a flipped bit in any of the four is noticed, and a record that stands at another's place.
    """
    return (_digest(at, key, value) ^ number) & _SIGN


LONG: Final = 256
"""Records side by side that are worth a statement of their own."""

_decode_offsets: Final = msgspec.json.Decoder(list[int]).decode
_decode_places: Final = msgspec.json.Decoder(dict[int, int]).decode
_decode_lengths: Final = msgspec.json.Decoder(list[int | None]).decode


@cache
def _insert(rows: int) -> str:
    sums = 2 * rows + 3
    values = ",".join(f"(?1+{row},?2,?{2 * row + 3},?{2 * row + 4},?{sums + row})" for row in range(rows))
    return f"INSERT INTO record VALUES {values}"  # noqa: S608 - numbers only


def _runs(offsets: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Long stretches without a gap, each from its first offset to before its end, and all other offsets."""
    import numpy as np

    found = np.array(offsets, np.int64)
    starts = np.flatnonzero(np.diff(found, prepend=-2) != 1)
    ends = np.append(starts[1:], len(found))
    is_long = ends - starts >= LONG
    runs = [
        (int(found[start]), int(found[end - 1]) + 1) for start, end in zip(starts[is_long], ends[is_long], strict=True)
    ]
    return runs, found[~np.repeat(is_long, ends - starts)].tolist()


def _reason(error: Exception) -> str:
    """Why the log cannot be opened.

    Without room for its index of the write-ahead log (log.db-shm) SQLite reads nothing. It could keep that in memory,
    but only for a process that has the file for itself, and here the APIs and the worker share it.
    """
    code = getattr(error, "extendedresult", 0)
    is_full = code == apsw.SQLITE_IOERR_SHMSIZE or getattr(error, "errno", None) in _NO_ROOM
    if is_full or isinstance(error, apsw.FullError):
        return (
            f"there is no room for {FILE_NAME}-shm and {FILE_NAME}-wal beside it, which SQLite needs even to read: the "
            "disk is full, or a quota or the largest size of a file is reached. Make room (1 MiB is enough to read), "
            f"then start again; nothing in the log is lost ({error})"
        )
    return str(error)


def _connect(path: Path) -> apsw.Connection:
    db = apsw.Connection(str(path))
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # checkpoints are the checkpointer's, see there
    db.set_busy_timeout(BUSY_MS)
    return db


def _configure(db: apsw.Connection) -> None:
    """Set what SQLite does not keep in the file. Writes nothing."""
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA wal_autocheckpoint = 0")  # the checkpointer's thread does it
    db.execute("PRAGMA journal_size_limit = 16777216")
    db.execute("PRAGMA cache_size = -16384")


def _has_schema(db: apsw.Connection) -> bool:
    return bool(db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'").get)


def _missing_topics(db: apsw.Connection) -> list[str]:
    """Topics that the log of an earlier version does not have."""
    query = "SELECT count(*) FROM partition WHERE topic = ?"
    return [topic for topic in sorted(LATER) if not db.execute(query, (topic,)).get]


class Log:
    """One process's view of the log file. Raises `LogError` when it cannot be opened."""

    def __init__(
        self, data_dir: Path, *, partitions: int | None = None, create: bool = True, upgrade: bool = False
    ) -> None:
        """Open the log in `data_dir`, making it with `partitions` (default 1) if there is none yet.

        Without `upgrade` a log of an older format can only be read: the server of that version may be running on it.
        """
        self.path = data_dir / FILE_NAME
        if not create and not self.path.exists():
            raise LogError(
                f"there is no log in {data_dir}: start the server there once, or name another data directory"
            )
        if create:
            make_data_directory(data_dir)
        try:
            self._lock = FileLock(data_dir / "log.lock")
        except OSError as error:
            raise LogError(
                f"cannot open the log {self.path}: {error}; whoever reads it writes beside it, too: be the user that "
                "the server runs as"
            ) from error
        self._close_lock = weakref.finalize(self, self._lock.close)
        self._close_lock.atexit = False  # a thread may still hold it
        self._guard = Guard(self.path)
        self._is_unrecovered = False
        try:
            self._open(partitions, upgrade=upgrade)
        except (apsw.Error, OSError) as error:
            self._close_lock()
            raise LogError(f"cannot open the log {self.path}: {_reason(error)}") from error
        except LogError:
            self._close_lock()
            raise
        self._numbers: dict[TopicPartition, int] = {
            TopicPartition(topic, partition): number
            for number, topic, partition in self._db.execute("SELECT number, topic, partition FROM partition")
        }
        self.partitions = sum(1 for tp in self._numbers if tp.topic == EVENTS)
        self._check_partitions(partitions)
        meta = dict(self._db.execute("SELECT name, value FROM meta"))
        self.salt: bytes = meta["salt"]
        self.identity: str = meta["identity"]
        self._is_old = meta["format"] < FORMAT
        self._checksum = "NULL" if self._is_old else "checksum"
        """The column, in queries."""
        summed = meta.get(SUMMED_FROM)
        self._summed_from: dict[int, int] | None = None if summed is None else _decode_places(summed)
        """See `SUMMED_FROM`; None: not known, any record may have none."""

    def _open(self, partitions: int | None, *, upgrade: bool) -> None:
        """Open the file, made, recovered and brought to this format where it has to be, while no other process does."""
        if self._open_as_it_is(upgrade=upgrade):
            return
        with self._lock.held():
            if not self.path.exists():
                self._check_is_new("gone")
                self._make_file()
            elif not self.path.stat().st_size:  # SQLite would make a new one of it, and delete what lies beside it
                self._check_is_new("empty")
            self._recover()
            self._db = _connect(self.path)
            self._prepare(partitions, upgrade=upgrade)
            self._guard.begin()

    def _open_as_it_is(self, *, upgrade: bool) -> bool:
        """Open a file to which nothing has to be done first; False where something may have to be.

        Without the lock, for which writers would wait as long as a reader stood still here.
        """
        if self._is_to_be_recovered() or not self.path.exists() or not self.path.stat().st_size:
            return False
        db = _connect(self.path)
        is_open = False
        try:
            if self._is_ready(db, upgrade=upgrade):
                _configure(db)
                self._db = db
                self._guard.begin()
                is_open = not self._is_to_be_recovered()  # or a process has met a failed fsync meanwhile
        except apsw.Error:  # what it is shows when nobody else is at it
            pass
        finally:
            if not is_open:
                db.close()
        return is_open

    def _is_ready(self, db: apsw.Connection, *, upgrade: bool) -> bool:
        """Whether `_prepare` would have nothing to do."""
        if db.execute("PRAGMA journal_mode").get != "wal" or not _has_schema(db):
            return False
        version = db.execute("SELECT value FROM meta WHERE name = 'format'").get
        is_known = version == FORMAT if upgrade else OLDEST <= version <= FORMAT
        return is_known and not (upgrade and self._is_to_be_summed(db)) and not _missing_topics(db)

    def _is_to_be_recovered(self) -> bool:
        return self.recovery_path.exists() or self.deferred_path.exists()

    def _check_partitions(self, asked: int | None) -> None:
        if asked is not None and asked != self.partitions:
            raise PartitionMismatch(
                f"the log {self.path} has {self.partitions} partition(s), not {asked}: the number is chosen once, "
                f"when the log is made. Start with {self.partitions} or leave the setting out; for another number, "
                "export the events into a new data directory"
            )

    def _make_file(self) -> None:
        """Make the file, readable by its owner only, under another name: no descriptor of it may be closed later."""
        draft = self.path.with_name(self.path.name + ".new")
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        draft.rename(self.path)
        sync_directory(self.path.parent)
        with suppress(PermissionError):  # of a directory that may not be read, its owner sees to that
            sync_directory(self.path.parent.parent)  # the data directory may be new, too

    def _check_is_new(self, what: str) -> None:
        """Raises `LogError` where there was a log before: a new one would begin to count from nothing, in silence."""
        if self.wal_size() or any(self.path.parent.glob("index/*/*")):
            raise LogError(
                f"the log {self.path} is {what}, and other files in {self.path.parent} are of it: put it back from a "
                "backup. To begin with an empty log, name another data directory or empty this one"
            )

    def _recover(self) -> None:
        """After a checkpoint that failed: write the whole write-ahead log into the file anew, before anything else.

        SQLite must not remember what it had written before: it does not, when no process has the file open.
        Raises `RecoveryNeeded` while one has that was running then.

        Where the disk has no room for it, the file is renamed to `deferred_path`: the log is only read then, by this
        process and those that come after it, until there is room. None that was running before has it open.
        """
        if not self._is_to_be_recovered():
            return
        is_needed = self.recovery_path.exists()
        db = _connect(self.path)
        db.set_busy_timeout(RECOVERY_PATIENCE_MS if is_needed else 0)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")  # before the first access: SQLite shares no memory then
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE; COMMIT")
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            if not is_needed:
                self._is_unrecovered = True
                return
            raise RecoveryNeeded(
                f"the log {self.path} has to be recovered after a checkpoint that failed, and a process that was "
                "running then still has it open: end every spendstream process and every other program that uses "
                "the file, then start again"
            ) from None
        except apsw.Error as error:
            if not _has_no_room(error, db):
                raise
            if is_needed:
                self.recovery_path.rename(self.deferred_path)  # while nobody else can open the file
            self._is_unrecovered = True
            return
        finally:
            db.close()
        self.deferred_path.unlink(missing_ok=True)
        self.recovery_path.unlink(missing_ok=True)

    def _prepare(self, partitions: int | None, *, upgrade: bool) -> None:
        db = self._db
        db.execute("PRAGMA page_size = 8192")
        db.execute("PRAGMA journal_mode = WAL")
        _configure(db)
        if not _has_schema(db):
            self._create(DEFAULT_PARTITIONS if partitions is None else partitions)
            return
        version = db.execute("SELECT value FROM meta WHERE name = 'format'").get
        if version > FORMAT:
            raise FormatError(
                f"the log {self.path} has format {version}, this program knows formats up to {FORMAT}: "
                "it was written by a newer spendstream; use that one"
            )
        if version < OLDEST:
            raise FormatError(
                f"the log {self.path} has format {version}, this program opens formats from {OLDEST} on: "
                "start spendstream 0.1.0 on it once, which brings it to format 3, then this program"
            )
        if upgrade:
            self._upgrade(version)
        self._add_topics()

    def _upgrade(self, version: int) -> None:
        """Bring a log of format 3 to this one, in which records have a checksum, and note from where on they have."""
        db = self._db
        if version == FORMAT and not self._is_to_be_summed(db):
            return
        self._refuse_unrecovered()
        with self._transaction():
            if version < FORMAT:
                db.execute("ALTER TABLE record ADD COLUMN checksum INTEGER")
                db.execute("UPDATE meta SET value = ? WHERE name = 'format'", (FORMAT,))
            ends: list[Any] = db.execute("SELECT number, next FROM partition").fetchall()
            found = {number: self._first_summed(number, end) for number, end in ends}
            summed = json.dumps({number: offset for number, offset in found.items() if offset})
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (SUMMED_FROM, summed))

    @staticmethod
    def _is_to_be_summed(db: apsw.Connection) -> bool:
        """Whether nothing says yet from where on records have a checksum."""
        return not db.execute("SELECT count(*) FROM meta WHERE name = ?", (SUMMED_FROM,)).get

    def _first_summed(self, number: int, end: int) -> int:
        """The offset of a partition from which on all records have a checksum: earlier ones were appended without."""
        base, low, high = number << OFFSET_BITS, 0, end
        query = "SELECT id, checksum IS NULL FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT 1"
        while low < high:
            middle = (low + high) // 2
            found = self._db.execute(query, (base + middle, base + high)).fetchone()
            if found is not None and found[1]:
                low = found[0] - base + 1
            else:
                high = middle
        return low

    def _add_topics(self) -> None:
        """Add the topics that the log of an earlier version does not have; no number of another one changes.

        Where nothing can be written now, a later start does it: until then there is no such topic.
        """
        missing = [(topic, 0) for topic in _missing_topics(self._db)]
        if missing and not self._is_unrecovered:
            try:
                with self._transaction():
                    self._db.executemany("INSERT INTO partition (topic, partition) VALUES (?, ?)", missing)
            except apsw.Error as error:
                if not _has_no_room(error, self._db):
                    raise

    def _create(self, partitions: int) -> None:
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise LogError(f"a log has 1 to {MAX_PARTITIONS} partitions, not {partitions}")
        db = self._db
        self._refuse_unrecovered()
        with db:
            db.execute(_SCHEMA)
            meta = {
                "format": FORMAT,
                "salt": secrets.token_bytes(32),
                "identity": secrets.token_hex(4),
                SUMMED_FROM: "{}",
            }
            db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            tps = [(topic, number) for topic in PARTITIONED for number in range(partitions)]
            tps += [(topic, 0) for topic in SINGLE]
            db.executemany("INSERT INTO partition (topic, partition) VALUES (?, ?)", tps)

    def close(self) -> None:
        """Close the file."""
        self._db.close()
        self._close_lock()

    # --- writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: durable when the block is left, or not there at all.

        Raises `LogUnavailable`; as `LogBroken` when an fsync has failed, or when the files are not those that were
        opened: then it may be in the log all the same.
        """
        with self._lock.held():
            self._guard.check()
            if self._is_unrecovered:
                self._refuse_unrecovered()
            if self._is_old:
                self._refuse_old()
            try:
                with self._transaction():
                    yield
            except apsw.Error as error:
                reason = f"cannot write to {self.path}: {error}"
                if getattr(error, "extendedresult", 0) in _FSYNC_FAILED:
                    raise self.broken(reason) from error
                raise LogUnavailable(reason) from error
            self._guard.check()

    def broken(self, reason: str) -> LogBroken:
        """Leave word for the other processes that the file has to be recovered before it is used again.

        What a failed fsync has left on the disk is unknown, and SQLite would count on it.
        """
        try:
            try:
                self.deferred_path.rename(self.recovery_path)
            except FileNotFoundError:
                self.recovery_path.touch(mode=0o600)
        except OSError as error:
            reason = f"{reason}; and {self.recovery_path} cannot be made: {error}"
        return LogBroken(reason)

    @property
    def recovery_path(self) -> Path:
        """The file that says so."""
        return self.path.with_name("recovery-needed")

    @property
    def deferred_path(self) -> Path:
        """Its name while the disk has no room for the recovery."""
        return self.path.with_name("recovery-deferred")

    @property
    def needs_recovery(self) -> bool:
        """Whether the log can only be read, because it has to be recovered first and the disk has no room.

        Raises `LogBroken` when the recovery has failed meanwhile.
        """
        if self._is_unrecovered and not self.deferred_path.exists():
            self.check()
            self._is_unrecovered = False
        return self._is_unrecovered

    def _refuse_unrecovered(self) -> None:
        if self.needs_recovery:
            raise LogUnavailable(
                f"cannot write to {self.path}: the log has to be recovered first, and the disk has no room. Make room "
                "for its write-ahead log"
            )

    def _refuse_old(self) -> NoReturn:
        raise FormatError(
            f"the log {self.path} has an older format, which this program only reads: stop the server of the older "
            "version, start that of this one on it, which upgrades it, and do this again"
        )

    def check(self) -> None:
        """Raise `LogBroken` if this process must not use the log any more; a few microseconds.

        So it is when another program has deleted or replaced a file of it, or when a process had to give up on it.
        """
        self._guard.check()
        if self.recovery_path.exists():
            raise LogBroken(f"a process could not write to {self.path}: it has to be recovered by a new start")

    def check_lock(self) -> None:
        """Raise `LogBroken` if SQLite's lock on the file is gone; about 0.1 ms. Not to be called while it is opened."""
        self._guard.check_lock()

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
        bound = []  # all that the place does not decide, before the lock is held: of each INSERT, values and checksums
        for append in appends:
            chunks = [append.records[start : start + CHUNK] for start in range(0, len(append.records), CHUNK)]
            inserts: list[tuple[list[Any], list[int]]] = [
                (
                    [0, at, *(part for record in chunk for part in record)],
                    [_digest(at, key, value) for key, value in chunk],
                )
                for chunk in chunks
            ]
            bound.append((self.number(append.to), len(append.records), inserts))
        firsts = []
        with self._writing():
            for number, count, inserts in bound:
                grown = "UPDATE partition SET next = next + ? WHERE number = ? RETURNING next"
                first: int = self._db.execute(grown, (count, number)).get - count
                place = (number << OFFSET_BITS) + first
                for values, digests in inserts:
                    values[0] = place
                    sums = [(digest ^ (place + row)) & _SIGN for row, digest in enumerate(digests)]
                    self._db.execute(_insert(len(sums)), values + sums)
                    place += len(sums)
                firsts.append(first)
        return firsts

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
        self, tp: TopicPartition, start: int, end: int, limit: int, live: "NDArray[np.int64]"
    ) -> tuple[int | None, int]:
        """One step of compaction over the offsets `start` to `end`: look at `limit` records, delete the dead ones.

        `live`, ascending, are the offsets of all records below `end` that no newer record has replaced. Returns where
        the next step starts (None: nothing is left below `end`) and how many records went. The partition's newest
        record always stays. For the partition's one writer: only it knows what is live.
        """
        import numpy as np

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

    def drop_damaged(self, tp: TopicPartition, offset: int) -> None:
        """Delete a record whose checksum does not match, and that has been made anew elsewhere; else do nothing."""
        if tp.topic in {EVENTS, DIRECTORY}:
            raise LogError(f"nothing stands for a record of {tp.topic}")
        if any(record.offset == offset and record.is_damaged for record in self.read(tp, offset, 1, keep_damaged=True)):
            with self._writing():
                self._db.execute("DELETE FROM record WHERE id = ?", ((self.number(tp) << OFFSET_BITS) + offset,))

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

    def name_of(self, topic: str) -> str:
        """The name of a topic for operators."""
        return topic

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

    def read(
        self,
        tp: TopicPartition,
        offset: int,
        limit: int = 1000,
        max_bytes: int = 16 << 20,
        *,
        keep_damaged: bool = False,
    ) -> list[Record]:
        """Records from `offset` on, at most `limit` and about `max_bytes`; at least one if there is one.

        A damaged record ends what is read; where it is the first one, raises `DamagedRecord`. With `keep_damaged` it
        is handed out like the others, marked.
        """
        base = self.number(tp) << OFFSET_BITS
        rows = self._db.execute(
            f"SELECT id, at, key, value, {self._checksum} FROM record"  # noqa: S608 - a column
            " WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
            (base + offset, base + (1 << OFFSET_BITS), limit),
        )
        found: list[Record] = []
        size = 0
        try:
            for number, at, key, value, stored in rows:
                is_damaged = self._lacks(number) if stored is None else stored != checksum(number, at, key, value)
                if is_damaged and not keep_damaged:
                    if not found:
                        raise DamagedRecord(tp.topic, tp.partition, number - base)
                    break
                found.append(Record(number - base, at, key, value, is_damaged))
                size += len(value or b"") + len(key or b"")
                if size >= max_bytes:
                    break
        finally:
            rows.close()
        return found

    def block_before(self, tp: TopicPartition, start: int, end: int, limit: int) -> RecordBlock | None:
        """Up to `limit` records from below `end` on downwards, not below `start`; None: there are none.

        Of topics whose keys are JSON. One step of SQLite, which gives up the GIL at each: a fifth of `read`'s time.
        """
        base = self.number(tp) << OFFSET_BITS
        query = (
            "SELECT json_group_array(id - ?1), CAST(group_concat(coalesce(key, x''), x'0a') AS BLOB),"
            " json_group_array(length(value)), CAST(group_concat(value, '') AS BLOB),"
            " json_group_array(at), json_group_array(:checksum)"
            " FROM (SELECT * FROM record WHERE id >= ?1 + ?2 AND id < ?1 + ?3 ORDER BY id DESC LIMIT ?4)"
        )
        query = query.replace(":checksum", self._checksum)
        [(offsets, keys, lengths, values, ats, sums)] = self._db.execute(query, (base, start, end, limit))
        found = RecordBlock(
            _decode_offsets(offsets),
            (keys or b"").split(b"\n"),
            _decode_lengths(lengths),
            values or b"",
            _decode_offsets(ats),
            _decode_lengths(sums),
        )
        if not found.offsets:
            return None
        if len(found.keys) != len(found.offsets):  # a key with a line break, which JSON has not
            self.verify_all(tp, found.offsets[-1], found.offsets[0] + 1)
            raise LogError(f"{tp.topic} has a key with a line break")
        return found

    def verify(self, tp: TopicPartition, block: RecordBlock, places: Sequence[int]) -> None:
        """Compare the checksums of the records at these places of a block. Raises `DamagedRecord`. 0.5 µs each."""
        base = self.number(tp) << OFFSET_BITS
        offsets, keys, lengths, values, ats, sums = block
        ends = list(accumulate(length or 0 for length in lengths))
        for place in places:
            stored, length, number = sums[place], lengths[place], base + offsets[place]
            value = None if length is None else values[ends[place] - length : ends[place]]
            if self._lacks(number) if stored is None else stored != checksum(number, ats[place], keys[place], value):
                raise DamagedRecord(tp.topic, tp.partition, offsets[place])

    def _lacks(self, number: int) -> bool:
        """Whether the record of this rowid must have a checksum: it was not appended before there were any."""
        summed, offset = self._summed_from, number & ((1 << OFFSET_BITS) - 1)
        return summed is not None and offset >= summed.get(number >> OFFSET_BITS, 0)

    def verify_all(self, tp: TopicPartition, start: int, end: int) -> None:
        """Compare the checksums of all records between two offsets. Raises `DamagedRecord`."""
        for _ in polls(self.read, tp, start, end):
            pass

    def offsets_of(self, tp: TopicPartition, key: bytes, start: int, end: int) -> list[int]:
        """The offsets between two of the records that have this key, ascending. Looks at all keys between them."""
        base = self.number(tp) << OFFSET_BITS
        query = "SELECT id - ?1 FROM record WHERE id >= ?1 + ?2 AND id < ?1 + ?3 AND key = ?4 ORDER BY id"
        return [offset for (offset,) in self._db.execute(query, (base, start, end, key))]

    def missing(self, tp: TopicPartition, start: int, end: int) -> list[tuple[int, int]]:
        """Ranges of offsets between two, each from its first to before its end, that have no record.

        Of a topic that is not compacted: nothing of it may be missing. Looks at the ids of all records between the two,
        not at their values: 0.1 s for a million.
        """
        base = self.number(tp) << OFFSET_BITS
        between = (base + start, base + max(start, end))
        if self._db.execute("SELECT count(*) FROM record WHERE id >= ? AND id < ?", between).get == end - start:
            return []
        found = []
        expected = start
        for (number,) in self._db.execute("SELECT id FROM record WHERE id >= ? AND id < ? ORDER BY id", between):
            if number - base > expected:
                found.append((expected, number - base))
            expected = number - base + 1
        return [*found, (expected, end)] if expected < end else found

    def count(self, tp: TopicPartition) -> int:
        """How many records the partition holds. Reads them all."""
        base = self.number(tp) << OFFSET_BITS
        query = "SELECT count(*) FROM record WHERE id >= ? AND id < ?"
        found: int = self._db.execute(query, (base, base + (1 << OFFSET_BITS))).get
        return found

    # --- copies -----------------------------------------------------------------------------------------------------

    def copy_to(self, target: Path, show: Callable[[int, int], None]) -> int:
        """Copy the log as it is now into a file, which appears under its name whole or not at all; returns its bytes.

        Others go on reading and writing meanwhile; the write-ahead log cannot start anew until it ends. `show` is
        called with (pages done, pages in all). Raises `OSError` when the copy cannot be written.
        """
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}.part")
        draft.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        copy = apsw.Connection(str(draft))
        try:
            copy.execute("PRAGMA synchronous = FULL")
            with self.snapshot(), copy.backup("main", self._db, "main") as backup:
                self._db.execute("SELECT count(*) FROM meta").fetchall()  # the snapshot begins with the first read
                while not backup.done:
                    backup.step(COPY_PAGES)
                    show(backup.page_count - backup.remaining, backup.page_count)
            copy.close()
            draft.rename(target)
            sync_directory(target.parent)
        except apsw.Error as error:
            raise OSError(str(error)) from error
        finally:
            copy.close()
            for path in (draft, Path(f"{draft}-journal")):
                path.unlink(missing_ok=True)
        return target.stat().st_size

    # --- the write-ahead log ----------------------------------------------------------------------------------------

    @property
    def wal_path(self) -> Path:
        """SQLite's write-ahead log."""
        return wal_of(self.path)

    def wal_size(self) -> int:
        """Its bytes; 0: there is nothing in it."""
        try:
            return self.wal_path.stat().st_size
        except FileNotFoundError:
            return 0

    def has_no_room(self, error: apsw.Error) -> bool:
        """Whether a checkpoint that has just failed may be followed by another one: it only lacked room."""
        return _has_no_room(error, self._db)

    def checkpoint(self, *, reset: bool = False) -> tuple[int, int]:
        """Move the write-ahead log into the file; returns (its frames, those moved).

        Beside running writers; with `reset` it keeps them out for the rest of it, so that the next one starts the
        write-ahead log anew. A reader in the way: `IN_THE_WAY`. Raises `apsw.Error`: after any but those that
        `has_no_room` knows there must be no other checkpoint before all processes have ended.

        Of a log that `needs_recovery` it is the recovery, always a reset. Those that have it open came after the
        failure, so SQLite counts nothing as written that was not written since: all of it is written and synced.
        """
        try:
            needs_recovery = self.needs_recovery
            if not reset and not needs_recovery:
                return self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            with self._lock.held():
                self._db.set_busy_timeout(100)  # a reader in the way: the writers do not wait for it
                found = self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                if needs_recovery:
                    self.deferred_path.unlink(missing_ok=True)
                return found
        except apsw.BusyError:
            return IN_THE_WAY
        finally:
            self._db.set_busy_timeout(BUSY_MS)
