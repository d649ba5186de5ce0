"""What an API says of a directory that has lost records that it had read in a life before this one."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from structlog.testing import capture_logs

from processor.log import losses
from processor.log.embedded.log import OFFSET_BITS, Log
from processor.log.port import scan
from processor.log.records import Append
from server.tenancy.directory_mark import DirectoryMark
from tests.support.tables import NOON


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with closing(Log(tmp_path / "data")) as made:
        yield made


def put(log: Log, *names: str) -> None:
    log.append([Append(losses.HOME, [(f"key/{name}".encode(), b"{}") for name in names])], NOON)


def lose_end(log: Log, end: int) -> None:
    with closing(apsw.Connection(str(log.path))) as db:
        db.execute("DELETE FROM record WHERE id >= ?", ((log.number(losses.HOME) << OFFSET_BITS) + end,))
        db.execute("UPDATE partition SET next = ? WHERE number = ?", (end, log.number(losses.HOME)))


def follow(log: Log, path: Path) -> None:
    """A life of a process: it compares, reads all and ends."""
    with closing(DirectoryMark(path, log.identity)) as mark:
        mark.check(log, NOON)
        for record in scan(log, losses.HOME):
            mark.advance(record)


def reported(log: Log) -> list[tuple[str, int, int, bool]]:
    return [(each.topic, each.start, each.end, each.counted) for each in losses.read(log)]


def test_records_that_were_read_and_are_gone_are_reported_once(log: Log, tmp_path: Path) -> None:
    put(log, "a", "b", "c")
    first = log.end(losses.HOME) - 3
    for _ in range(2):
        follow(log, tmp_path / "mark")
        assert reported(log) == []
    lose_end(log, first + 1)
    for _ in range(2):
        follow(log, tmp_path / "mark")
        assert reported(log) == [("directory", first + 1, first + 3, False)]
    [lost] = losses.read(log)
    assert lost.text.startswith(f"records {first + 1} to {first + 2} of the directory are gone from the log (")
    assert "spendstream keys list" in lost.text
    assert losses.uncounted([lost]) == {}, "no events"


def test_records_that_took_their_place_do_not_hide_it(log: Log, tmp_path: Path) -> None:
    put(log, "a", "b")
    end = log.end(losses.HOME)
    follow(log, tmp_path / "mark")
    lose_end(log, end - 1)
    put(log, "another", "and one more")
    follow(log, tmp_path / "mark")
    assert reported(log) == [("directory", end - 1, end, False)]


def test_two_processes_report_what_the_other_does_not_know(log: Log, tmp_path: Path) -> None:
    put(log, "a", "b")
    end = log.end(losses.HOME)
    follow(log, tmp_path / "one")
    put(log, "c", "d")
    follow(log, tmp_path / "two")
    lose_end(log, end - 1)
    follow(log, tmp_path / "one")
    follow(log, tmp_path / "two")
    assert [(start, stop) for _, start, stop, _ in reported(log)] == [(end - 1, end), (end, end + 2)]


def test_a_file_of_another_log_or_none_says_nothing(log: Log, tmp_path: Path) -> None:
    put(log, "a", "b")
    with closing(DirectoryMark(tmp_path / "mark", "another")) as mark:
        for record in scan(log, losses.HOME):
            mark.advance(record)
    lose_end(log, log.end(losses.HOME) - 1)
    follow(log, tmp_path / "mark")
    follow(log, tmp_path / "none")
    assert reported(log) == []


def test_a_file_that_cannot_be_had_is_no_hindrance(log: Log, tmp_path: Path) -> None:
    put(log, "a")
    with capture_logs() as said:
        follow(log, tmp_path / "no such directory" / "mark")
    assert [entry["event"] for entry in said] == ["directory.mark_not_kept"]
