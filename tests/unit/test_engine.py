"""DuckDB within its bounds."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from server.errors import Refused
from server.explore.engine import Engine, SegmentGone, Stopped
from tests.support.patience import PATIENCE

ENDLESS = "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range + b.range = ?"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    (tmp_path / "events").mkdir()
    pq.write_table(pa.table({"x": [1, 2, 3]}), tmp_path / "events" / "a.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "secret.parquet")
    made = Engine(tmp_path / "events", tmp_path / "spill", memory=200 << 20, timeout=0.3)
    yield made
    made.close()


def test_rows_and_batches(engine: Engine) -> None:
    path = [str(engine.directory / "a.parquet")]
    assert engine.rows("SELECT x FROM read_parquet(?) WHERE x > ? ORDER BY x", [path, 1]) == [(2,), (3,)]
    assert list(engine.batches("SELECT x FROM read_parquet(?) ORDER BY x", [path], 2)) == [[(1,), (2,)], [(3,)]]
    name = engine.register(pa.table({"y": ["a", None]}))
    assert engine.rows(f"SELECT y FROM {name} WHERE y = ?", ["a"]) == [("a",)]
    engine.release()


def test_a_table_is_seen_by_its_own_question_only(engine: Engine) -> None:
    first, second = engine.fork(1), engine.fork(1)
    name, other = first.register(pa.table({"y": [1]})), second.register(pa.table({"y": [2]}))
    assert name != other
    assert first.table(f"SELECT y FROM {name}").to_pylist() == [{"y": 1}]
    for each in (engine, second):
        with pytest.raises(Exception, match="does not exist"):
            each.rows(f"SELECT y FROM {name}")
    first.close()
    second.close()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_parquet('{tmp}/secret.parquet')",
        "SELECT * FROM read_parquet('{tmp}/events/../secret.parquet')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT getenv('HOME')",
        "COPY (SELECT 1) TO '{tmp}/out.csv'",
        "ATTACH '{tmp}/other.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT * FROM read_parquet('https://127.0.0.1:1/x.parquet')",
        "SET memory_limit = '10GB'",
        "SET enable_external_access = true",
        "SET threads = 8",
        "RESET lock_configuration",
        "SELECT * FROM statement",
    ],
)
def test_nothing_but_the_store_can_be_reached(engine: Engine, tmp_path: Path, statement: str) -> None:
    with pytest.raises(Exception, match=r"."):
        engine.rows(statement.format(tmp=tmp_path))
    assert not (tmp_path / "out.csv").exists()
    assert not (tmp_path / "other.db").exists()
    assert engine.rows("SELECT 1") == [(1,)]


def test_a_question_that_takes_too_long_is_ended(engine: Engine) -> None:
    with pytest.raises(Refused, match="longer than") as refused:
        engine.rows(ENDLESS, [-1])
    assert refused.value.reason == "query_too_heavy"
    assert engine.rows("SELECT 1") == [(1,)]


def test_the_time_is_that_of_the_whole_question(engine: Engine) -> None:
    fork = engine.fork(0.2)
    fork.start()
    assert fork.rows("SELECT 1") == [(1,)]
    fork.check()
    time.sleep(0.25)
    assert fork.overdue() > 0
    for work in (fork.check, lambda: fork.rows("SELECT 1")):
        with pytest.raises(Refused):
            work()
    fork.close()
    assert engine.rows("SELECT 1") == [(1,)]


@pytest.mark.parametrize("refused", [None, Refused("disk_full", "no room")])
def test_a_question_is_ended_from_another_thread(engine: Engine, refused: Refused | None) -> None:
    fork = engine.fork(None)
    threading.Timer(0.1, fork.stop, [refused]).start()
    with pytest.raises(Stopped if refused is None else Refused):
        fork.rows(ENDLESS, [-1])
    with pytest.raises(Stopped if refused is None else Refused):
        fork.check()
    fork.close()
    assert engine.rows("SELECT 1") == [(1,)]


@pytest.mark.parametrize("refused", [None, Refused("disk_full", "no room")])
def test_a_question_ends_that_was_stopped_just_before_its_statement(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, refused: Refused | None
) -> None:
    fork = engine.fork(None)
    check = fork.check

    def stopped_behind_the_check() -> None:
        check()
        fork.stop(refused)

    monkeypatch.setattr(fork, "check", stopped_behind_the_check)
    guard = threading.Timer(PATIENCE, fork.interrupt)
    guard.start()
    with pytest.raises(Stopped if refused is None else Refused):
        fork.rows(ENDLESS, [-1])
    assert guard.is_alive(), "it has ended by itself"
    guard.cancel()
    fork.close()
    assert engine.rows("SELECT 1") == [(1,)]


def test_a_question_that_needs_too_much_memory_is_too_heavy(engine: Engine) -> None:
    fork = engine.fork(60)
    with pytest.raises(Refused, match="more memory") as refused:
        fork.rows("SELECT list(range || 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx') FROM range(20000000)")
    assert refused.value.reason == "query_too_heavy"
    fork.close()
    assert engine.rows("SELECT 1") == [(1,)]


def test_a_missing_file_is_gone(engine: Engine) -> None:
    with pytest.raises(SegmentGone):
        engine.rows("SELECT * FROM read_parquet(?)", [[str(engine.directory / "b.parquet")]])


@pytest.mark.parametrize("damage", ["cut off", "emptied", "footer", "page"])
def test_a_damaged_file_is_said_to_be_one(engine: Engine, damage: str) -> None:
    """It was an internal error where the footer had been read before, which is kept."""
    path = engine.directory / "a.parquet"
    pq.write_table(pa.table({"x": ["a", "b", "a"]}), path, compression="none")
    whole = path.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    footer = len(whole) - 8 - length
    path.write_bytes(
        {
            "cut off": whole[: len(whole) // 2],
            "emptied": b"",
            "footer": whole[:footer] + b"\xff" * length + whole[-8:],
            "page": whole[:4] + b"\xff" * (footer - 4) + whole[footer:],
        }[damage]
    )
    with pytest.raises(Refused, match="damaged") as refused:
        engine.rows("SELECT x FROM read_parquet(?)", [[str(path)]])
    assert refused.value.reason == "unavailable"


def test_a_fault_of_a_statement_is_no_damage(engine: Engine) -> None:
    for statement in ("SELECT y FROM range(1)", "SELECT CAST('x' AS INTEGER)", "SELECT"):
        with pytest.raises(duckdb.Error):
            engine.rows(statement)


@pytest.mark.slow
def test_a_large_sort_uses_the_spill_folder_and_gives_it_back(engine: Engine, tmp_path: Path) -> None:
    fork = engine.fork(60)
    rows = fork.rows(
        "SELECT x FROM (SELECT range * 7919 % 10007 || repeat('y', 40) AS x FROM range(4000000)) "
        "ORDER BY x OFFSET 3999999"
    )
    assert len(rows) == 1
    fork.close()
    assert sum(each.stat().st_size for each in (tmp_path / "spill").iterdir()) < 1 << 20
