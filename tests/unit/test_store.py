import multiprocessing
import os
from pathlib import Path

import apsw
import numpy as np
import pytest

from processor.log.checkpointer import SOFT_LIMIT, Checkpointer
from processor.log.errors import FormatError, Locked, LogError, PartitionMismatch
from processor.log.locks import FileLock
from processor.log.store import FORMAT, Append, Log, TopicPartition
from processor.log.topics import CHECKPOINTS, CLAIMS, DEAD_LETTERS, DIRECTORY, EVENTS, GROUP, ROWS

E0, E1, R0 = TopicPartition(EVENTS, 0), TopicPartition(EVENTS, 1), TopicPartition(ROWS, 0)


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
    assert log.topics() == {EVENTS: 2, ROWS: 2, CLAIMS: 2, DEAD_LETTERS: 2, CHECKPOINTS: 2, DIRECTORY: 1}


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


def test_the_files_are_for_their_owner_only(log: Log) -> None:
    assert log.path.stat().st_mode & 0o077 == 0
    assert log.path.parent.stat().st_mode & 0o077 == 0
    put(log, E0, b"a")
    assert log.wal_path.stat().st_mode & 0o077 == 0


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    first.take("busy")
    with pytest.raises(Locked, match=rf"busy \(process {os.getpid()} holds"):
        second.take("busy", patience=0.06)
    first.close()
    second.take("busy")


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
        for _ in range(100):
            if log.wal_path.stat().st_size < SOFT_LIMIT:
                break
            checkpointer.join(0.1)
        assert log.wal_path.stat().st_size < SOFT_LIMIT
    finally:
        checkpointer.stop()
    assert all(len(record.value or b"") == 1 << 20 for record in log.read(E0, 0, max_bytes=1 << 30))


def test_a_log_of_the_first_format_gets_what_it_lacks(log: Log) -> None:
    put(log, E1, b"a")
    directory = log.path.parent
    log.close()
    with apsw.Connection(str(directory / "log.db")) as db:
        db.execute("DELETE FROM partition WHERE topic = ?", (CHECKPOINTS,))
        db.execute("UPDATE meta SET value = 1 WHERE name = 'format'")
    for _ in range(2):
        migrated = Log(directory, create=False)
        assert migrated.topics()[CHECKPOINTS] == 2
        assert [record.value for record in migrated.read(E1, 0)] == [b"a"]
        put(migrated, TopicPartition(CHECKPOINTS, 1), b"c")
        migrated.close()
