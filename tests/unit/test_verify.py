"""Verify finds what was planted, whatever it is, and nothing else."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from processor.core import tables
from processor.core.clock import DAY
from processor.log.store import Append, Log, TopicPartition
from processor.log.topics import EVENTS, ROWS
from processor.state.verify import Difference, Verification, VerifyError
from server.cli.commands import main
from tests.support.events import make_event
from tests.support.logs import catch_up, newest_rows, put
from tests.support.tables import NOON

KINDS = ["user", "hour", "latency", "window"]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    data = tmp_path / "data"
    made = Log(data, partitions=2)
    for number in range(5):
        put(made, [make_event(user_id=f"u{number}", model=f"m{n % 2}") for n in range(20)])
        catch_up(data)
    return made


def plant(log: Log, key: bytes, value: bytes | None) -> None:
    """Write one row, followed by the progress as at the end of a flush."""
    partition, _, _ = tables.decode_key(key)
    progress = tables.encode_key(partition, "progress")
    log.append([Append(TopicPartition(ROWS, partition), [(key, value), (progress, newest_rows(log)[progress])])], NOON)


def differences(log: Log, tmp_path: Path) -> list[Difference]:
    found: list[Difference] = []
    for number in range(log.partitions):
        scratch = tmp_path / f"scratch-{number}"
        scratch.mkdir(parents=True)
        found += Verification(log, number, scratch, lambda *_: None).run()
    return found


def some_row(log: Log, kind: str) -> tuple[bytes, list[int]]:
    rows = newest_rows(log)
    key = max(key for key in rows if tables.decode_key(key)[1] == kind)
    return key, tables.decode_value(rows[key])


def test_there_is_no_difference(log: Log, tmp_path: Path) -> None:
    assert differences(log, tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_row_is_found(log: Log, tmp_path: Path, kind: str) -> None:
    key, value = some_row(log, kind)
    changed = [*value[:2], value[2] + 7, *value[3:]]
    plant(log, key, json.dumps(changed).encode())
    assert differences(log, tmp_path) == [Difference(tables.decode_key(key)[0], key.decode(), changed, value)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_row_is_found(log: Log, tmp_path: Path, kind: str) -> None:
    key, value = some_row(log, kind)
    plant(log, key, None)
    [difference] = differences(log, tmp_path)
    assert (difference.key, difference.table, difference.log) == (key.decode(), None, value)
    assert difference.columns()["offset"] == (None, value[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_too_many_is_found(log: Log, tmp_path: Path, kind: str) -> None:
    key, value = some_row(log, kind)
    partition, _, parts = tables.decode_key(key)
    extra = (
        tables.encode_key(partition, kind, "somebody", *parts[1:])
        if kind != "window"
        else key.replace(b"default", b"another").replace(b'"key"', b'"keys"')
    )
    plant(log, extra, json.dumps(value).encode())
    [difference] = differences(log, tmp_path)
    assert (difference.key, difference.table, difference.log) == (extra.decode(), value, None)


def test_events_that_vanished_are_missed(log: Log, tmp_path: Path) -> None:
    log.trim(TopicPartition(EVENTS, 1), 1)
    with pytest.raises(VerifyError, match="no checkpoint"):
        differences(log, tmp_path)


def test_what_came_after_the_tables_is_no_difference(log: Log, tmp_path: Path) -> None:
    put(log, [make_event(user_id="later") for _ in range(20)])
    assert differences(log, tmp_path) == []


def test_a_message_that_cannot_be_read_is_named(log: Log, tmp_path: Path) -> None:
    end = log.append([Append(TopicPartition(EVENTS, 0), [(None, b"junk")])], NOON)[0]
    progress = tables.encode_key(0, "progress")
    log.append([Append(TopicPartition(ROWS, 0), [(progress, json.dumps([end, NOON]).encode())])], NOON)
    with pytest.raises(VerifyError, match=f"message {end} of partition 0, which is no dead letter, cannot be read"):
        differences(log, tmp_path)


def test_a_flush_of_which_a_part_is_there_is_said_to_be_one(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.state.verify.PATIENCE", 0.05)
    key, value = some_row(log, "user")
    partition = tables.decode_key(key)[0]
    log.append([Append(TopicPartition(ROWS, partition), [(key, json.dumps(value).encode())])], NOON)
    verification = Verification(log, partition, tmp_path / "scratch", lambda *_: None)
    assert list(verification.run()) == []
    assert not verification.settled


def run(log: Log, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, [*arguments, "--data-dir", str(log.path.parent)])
    return done.exit_code, done.stdout


def test_the_command_says_row_by_row_what_differs(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPENDSTREAM_DATA_DIR", "")  # put back after the test: the command's flags go there
    assert run(log, "verify") == (0, "10 messages, 0 differences\n")
    key, value = some_row(log, "user")
    number, _, parts = tables.decode_key(key)
    plant(log, key, json.dumps([*value[:6], value[6] + 1, *value[7:]]).encode())
    code, shown = run(log, "verify")
    assert code == 1
    assert shown.splitlines() == [
        f"partition {number}: user {' '.join(map(str, parts))} differs",
        f"  cost_picodollars: table {value[6] + 1}, log {value[6]}",
        "10 messages, 1 differences",
    ]
    code, shown = run(log, "verify", "--json")
    answer = json.loads(shown)
    assert (code, answer["differenceCount"], answer["messages"]) == (1, 1, 10)
    assert answer["differences"] == [
        {
            "partition": number,
            "row": ["user", *parts],
            "columns": {"cost_picodollars": {"table": value[6] + 1, "log": value[6]}},
            "missing": None,
        }
    ]
    monkeypatch.setattr("server.cli.verify.SHOWN", 3)
    for row_key in [key for key in newest_rows(log) if tables.decode_key(key)[1] == "hour"]:
        plant(log, row_key, None)
    code, shown = run(log, "verify")
    assert code == 1
    assert "is missing in the table" in shown
    assert "more (--json names" in shown


def horizon_of(log: Log, partition: int) -> list[int]:
    return tables.decode_value(newest_rows(log)[tables.encode_key(partition, "horizon")])


def test_rows_that_an_earlier_version_has_written_are_gone_on_with(log: Log, tmp_path: Path) -> None:
    """It had no row that says which windows are gone, and closed them, and leases, by the largest arrival ever."""
    late = NOON + 100 * DAY
    put(log, [make_event() for _ in range(20)], arrival=late)
    catch_up(log.path.parent)
    for partition in range(log.partitions):
        tp = TopicPartition(ROWS, partition)
        log.delete(tp, log.offsets_of(tp, tables.encode_key(partition, "horizon"), 0, log.end(tp)))
    closed = []
    for key in newest_rows(log):
        _, kind, parts = tables.decode_key(key)
        if kind == "window" and tables.is_expired(parts[2], parts[3], late):
            closed.append(key)
    assert len(closed) == 2 * 2 * 3, "minutes, hours and days of organization and key, in both partitions"
    for key in closed:
        plant(log, key, None)
    assert differences(log, tmp_path / "1") == []
    put(log, [make_event() for _ in range(20)])
    catch_up(log.path.parent)
    assert differences(log, tmp_path / "2") == []
    assert [horizon_of(log, partition)[:3] for partition in range(log.partitions)] == [[late, 0, late]] * 2
    assert not set(closed) & set(newest_rows(log)), "what was closed stays closed"


def test_a_horizon_after_every_arrival_is_a_difference(log: Log, tmp_path: Path) -> None:
    """All windows would be taken for closed by it."""
    numbers = horizon_of(log, 0)
    key = tables.encode_key(0, "horizon")
    plant(log, key, json.dumps([NOON + 1, *numbers[1:]]).encode())
    [difference] = differences(log, tmp_path)
    assert (difference.key, difference.columns()) == (key.decode(), {"windows": (NOON + 1, NOON)})


def test_a_horizon_that_is_none_is_said_to_be_one(log: Log, tmp_path: Path) -> None:
    plant(log, tables.encode_key(0, "horizon"), b"[1]")
    with pytest.raises(VerifyError, match="horizon of partition 0"):
        differences(log, tmp_path)
