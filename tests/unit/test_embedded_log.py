import errno
import gc
import multiprocessing
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import apsw
import numpy as np
import pytest
import structlog.testing
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from processor.log.embedded import checkpointer as checkpointer_module
from processor.log.embedded.checkpointer import SOFT_LIMIT, Checkpointer
from processor.log.embedded.log import FORMAT, OFFSET_BITS, Log
from processor.log.embedded.newest import newest
from processor.log.errors import (
    DamagedRecord,
    FormatError,
    Locked,
    LogBroken,
    LogError,
    LogUnavailable,
    PartitionMismatch,
    RecoveryNeeded,
)
from processor.log.file_lock import FileLock
from processor.log.records import Append, TopicPartition
from processor.log.topics import CHECKPOINTS, CLAIMS, DEAD_LETTERS, DIRECTORY, EVENTS, GROUP, ROWS, SEGMENTS
from tests.support import format3
from tests.support.examples import examples
from tests.support.patience import PATIENCE

E0, E1, R0 = TopicPartition(EVENTS, 0), TopicPartition(EVENTS, 1), TopicPartition(ROWS, 0)
D0 = TopicPartition(DIRECTORY, 0)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "data", partitions=2)


def put(log: Log, tp: TopicPartition, *values: bytes) -> int:
    return log.append([Append(tp, [(None, value) for value in values])], 5)[0]


def test_offsets_count_up_by_partition(log: Log) -> None:
    assert put(log, E0, b"a", b"b") == 0
    assert put(log, E1, b"c") == 0
    assert put(log, E0, b"d") == 2
    assert [(record.offset, record.value, record.at) for record in log.read(E0, 0)] == [
        (0, b"a", 5),
        (1, b"b", 5),
        (2, b"d", 5),
    ]
    assert log.read(E1, 1) == []
    assert [record.offset for record in log.read(E0, 1, limit=1)] == [1]
    assert (log.end(E0), log.end(E1), log.first(E0)) == (3, 1, 0)


def test_a_read_is_bounded_in_bytes_but_brings_at_least_one(log: Log) -> None:
    put(log, E0, b"x" * 100, b"y" * 100, b"z")
    assert len(log.read(E0, 0, max_bytes=10)) == 1
    assert len(log.read(E0, 0, max_bytes=150)) == 2


def test_several_partitions_are_written_all_or_nothing(log: Log) -> None:
    with pytest.raises(LogError, match="no partition 9"):
        log.append([Append(E0, [(None, b"a")]), Append(TopicPartition(EVENTS, 9), [(None, b"b")])], 0)
    assert log.end(E0) == 0
    assert log.read(E0, 0) == []


def test_what_was_appended_outlives_the_process(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_append_and_die, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 9
    log = Log(tmp_path, create=False)
    assert [record.value for record in log.read(E0, 0)] == [b"kept"]


def _append_and_die(path: Path) -> None:
    put(Log(path), E0, b"kept")
    os._exit(9)


def test_another_process_sees_a_commit_at_once_and_never_half_of_it(tmp_path: Path, log: Log) -> None:
    other = Log(log.path.parent, create=False)
    before = other.version()
    put(log, E0, b"a", b"b")
    assert other.version() != before
    assert len(other.read(E0, 0)) == 2


def test_committed_offsets_are_kept(log: Log) -> None:
    assert log.committed(GROUP, E0) is None
    log.commit(GROUP, [(E0, 7), (E1, 2)])
    log.commit(GROUP, [(E0, 9)])
    again = Log(log.path.parent)
    assert (again.committed(GROUP, E0), again.committed(GROUP, E1), again.committed("other", E0)) == (9, 2, None)


def test_retention_takes_the_oldest_and_never_reuses_an_offset(log: Log) -> None:
    put(log, E0, *[b"%d" % n for n in range(10)])
    assert log.trim(E0, 4, limit=3) == 3
    assert log.trim(E0, 4, limit=3) == 1
    assert (log.first(E0), [record.offset for record in log.read(E0, 0)]) == (4, [4, 5, 6, 7, 8, 9])
    log.trim(E0, 10)
    assert put(log, E0, b"next") == 10


def test_compaction_deletes_what_was_replaced_and_keeps_the_newest_record(log: Log) -> None:
    keys = [b"a", b"b", b"a", b"c", b"b", b"a"]
    log.append([Append(R0, [(key, b"v%d" % number) for number, key in enumerate(keys)])], 0)
    newest = {key: number for number, key in enumerate(keys)}
    start: int | None = 0
    removed = 0
    while start is not None:
        start, gone = log.compact(R0, start, 6, 2, np.array(sorted(newest.values())))
        removed += gone
    assert removed == 3
    assert [(record.offset, record.key) for record in log.read(R0, 0)] == [(3, b"c"), (4, b"b"), (5, b"a")]
    log.compact(R0, 0, 6, 100, np.empty(0, np.int64))
    assert [record.offset for record in log.read(R0, 0)] == [5], "the newest record of a partition always stays"
    with pytest.raises(LogError, match="not compacted"):
        log.compact(E0, 0, 1, 1, np.arange(9))


def test_what_its_owner_knows_to_be_replaced_is_deleted(log: Log) -> None:
    log.append([Append(R0, [(b"%d" % number, b"v") for number in range(5000)])], 0)
    log.append([Append(TopicPartition(ROWS, 1), [(b"other", b"v")])], 0)
    log.delete(R0, [*range(0, 2000, 2), *range(2500, 3500), *range(4000, 4100), 4999, 70_000])
    expected = [*range(1, 2000, 2), *range(2000, 2500), *range(3500, 4000), *range(4100, 5000)]
    assert [record.offset for record in log.read(R0, 0, 6000)] == expected
    log.delete(R0, [])
    log.delete(R0, list(range(6000)))
    assert [record.offset for record in log.read(R0, 0)] == [4999], "the newest record of a partition always stays"
    assert log.count(TopicPartition(ROWS, 1)) == 1
    with pytest.raises(LogError, match="not compacted"):
        log.delete(E0, [0])


def test_the_number_of_partitions_is_chosen_once(log: Log) -> None:
    assert Log(log.path.parent).partitions == 2
    with pytest.raises(PartitionMismatch, match=r"has 2 partition\(s\), not 3"):
        Log(log.path.parent, partitions=3)
    with pytest.raises(LogError, match="1 to 1024"):
        Log(log.path.parent / "other", partitions=0)
    assert log.topics() == {EVENTS: 2, ROWS: 2, CLAIMS: 2, DEAD_LETTERS: 2, CHECKPOINTS: 2, DIRECTORY: 1, SEGMENTS: 1}


def test_a_log_that_is_let_go_of_has_no_file_open(tmp_path: Path) -> None:
    """A process that opens one after the other runs out of files; so does one whose log cannot be opened."""
    Log(tmp_path / "data", partitions=2)
    (tmp_path / "log.db").write_bytes(b"not a database" * 100)
    for refused in (tmp_path / "data", tmp_path):
        with pytest.raises(LogError):
            Log(refused, partitions=3)
    gc.collect()
    links = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert [each for each in links if each.startswith(str(tmp_path))] == []


def test_a_newer_format_is_refused(log: Log) -> None:
    with apsw.Connection(str(log.path)) as db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'format'", (FORMAT + 1,))
    with pytest.raises(FormatError, match="newer spendstream"):
        Log(log.path.parent)


def test_what_is_no_log_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="there is no log"):
        Log(tmp_path, create=False)
    (tmp_path / "log.db").write_bytes(b"not a database" * 100)
    with pytest.raises(LogError, match="cannot open"):
        Log(tmp_path)


@pytest.mark.parametrize("beside", ["log.db-wal", "index/0000/checkpoint.json"])
def test_a_file_that_was_emptied_is_not_begun_anew_in_silence(log: Log, beside: str) -> None:
    """As a copy leaves it for which the disk had no room."""
    put(log, E0, b"a")
    log.close()
    log.path.write_bytes(b"")
    log.wal_path.write_bytes(log.wal_path.read_bytes() if beside == "log.db-wal" else b"")
    (log.path.parent / beside).parent.mkdir(parents=True, exist_ok=True)
    (log.path.parent / beside).touch()
    left = (log.path.parent / beside).read_bytes()
    for create in (True, False):
        with pytest.raises(LogError, match=r"is empty, and other files in .* are of it: put it back from a backup"):
            Log(log.path.parent, create=create)
    assert log.path.stat().st_size == 0
    assert (log.path.parent / beside).read_bytes() == left


def test_the_files_are_for_their_owner_only(log: Log) -> None:
    assert log.path.stat().st_mode & 0o077 == 0
    assert log.path.parent.stat().st_mode & 0o077 == 0
    put(log, E0, b"a")
    assert log.wal_path.stat().st_mode & 0o077 == 0


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    first.acquire("busy")
    with pytest.raises(Locked, match=rf"busy \(process {os.getpid()} holds"):
        second.acquire("busy", patience=0.06)
    first.close()
    second.acquire("busy")


def test_a_snapshot_stands_still(log: Log) -> None:
    put(log, E0, b"a")
    reader = Log(log.path.parent, create=False)
    with reader.snapshot():
        assert reader.end(E0) == 1
        put(log, E0, b"b")
        assert reader.end(E0) == 1
    assert reader.end(E0) == 2


def test_the_write_ahead_log_is_emptied_beside_the_writers(log: Log) -> None:
    checkpointer = Checkpointer(log.path.parent)
    checkpointer.start()
    try:
        for _ in range(40):
            put(log, E0, os.urandom(1 << 20))
            if log.wal_path.stat().st_size == 0:
                break
            checkpointer.join(0.02)
        wait_until(lambda: log.wal_path.stat().st_size < SOFT_LIMIT)
    finally:
        checkpointer.stop()
    assert all(len(record.value or b"") == 1 << 20 for record in log.read(E0, 0, max_bytes=1 << 30))


def test_a_reader_that_stands_still_keeps_writers_waiting_less_and_less_often(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = 100.0
    resets: list[float] = []

    class Counted(Log):
        def checkpoint(self, *, reset: bool = False) -> tuple[int, int]:
            if reset:
                resets.append(at)
            return super().checkpoint(reset=reset)

    monkeypatch.setattr(checkpointer_module, "Log", Counted)
    monkeypatch.setattr(checkpointer_module, "HARD_LIMIT", SOFT_LIMIT)
    monkeypatch.setattr("processor.log.embedded.checkpointer.time.monotonic", lambda: at)
    look = Checkpointer(log.path.parent)._look  # noqa: SLF001 - its thread goes by the clock
    put(log, E0, os.urandom(SOFT_LIMIT))
    with closing(Log(log.path.parent, create=False)) as reader:
        with reader.snapshot():
            assert reader.end(E0) == 1
            put(log, E0, b"later")
            for _ in range(160):
                look()
                at += checkpointer_module.INTERVAL
        pauses = [after - before for before, after in pairwise(resets)]
        assert pauses == [0.25, 0.5, 1, 2, 4, 8, 8, 8, 8]
        at += checkpointer_module.MAX_PAUSE
        look()
        assert log.wal_size() == 0
        put(log, E0, os.urandom(SOFT_LIMIT))
        look()
        assert log.wal_size() == 0, "at once again"


def make_format(directory: Path, version: int) -> None:
    """A log of one record as format 3 had it, which says that it is of this format."""
    log = Log(directory, partitions=2)
    put(log, E1, b"a")
    log.close()
    with apsw.Connection(str(directory / "log.db")) as db:
        db.execute("ALTER TABLE record DROP COLUMN checksum")
        db.execute("UPDATE meta SET value = ? WHERE name = 'format'", (version,))
        db.execute("DELETE FROM meta WHERE name = 'summed_from'")


def test_a_log_of_format_3_is_brought_to_this_one(tmp_path: Path) -> None:
    make_format(tmp_path, 3)
    for _ in range(2):
        migrated = Log(tmp_path, create=False, upgrade=True)
        assert [record.value for record in migrated.read(E1, 0)][:1] == [b"a"]
        put(migrated, E1, b"b")
        migrated.close()
    with apsw.Connection(str(tmp_path / "log.db")) as db:
        sums = [found for (found,) in db.execute("SELECT checksum FROM record ORDER BY id")]
        assert db.execute("SELECT value FROM meta WHERE name = 'format'").get == FORMAT
    assert sums[0] is None
    assert all(isinstance(found, int) for found in sums[1:]), "what is written from now on has one"


@pytest.mark.parametrize("version", [1, 2])
def test_a_log_older_than_format_3_is_refused(tmp_path: Path, version: int) -> None:
    make_format(tmp_path, version)
    with pytest.raises(FormatError, match=rf"format {version}, this program opens formats from 3 on"):
        Log(tmp_path, create=False)


# --- checksums --------------------------------------------------------------------------------------------------------


def flip(log: Log, what: str, to: object) -> None:
    """Change one column of the second of three records behind the program's back."""
    with apsw.Connection(str(log.path)) as db:
        db.execute(f"UPDATE record SET {what} = ? WHERE id = (SELECT max(id) - 1 FROM record)", (to,))


@pytest.mark.parametrize(
    ("column", "value"),
    [("at", 4), ("at", 5 ^ 1 << 40), ("key", b"kez"), ("key", None), ("value", b"c"), ("value", b""), ("value", None)],
)
def test_a_changed_record_is_named_and_not_handed_out(log: Log, column: str, value: object) -> None:
    log.append([Append(R0, [(b"key", b"a"), (b"key", b"b"), (b"key", b"d")])], 5)
    flip(log, column, value)
    assert [record.value for record in log.read(R0, 0)] == [b"a"], "what stands before it is sound"
    with pytest.raises(DamagedRecord, match=f"record {ROWS}:0:1 is damaged") as caught:
        log.read(R0, 1)
    assert (caught.value.topic, caught.value.partition, caught.value.offset) == (ROWS, 0, 1)
    assert [record.is_damaged for record in log.read(R0, 0, keep_damaged=True)] == [False, True, False]
    assert [record.value for record in log.read(R0, 2)] == [b"d"]


@given(bit=st.integers(0, 62))
@examples(20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_of_the_checksum_is_noticed(log: Log, bit: int) -> None:
    [first] = log.append([Append(R0, [(b"key", b"a"), (b"key", b"b"), (b"key", b"d")])], 5)
    with apsw.Connection(str(log.path)) as db:
        stored = db.execute("SELECT checksum FROM record WHERE id = (SELECT max(id) - 1 FROM record)").get
    flip(log, "checksum", stored ^ 1 << bit)
    with pytest.raises(DamagedRecord):
        log.read(R0, first + 1)


def test_a_record_at_another_place_is_damaged(log: Log) -> None:
    put(log, E0, b"a", b"b")
    with apsw.Connection(str(log.path)) as db:
        db.execute("UPDATE record SET id = id + 8 WHERE value = ?", (b"b",))
    with pytest.raises(DamagedRecord, match=f"{EVENTS}:0:9"):
        log.read(E0, 1)


@pytest.mark.parametrize(("column", "value"), [("value", b"[9]"), ("key", b"[0,\n1]"), ("key", b"[0,7]"), ("at", 6)])
def test_reading_back_from_the_end_notices_it_too(log: Log, column: str, value: bytes) -> None:
    log.append([Append(R0, [(b"[0,1]", b"[1]"), (b"[0,2]", b"[2]"), (b"[0,3]", b"[3]")])], 5)
    flip(log, column, value)
    with pytest.raises(DamagedRecord, match=f"{ROWS}:0:1"):
        list(newest(log, R0, 0, log.end(R0)))


def test_what_was_replaced_may_be_damaged(log: Log) -> None:
    log.append([Append(R0, [(b"[0,2]", b"[1]"), (b"[0,2]", b"[2]"), (b"[0,2]", b"[3]")])], 5)
    flip(log, "value", b"[9]")
    assert [row.value for found in newest(log, R0, 0, 3) for row in found.others] == [b"[3]"]


# --- the files --------------------------------------------------------------------------------------------------------


def test_opening_and_closing_a_log_keeps_the_locks_of_the_others_in_the_process(log: Log) -> None:
    for _ in range(2):
        Log(log.path.parent, create=False).close()
        log.check_lock()
    # Any other way of opening the file loses them, which is what the guard is for.
    log.path.open("rb").close()
    with pytest.raises(LogBroken, match=r"lock .* is lost"):
        log.check_lock()


def test_a_lock_that_is_held_is_never_missed_while_other_processes_lock_and_unlock(log: Log, tmp_path: Path) -> None:
    """The list of all locks is not one moment's: a lock that is held was missing in it under load."""
    busy = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'w')\n"
        "while True: fcntl.lockf(file, fcntl.LOCK_EX); fcntl.lockf(file, fcntl.LOCK_UN)"
    )
    others = [subprocess.Popen([sys.executable, "-c", busy, tmp_path / f"other-{number}"]) for number in range(4)]
    try:
        for _ in range(2000):
            log.check_lock()
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_another_program_may_look_at_the_log(log: Log) -> None:
    look = (
        "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM record').fetchone()[0])"
    )
    for count in range(1, 4):
        put(log, E0, b"x")
        found = subprocess.run([sys.executable, "-c", look, log.path], capture_output=True, check=True, text=True)
        assert int(found.stdout) == count
        log.check()
        log.check_lock()
    assert [record.offset for record in Log(log.path.parent).read(E0, 0)] == [0, 1, 2]


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_nothing_is_appended_to_a_file_that_is_gone(log: Log, suffix: str, how: str) -> None:
    put(log, E0, b"a")
    path = Path(f"{log.path}{suffix}")
    if how == "deleted":
        path.unlink()
    else:
        path.with_name("copy").write_bytes(path.read_bytes())
        path.with_name("copy").rename(path)
    for refused in (lambda: put(log, E0, b"b"), log.check):
        with pytest.raises(LogBroken, match=f"{path.name} was {how}"):
            refused()


def test_after_a_failed_checkpoint_nothing_goes_on_before_the_log_was_recovered(log: Log) -> None:
    directory = log.path.parent
    put(log, E0, b"a")
    error = log.broken("a checkpoint failed")
    assert isinstance(error, LogUnavailable)
    with pytest.raises(LogBroken, match="recovered by a new start"):
        log.check()
    with pytest.raises(RecoveryNeeded, match="end every spendstream process"):
        Log(directory, create=False)
    log.close()
    again = Log(directory, create=False)
    again.check()
    assert again.wal_size() == 0, "all of it was written into the file"
    assert [record.value for record in again.read(E0, 0)] == [b"a"]


def test_a_log_is_opened_without_the_lock_that_writers_need(log: Log, tmp_path: Path) -> None:
    """A process that stands still while it opens it keeps nobody waiting, and one that opens it waits for nobody."""
    put(log, E0, b"a")
    lock = FileLock(log.path.with_name("log.lock"))
    with lock.held():
        for again in (Log(log.path.parent, create=False), Log(log.path.parent, partitions=2, upgrade=True)):
            assert [record.value for record in again.read(E0, 0)] == [b"a"]
            again.close()


@pytest.mark.parametrize("what", ["recovery", "format", "topics", "file"])
def test_who_has_something_to_change_in_a_log_waits_for_its_turn(tmp_path: Path, what: str) -> None:
    directory = tmp_path / "data"
    if what == "format":
        format3.make(directory)
    elif what == "file":
        directory.mkdir()
    else:
        log = Log(directory)
        if what == "recovery":
            log.broken("a checkpoint failed")
        else:
            with closing(apsw.Connection(str(log.path))) as db:
                db.execute("DELETE FROM partition WHERE topic = ?", (SEGMENTS,))
        log.close()
    lock = FileLock(directory / "log.lock")
    opened: list[Log] = []
    thread = threading.Thread(target=lambda: opened.append(Log(directory, upgrade=True)))
    with lock.held():
        thread.start()
        thread.join(0.2)
        assert not opened
    thread.join(PATIENCE)
    assert opened[0].topics()[SEGMENTS] == 1
    assert opened[0].end(E0) == (6 if what == "format" else 0)


def test_a_log_that_has_to_be_recovered_since_it_was_opened_is_given_back(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process meets a failed fsync after it was looked for the mark of one, and before the file is open."""
    looks = iter([False, True])
    monkeypatch.setattr(Log, "_is_to_be_recovered", lambda self: next(looks, True))
    log.broken("an fsync failed")
    with pytest.raises(RecoveryNeeded):  # `log` still has it open
        Log(log.path.parent, create=False)


class FailingLog(Log):
    """Its checkpoints fail."""

    failure: apsw.Error

    def checkpoint(self, *, reset: bool = False) -> tuple[int, int]:
        """Fail."""
        raise self.failure


def _refused_write() -> Any:
    """An error of the disk at a write, EIO: neither is it full, nor a quota used up."""
    found: Any = apsw.IOError("write")
    found.extendedresult = apsw.SQLITE_IOERR_WRITE
    return found


@pytest.mark.parametrize(
    ("failure", "breaks"), [(apsw.IOError("fsync"), True), (_refused_write(), True), (apsw.FullError("disk"), False)]
)
def test_a_failed_checkpoint_ends_the_process_unless_the_disk_is_only_full(
    log: Log, monkeypatch: pytest.MonkeyPatch, failure: apsw.Error, breaks: bool
) -> None:
    monkeypatch.setattr(FailingLog, "failure", failure, raising=False)
    monkeypatch.setattr(checkpointer_module, "Log", FailingLog)
    broken: list[LogBroken] = []
    checkpointer = Checkpointer(log.path.parent, broken.append)
    put(log, E0, os.urandom(2 * SOFT_LIMIT))
    checkpointer.start()
    if breaks:
        checkpointer.join(PATIENCE)
        assert not checkpointer.is_alive()
    else:
        checkpointer.join(0.6)
        assert checkpointer.is_alive()
        checkpointer.stop()
    assert bool(broken) == log.recovery_path.exists() == breaks


def test_at_the_end_everything_is_in_the_file(log: Log) -> None:
    checkpointer = Checkpointer(log.path.parent)
    checkpointer.start()
    put(log, E0, b"a")
    assert log.wal_size() > 0
    checkpointer.stop()
    assert log.wal_size() == 0
    copy = log.path.parent.parent / "copy"
    copy.mkdir()
    (copy / "log.db").write_bytes(log.path.read_bytes())
    assert [record.value for record in Log(copy, create=False).read(E0, 0)] == [b"a"]


# --- no room, no descriptors ------------------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond these bytes meanwhile, as a quota would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100 + len(list(Path("/proc/self/fd").iterdir())), hard))
    held: list[int] = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_has_no_descriptors_left_has_not_lost_the_lock(log: Log) -> None:
    with no_descriptors_left():
        log.check_lock()
    log.check_lock()
    with no_descriptors_left():
        log.check_lock()
    log.check_lock()
    log.path.open("rb").close()
    with no_descriptors_left():
        log.check_lock()
    for _ in range(2):
        with pytest.raises(LogBroken, match=r"lock .* is lost"):
            log.check_lock()


def test_where_the_lock_cannot_be_seen_nothing_is_said(log: Log) -> None:
    log.path.open("rb").close()
    for _ in range(2):
        log.check_lock()


def test_a_log_behind_a_symbolic_link_opens_and_is_guarded(log: Log, tmp_path: Path) -> None:
    put(log, E0, b"a")
    log.close()
    for name in ("log.db", "log.db-wal", "log.db-shm"):
        log.path.with_name(name).rename(tmp_path / name)
    log.path.symlink_to(tmp_path / "log.db")
    again = Log(log.path.parent, create=False)
    put(again, E0, b"b")
    again.check()
    assert again.wal_size() == (tmp_path / "log.db-wal").stat().st_size > 0
    (tmp_path / "log.db-wal").unlink()
    with pytest.raises(LogBroken, match=r"log\.db-wal was deleted"):
        again.check()


def test_a_file_that_cannot_be_looked_at_for_a_moment_is_not_gone(log: Log, tmp_path: Path) -> None:
    put(log, E0, b"a")
    log.path.parent.rename(tmp_path / "aside")
    log.path.parent.write_bytes(b"")
    for refused in (lambda: put(log, E0, b"b"), log.check):
        with pytest.raises(LogUnavailable, match="cannot look at") as caught:
            refused()
        assert not isinstance(caught.value, LogBroken)
    log.path.parent.unlink()
    (tmp_path / "aside").rename(log.path.parent)
    assert put(log, E0, b"b") == 1


class StumblingLog(Log):
    """The first time it is opened, and once more when it is looked at, something passing is in the way."""

    stumbles: list[str]

    def __init__(self, data_dir: Path, *, create: bool = True) -> None:
        """Fail the first time."""
        if not self.stumbles:
            self.stumbles.append("opened")
            raise LogError("too many open files")
        super().__init__(data_dir, create=create)

    def check(self) -> None:
        """Fail the first time."""
        super().check()
        if len(self.stumbles) == 1:
            self.stumbles.append("looked")
            raise OSError(errno.ESTALE, "Stale file handle")


def test_the_checkpointer_outlives_what_passes(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StumblingLog, "stumbles", [], raising=False)
    monkeypatch.setattr(checkpointer_module, "Log", StumblingLog)
    broken: list[LogBroken] = []
    checkpointer = Checkpointer(log.path.parent, broken.append)
    put(log, E0, os.urandom(2 * SOFT_LIMIT))
    with structlog.testing.capture_logs() as lines:
        checkpointer.start()
        wait_until(lambda: log.wal_size() < SOFT_LIMIT)
        checkpointer.stop()
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("checkpoint.failed", "warning"),
        ("checkpoint.works_again", "info"),
    ]
    assert lines[1]["failures"] == 2
    assert StumblingLog.stumbles == ["opened", "looked"]
    assert not broken


def test_a_checkpointer_that_finds_a_log_to_recover_ends_the_process(log: Log) -> None:
    broken: list[LogBroken] = []
    checkpointer = Checkpointer(log.path.parent, broken.append)
    log.broken("a checkpoint failed")
    checkpointer.start()
    checkpointer.join(20)
    assert not checkpointer.is_alive()
    assert "has to be recovered" in str(broken)


class CountedLog(Log):
    """Notes each checkpoint that is tried."""

    tries: ClassVar[list[bool]]

    def checkpoint(self, *, reset: bool = False) -> tuple[int, int]:
        self.tries.append(reset)
        return super().checkpoint(reset=reset)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The checkpoints that a `Checkpointer` tries."""
    monkeypatch.setattr(CountedLog, "tries", [], raising=False)
    monkeypatch.setattr(checkpointer_module, "Log", CountedLog)
    monkeypatch.setattr(checkpointer_module, "INTERVAL", 0.02)
    return CountedLog.tries


def test_a_checkpoint_that_a_quota_stops_is_tried_again(log: Log, tries: list[bool]) -> None:
    broken: list[LogBroken] = []
    checkpointer = Checkpointer(log.path.parent, broken.append)
    put(log, E0, os.urandom(2 * SOFT_LIMIT))
    with structlog.testing.capture_logs() as lines:
        with largest_file(1 << 20):
            checkpointer.start()
            wait_until(lambda: len(tries) >= 4)
        assert checkpointer.is_alive()
        assert [line["event"] for line in lines] == ["checkpoint.failed"], "once, however often it is tried"
        wait_until(lambda: log.wal_size() < SOFT_LIMIT)
        checkpointer.stop()
    assert [line["event"] for line in lines] == ["checkpoint.failed", "checkpoint.works_again"]
    assert not broken
    assert not log.recovery_path.exists()
    assert [len(record.value or b"") for record in log.read(E0, 0)] == [2 * SOFT_LIMIT]


def unrecovered(log: Log) -> list[bytes]:
    """Leave a log that has to be recovered, for which `largest_file(1 << 20)` leaves no room; returns its records."""
    values = [os.urandom(2 << 20), b"b"]
    put(log, E0, *values)
    log.broken("a checkpoint failed")
    log.close()
    return values


def test_a_log_that_no_room_is_left_to_recover_opens_for_reading(log: Log) -> None:
    directory = log.path.parent
    values = unrecovered(log)
    with largest_file(1 << 20):
        first = Log(directory, create=False)
        second = Log(directory, create=False)
    size = first.wal_size()
    for opened in (first, second):
        opened.check()
        assert [record.value for record in opened.read(E0, 0)] == values
        for refused in (lambda opened=opened: put(opened, E0, b"c"), lambda opened=opened: opened.probe(1)):
            with pytest.raises(LogUnavailable, match="has to be recovered first, and the disk has no room") as caught:
                refused()
            assert not isinstance(caught.value, LogBroken)
    with largest_file(1 << 20), pytest.raises(apsw.IOError):
        first.checkpoint()
    assert first.wal_size() == size
    first.close()
    second.close()
    again = Log(directory, create=False)
    assert again.wal_size() == 0, "a start that has room recovers it"
    put(again, E0, b"c")
    assert [record.value for record in again.read(E0, 0)] == [*values, b"c"]


def test_a_log_without_room_for_shared_memory_says_what_to_do(log: Log) -> None:
    """A restored backup is the file alone: its first reader makes the two others."""
    put(log, E0, b"a")
    log.checkpoint(reset=True)
    log.close()
    for name in ("log.db-shm", "log.db-wal"):
        log.path.with_name(name).unlink()
    before = log.path.read_bytes()
    with largest_file(16 << 10):
        for _ in range(2):
            with pytest.raises(LogError, match=r"no room for log\.db-shm.*Make room .* then start again"):
                Log(log.path.parent, create=False)
    assert log.path.read_bytes() == before
    assert [record.value for record in Log(log.path.parent, create=False).read(E0, 0)] == [b"a"]


def test_a_log_is_recovered_as_soon_as_there_is_room(log: Log, tries: list[bool]) -> None:
    directory = log.path.parent
    values = unrecovered(log)
    broken: list[LogBroken] = []
    checkpointer = Checkpointer(directory, broken.append)
    with structlog.testing.capture_logs() as lines:
        with largest_file(1 << 20):
            opened = Log(directory, create=False)
            checkpointer.start()
            wait_until(lambda: len(tries) >= 2)
            with pytest.raises(LogUnavailable, match="no room"):
                put(opened, E0, b"c")
        wait_until(lambda: opened.wal_size() == 0)
        wait_until(lambda: len(lines) >= 2)
    wait_until(lambda: not opened.needs_recovery)
    put(opened, E0, b"c")
    checkpointer.stop()
    assert [line["event"] for line in lines] == ["checkpoint.failed", "checkpoint.works_again"]
    assert not broken
    opened.close()
    assert [record.value for record in Log(directory, create=False).read(E0, 0)] == [*values, b"c"]


def _checkpoint_half_and_die(directory: Path, values: list[bytes]) -> None:
    log = Log(directory, create=False)
    put(log, E0, values[0])
    reader = Log(directory, create=False)
    with reader.snapshot():
        assert reader.end(E0) == 1
        put(log, E0, values[1])
        frames, moved = log.checkpoint()
        assert 0 < moved < frames
        log.broken("the fsync of a checkpoint failed")
        os._exit(9)


def test_a_late_recovery_writes_what_an_earlier_checkpoint_counted_as_written(log: Log) -> None:
    directory = log.path.parent
    log.close()
    before = log.path.read_bytes()
    values = [os.urandom(2 << 20), b"b"]
    child = multiprocessing.get_context("fork").Process(target=_checkpoint_half_and_die, args=(directory, values))
    child.start()
    child.join()
    assert child.exitcode == 9
    log.path.write_bytes(before)  # as the kernel drops pages that it could not write
    with largest_file(1 << 20):
        opened = Log(directory, create=False)
    assert [record.value for record in opened.read(E0, 0)] == values
    assert opened.needs_recovery
    opened.checkpoint()
    assert not opened.needs_recovery
    assert opened.wal_size() == 0
    opened.close()
    with apsw.Connection(str(log.path)) as db:
        assert db.execute("PRAGMA integrity_check").get == "ok"
    assert [record.value for record in Log(directory, create=False).read(E0, 0)] == values


def test_a_failed_fsync_of_the_late_recovery_ends_all_processes(log: Log) -> None:
    directory = log.path.parent
    unrecovered(log)
    with largest_file(1 << 20):
        first, second = Log(directory, create=False), Log(directory, create=False)
    first.broken("a checkpoint failed")
    for opened in (first, second):
        with pytest.raises(LogBroken):
            opened.check()
        with pytest.raises(LogBroken):
            put(opened, E0, b"c")
    with pytest.raises(RecoveryNeeded):
        Log(directory, create=False)


def test_a_log_of_format_3_is_not_brought_to_this_one_before_it_was_recovered(tmp_path: Path) -> None:
    make_format(tmp_path, 3)
    db = apsw.Connection(str(tmp_path / "log.db"))
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    db.wal_autocheckpoint(0)
    db.execute("CREATE TABLE other (value); INSERT INTO other VALUES (zeroblob(2097152))").fetchall()
    db.close()
    (tmp_path / "recovery-needed").touch()
    with largest_file(1 << 20), pytest.raises(LogUnavailable, match="no room"):
        Log(tmp_path, create=False, upgrade=True)
    assert [record.value for record in Log(tmp_path, create=False, upgrade=True).read(E1, 0)] == [b"a"]


# --- older formats --------------------------------------------------------------------------------------------------


def contents(path: Path) -> tuple[Any, ...]:
    with closing(apsw.Connection(str(path))) as db:
        return tuple(db.execute("SELECT sql FROM sqlite_schema")) + tuple(db.execute("SELECT * FROM meta"))


def keys_of(log: Log) -> list[bytes]:
    found = newest(log, R0, 0, log.end(R0))
    return [key for each in found for key in (*each.keys, *(row.key for row in each.others))]


def test_an_older_log_is_only_read_until_a_role_starts(tmp_path: Path) -> None:
    """The server of the older version may be running on it, whose writes fail once it is upgraded."""
    format3.make(tmp_path / "data")
    before = contents(tmp_path / "data" / "log.db")
    log = Log(tmp_path / "data", create=False)
    records = log.read(E0, 0)
    assert [record.offset for record in records] == [0, 1, 2, 3, 4, 5]
    rows = keys_of(log)
    assert len(rows) == 20
    with pytest.raises(FormatError, match="stop the server of the older version"):
        put(log, E0, b"a")
    assert contents(tmp_path / "data" / "log.db") == before
    log.close()

    upgraded = Log(tmp_path / "data", upgrade=True)
    assert put(upgraded, E0, b"a") == 6
    assert upgraded.read(E0, 0)[:6] == records
    assert keys_of(upgraded) == rows
    assert Log(tmp_path / "data", create=False).end(E0) == 7


def forget_checksum(log: Log, tp: TopicPartition, offset: int) -> None:
    with closing(apsw.Connection(str(log.path))) as db:
        db.execute("UPDATE record SET checksum = NULL WHERE id = ?", ((log.number(tp) << OFFSET_BITS) + offset,))


def test_a_record_that_has_lost_its_checksum_is_damaged(log: Log) -> None:
    put(log, E0, b"a", b"b")
    forget_checksum(log, E0, 1)
    assert [record.offset for record in log.read(E0, 0)] == [0]
    with pytest.raises(DamagedRecord):
        log.read(E0, 1)
    log.append([Append(R0, [(b"a", b"1"), (b"b", b"2")])], 5)
    forget_checksum(log, R0, 0)
    with pytest.raises(DamagedRecord):
        list(newest(log, R0, 0, log.end(R0)))


@pytest.mark.parametrize("is_noted", [True, False], ids=["upgraded now", "upgraded by an earlier version"])
def test_only_records_from_before_there_were_checksums_have_none(tmp_path: Path, is_noted: bool) -> None:
    format3.make(tmp_path / "data")
    log = Log(tmp_path / "data", upgrade=True)
    put(log, E0, b"a", b"b")
    put(log, D0, b"c")
    if not is_noted:
        with closing(apsw.Connection(str(log.path))) as db:
            db.execute("DELETE FROM meta WHERE name = 'summed_from'")
        log = Log(tmp_path / "data", upgrade=True)
    assert [record.offset for record in log.read(E0, 0)] == list(range(8))
    assert [record.offset for record in log.read(D0, 0)] == list(range(5))
    forget_checksum(log, E0, 6)
    forget_checksum(log, D0, 4)
    assert [record.offset for record in Log(tmp_path / "data", create=False).read(E0, 0)] == list(range(6))
    for opened in (log, Log(tmp_path / "data", create=False)):
        with pytest.raises(DamagedRecord):
            opened.read(E0, 6)
        with pytest.raises(DamagedRecord):
            opened.read(D0, 4)
