"""What tears the write-ahead log in the chaos runs must itself leave every commit alone."""

import random
import shutil
import sqlite3
import struct
from pathlib import Path

import pytest

from tests.chaos.wal import FRAME, HEADER, add_checksum, read, tear


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database as a killed process leaves it: 20 commits in the log, the last one's rows nowhere else."""
    connection = sqlite3.connect(tmp_path / "open.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (n INTEGER)")
    for number in range(20):
        connection.execute("INSERT INTO t VALUES (?)", (number,))
    for suffix in ("", "-wal"):
        shutil.copyfile(tmp_path / f"open.db{suffix}", tmp_path / f"killed.db{suffix}")
    connection.close()
    return tmp_path / "killed.db"


def test_the_checksums_are_sqlites_own(database: Path) -> None:
    data = database.with_name("killed.db-wal").read_bytes()
    wal = read(database.with_name("killed.db-wal"))
    assert wal is not None
    assert wal.end == len(data)
    checksum: tuple[int, int] = (0, 0)
    checksum = add_checksum(checksum, data[:24], little_endian=wal.little_endian)
    assert checksum == struct.unpack_from(">II", data, 24)
    for start in range(HEADER, len(data), FRAME + wal.page_size):
        page = data[start + FRAME : start + FRAME + wal.page_size]
        checksum = add_checksum(checksum, data[start : start + 8] + page, little_endian=wal.little_endian)
        assert checksum == struct.unpack_from(">II", data, start + 16)
    assert checksum == wal.checksum


@pytest.mark.parametrize("seed", range(12))
def test_a_torn_tail_leaves_every_commit(database: Path, seed: int) -> None:
    path = database.with_name("killed.db-wal")
    before = path.read_bytes()
    done = tear(path, random.Random(seed))
    assert path.read_bytes() != before, done
    assert path.read_bytes().startswith(before)
    connection = sqlite3.connect(database)
    assert [number for (number,) in connection.execute("SELECT n FROM t")] == list(range(20)), done
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
