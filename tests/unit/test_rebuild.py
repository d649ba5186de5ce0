"""Rebuild makes of a damaged directory what a worker had made of it, or says what it could not have."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from processor.core.events import message
from processor.core.tables import dedupe, table_rows
from processor.core.tables.apply import Tables
from processor.log.dead_letters import DeadLetter, dead_offsets
from processor.log.embedded.log import Log
from processor.log.file_lock import FileLock
from processor.log.records import Append, TopicPartition
from processor.log.topics import CHECKPOINTS, CLAIMS, DEAD_LETTERS, DIRECTORY, EVENTS, GROUP, ROWS
from processor.state.applier import Broken
from processor.state.loader import open_index
from server.cli.commands import main
from tests.support.damage import covered, empty, flip
from tests.support.dict_index import DictIndex
from tests.support.events import make_event
from tests.support.logs import catch_up, newest_rows, put
from tests.support.messages import first_from
from tests.support.tables import NOON

PARTITIONS = 2


@pytest.fixture(autouse=True)
def _data_dir_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPENDSTREAM_DATA_DIR", "")  # the command's flags go there


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """Copies, conflicts, a wide row and a dead letter in between; all of it applied."""
    data = tmp_path / "data"
    made = Log(data, partitions=PARTITIONS)
    sent: list[dict[str, Any]] = []
    for number in range(8):
        events = [make_event(user_id=f"u{number % 5}", model=f"m{n % 3}") for n in range(30)]
        events[0]["cost_usd"] = 999_999
        put(made, [*events, *sent[:7], {**events[3], "model": "another"}])
        sent += events
        if number == 4:
            for partition in range(PARTITIONS):
                bury(made, partition)
        catch_up(data)
    return made


def bury(log: Log, partition: int) -> None:
    [offset] = log.append([Append(TopicPartition(EVENTS, partition), [(None, b"junk")])], NOON)
    letter = DeadLetter(EVENTS, partition, offset, "a reason", NOON)
    log.append([Append(TopicPartition(DEAD_LETTERS, partition), [(letter.encode(), b"junk")])], NOON)


def run(log: Log, *arguments: str) -> tuple[int, Any]:
    done = CliRunner().invoke(main, [*arguments, "--json", "--data-dir", str(log.path.parent)])
    return done.exit_code, json.loads(done.stdout) if done.stdout else done.stderr


def refused(log: Log, *arguments: str) -> str:
    done = CliRunner().invoke(main, ["rebuild", *arguments, "--data-dir", str(log.path.parent)])
    assert done.exit_code == 2
    return done.stderr


def in_events(rows: dict[bytes, bytes]) -> dict[bytes, bytes | list[int]]:
    """Rows, with what the progress says of the events only: where the claims begin may be another place. The horizon
    follows from the clock and not from the events."""
    found: dict[bytes, bytes | list[int]] = {}
    for key, value in rows.items():
        kind = table_rows.decode_key(key)[1]
        if kind != "horizon":
            found[key] = table_rows.decode_value(value)[:2] if kind == "progress" else value
    return found


def rows_of(log: Log) -> dict[bytes, bytes | list[int]]:
    return in_events(newest_rows(log))


def check(log: Log, expected: dict[bytes, bytes]) -> None:
    """The rows are these, `verify` finds nothing, and a worker that starts changes nothing."""
    assert rows_of(log) == in_events(expected)
    code, answer = run(log, "verify")
    assert (code, answer["differences"], answer["problems"]) == (0, [], [])
    catch_up(log.path.parent)
    assert rows_of(log) == in_events(expected)
    code, answer = run(log, "verify")
    assert (code, answer["differences"], answer["problems"]) == (0, [], [])


def rebuilt(log: Log, *arguments: str) -> list[dict[str, Any]]:
    code, answer = run(log, "rebuild", *arguments)
    assert code == (1 if any(each["lost"] for each in answer["partitions"]) else 0)
    partitions: list[dict[str, Any]] = answer["partitions"]
    return partitions


def test_what_is_sound_stays_as_it_is(log: Log) -> None:
    before = newest_rows(log)
    done = rebuilt(log)
    assert [(each["removed"], each["claims"], each["lost"]) for each in done] == [(0, 0, [])] * PARTITIONS
    assert sum(each["rows"] for each in done) == len(before) - 2 * PARTITIONS
    assert [each["offset"] + 1 for each in done] == [log.end(TopicPartition(EVENTS, n)) for n in range(PARTITIONS)]
    for number in range(PARTITIONS):
        first = log.read(TopicPartition(ROWS, number), 0, 1)[0].offset
        assert first > 0, "the old records are gone"
        assert log.committed(GROUP, TopicPartition(EVENTS, number)) == done[number]["offset"] + 1
    check(log, before)


def test_rows_that_are_damaged_or_gone_or_too_many_come_back(log: Log) -> None:
    before = newest_rows(log)
    rows = TopicPartition(ROWS, 0)
    for record in log.read(rows, 0):
        flip(log, rows, record.offset)
    empty(log, ROWS, 1)
    extra = table_rows.encode_key(1, "hour", "nobody", 1, "p", "m", "e")
    log.append([Append(TopicPartition(ROWS, 1), [(extra, b"[1,1,0,0,0,0,0,0,1,1]")])], NOON)
    assert run(log, "verify")[0] == 1
    done = rebuilt(log)
    assert [each["lost"] for each in done] == [[], []]
    assert done[1]["removed"] == 1
    check(log, before)


def test_an_index_is_made_anew(log: Log) -> None:
    before = newest_rows(log)
    index = open_index(log.path.parent / "index" / "0000", log, 0)
    index.claim(np.array([[7, 7]], np.uint64), np.array([1], np.uint64), 3)
    index.sync(covered(log, 0, len(index)), final=True)
    index.close()
    assert run(log, "verify")[0] == 1
    rebuilt(log)
    check(log, before)


@pytest.mark.parametrize("damaged", [False, True])
def test_claims_that_are_missing_are_written_again(log: Log, damaged: bool) -> None:
    before = newest_rows(log)
    tp = TopicPartition(CLAIMS, 1)
    counts = [
        sum(len(claimed.keys) // 16 for claimed in dedupe.decode_claims(record.value or b""))
        for record in log.read(tp, 0)
    ]
    assert len(counts) > 2
    if damaged:
        flip(log, tp, 1)
        flip(log, tp, len(counts) - 1)
    else:
        empty(log, CLAIMS, 1)
    done = rebuilt(log)
    assert (done[0]["claims"], done[1]["lost"]) == (0, [])
    assert done[1]["claims"] == (counts[1] + counts[-1] if damaged else sum(counts)) > 0
    check(log, before)


def test_a_dead_letter_that_is_damaged_is_told(log: Log) -> None:
    letters = TopicPartition(DEAD_LETTERS, 0)
    flip(log, letters, 0)
    lost = rebuilt(log)[0]["lost"]
    assert [f"{DEAD_LETTERS}:0:0" in lost[0], "the worker goes on with it" in lost[1]] == [True, True]
    catch_up(log.path.parent)  # buries the message, whose letter is gone, once more
    assert len(log.read(letters, 0)) == 1
    assert run(log, "verify")[0] == 0


def test_events_that_were_not_applied_are(log: Log) -> None:
    put(log, [make_event(user_id="late") for _ in range(20)])
    bury(log, 0)
    done = rebuilt(log)
    assert [each["lost"] for each in done] == [[], []]
    before = newest_rows(log)
    assert sum(table_rows.decode_value(value)[1] for key, value in before.items() if b'"late"' in key) == 20
    check(log, before)


def poison(log: Log) -> bytes:
    """A message that can be read, and fails while it is applied: its arrival lies in no calendar."""
    [*_, record] = log.read(TopicPartition(EVENTS, 0), 0)
    return first_from(message.decode(record.value or b""), arrival=2**62)


@pytest.mark.parametrize("kind", ["unreadable", "failing"])
def test_rebuild_stops_before_what_only_the_worker_may_bury(log: Log, kind: str) -> None:
    value = b"junk" if kind == "unreadable" else poison(log)
    [offset] = log.append([Append(TopicPartition(EVENTS, 0), [(None, value)])], NOON)
    put(log, [make_event(user_id="late") for _ in range(20)])
    done = rebuilt(log)
    assert (done[0]["offset"], len(done[0]["lost"]), done[1]["lost"]) == (offset - 1, 1, [])
    assert "the worker goes on with it" in done[0]["lost"][0]
    if kind == "failing":  # the worker ends, and begins anew without it
        with pytest.raises(Broken):
            catch_up(log.path.parent)
    catch_up(log.path.parent)
    assert len(log.read(TopicPartition(DEAD_LETTERS, 0), 0)) == 2
    check(log, newest_rows(log))


def seal(log: Log, before: Sequence[int]) -> None:
    """Delete the events before these offsets, as retention does."""
    for number, offset in enumerate(before):
        if not offset:
            continue
        events, checkpoints = TopicPartition(EVENTS, number), TopicPartition(CHECKPOINTS, number)
        rows = tables_until(log, number, offset)
        log.append([Append(checkpoints, rows)], NOON)
        log.trim(events, offset)


def tables_until(log: Log, number: int, end: int) -> list[tuple[bytes | None, bytes | None]]:
    """The rows of all messages before an offset, singly, the progress last."""
    made = Tables(number, log.salt, DictIndex())
    dead = dead_offsets(log, number)
    for record in log.read(TopicPartition(EVENTS, number), 0):
        if record.offset < end:
            if record.offset in dead:
                made.skip(record.offset)
            else:
                decoded = message.decode(record.value or b"")
                made.apply(record.offset, decoded, made.prepare(decoded))
    changes = made.drain_changes()
    assert changes is not None
    return [*changes.records]


def test_after_retention_the_checkpoint_stands_for_what_was_deleted(log: Log) -> None:
    before = newest_rows(log)
    seal(log, (6, 4))
    for number in range(PARTITIONS):
        empty(log, ROWS, number)
    assert run(log, "verify")[0] == 1
    assert [each["lost"] for each in rebuilt(log)] == [[], []]
    check(log, before)


def test_claims_of_deleted_events_cannot_be_had(log: Log) -> None:
    before = newest_rows(log)
    seal(log, (6, 0))
    flip(log, TopicPartition(CLAIMS, 0), 1)
    assert "whose events are deleted" in refused(log)
    assert newest_rows(log) == before
    empty(log, ROWS, 0)  # now there is nothing to lose
    [lost] = rebuilt(log)[0]["lost"]
    assert "whose events are deleted" in lost
    check(log, newest_rows(log))
    assert "ids are not known any more" in run(log, "verify")[1]["notices"][0]["text"]


def test_rows_of_events_that_are_gone_are_kept_unless_their_loss_is_allowed(log: Log) -> None:
    before = newest_rows(log)
    log.trim(TopicPartition(EVENTS, 0), 2)
    text = refused(log)
    assert "messages 0 to 1 are gone, and no checkpoint stands for them" in text
    assert "--allow-loss" in text
    assert newest_rows(log) == before
    done = rebuilt(log, "--allow-loss")
    assert [len(each["lost"]) for each in done] == [1, 0]
    check(log, newest_rows(log))
    [notice] = run(log, "verify")[1]["notices"]
    assert "events 0 to 1 of partition 0 are gone from the log" in notice["text"]
    copies = log.read(TopicPartition(EVENTS, 0), 0, 1)  # some that were sent again in time are counted now
    assert copies[0].offset == 2
    sums = [
        table_rows.decode_value(value)
        for key, value in newest_rows(log).items()
        if table_rows.decode_key(key)[1] == "user"
    ]
    before_sums = [
        table_rows.decode_value(value) for key, value in before.items() if table_rows.decode_key(key)[1] == "user"
    ]
    assert 0 < sum(row[1] for row in sums) < sum(row[1] for row in before_sums)


def test_a_damaged_event_that_the_rows_count_is_kept_unless_its_loss_is_allowed(log: Log) -> None:
    before = newest_rows(log)
    flip(log, TopicPartition(EVENTS, 1), 2)
    assert f"{EVENTS}:1:2: damaged" in refused(log)
    assert {key for key, value in newest_rows(log).items() if before[key] != value} == set()
    done = rebuilt(log, "--allow-loss")
    assert (done[1]["offset"], len(done[1]["lost"])) == (1, 1)
    assert run(log, "verify")[1]["differences"] == []


def stored(log: Log) -> list[str]:
    return sorted(path.name for path in (log.path.parent / "events").iterdir())


@pytest.fixture
def segments(log: Log) -> list[str]:
    """Files of the event store, of both partitions."""
    directory = log.path.parent / "events"
    directory.mkdir()
    for name in ("0000-0-4-0123abcd", "0001-0-9-0123abcd"):
        for suffix in (".parquet", ".idx"):
            (directory / f"{name}{suffix}").write_bytes(b"rows")
    (directory / "log.id").write_text("mark")
    return stored(log)


def test_a_refused_rebuild_leaves_the_store_of_no_partition_that_it_has_rebuilt(log: Log, segments: list[str]) -> None:
    flip(log, TopicPartition(EVENTS, 1), 2)
    assert "partition 1" in refused(log)
    assert stored(log) == [name for name in segments if not name.startswith("0000-")]
    rebuilt(log, "--allow-loss")
    assert stored(log) == []  # without its mark `verify` leaves the store out, until the next start makes it anew


def test_a_rebuild_that_is_killed_has_removed_what_the_store_made_of_the_old_rows(
    log: Log, segments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("processor.state.rebuild.EmbeddedTarget.append", killed)
        with pytest.raises(Killed):
            CliRunner().invoke(main, ["rebuild", "--data-dir", str(log.path.parent)])
    assert stored(log) == [name for name in segments if not name.startswith("0000-")]


def test_tables_beyond_the_events_are_kept_unless_their_loss_is_allowed(log: Log) -> None:
    number = table_rows.encode_key(0, "progress")
    end = log.end(TopicPartition(EVENTS, 0))
    log.append([Append(TopicPartition(ROWS, 0), [(number, json.dumps([end + 3, NOON]).encode())])], NOON)
    assert f"messages {end} to {end + 3}, which the rows contain, are gone" in refused(log)
    rebuilt(log, "--allow-loss")
    assert run(log, "verify")[0] == 0


def test_a_damaged_checkpoint_is_taken_away_where_the_events_are_all_there(log: Log) -> None:
    before = newest_rows(log)
    checkpoints = TopicPartition(CHECKPOINTS, 0)
    log.append([Append(checkpoints, tables_until(log, 0, 5))], NOON)
    flip(log, checkpoints, 3)
    assert run(log, "verify")[0] == 1
    assert rebuilt(log)[0]["lost"] == []
    check(log, before)


def test_a_checkpoint_of_another_format_is_taken_away_too(log: Log) -> None:
    before = newest_rows(log)
    checkpoints = TopicPartition(CHECKPOINTS, 0)
    rows = tables_until(log, 0, 5)
    strange = (table_rows.encode_key(0, "latency", "p", 1, "a", "b", "c"), b"[1,999,1]")
    log.append([Append(checkpoints, [*rows[:3], strange, *rows[3:]])], NOON)
    code, answer = run(log, "verify")
    assert code == 1
    named = (
        f"record {CHECKPOINTS}:0:3: not a row of the changelog: latencies are an offset, and pairs of bucket and count"
    )
    assert named in str(answer)
    assert str(answer).count(f"record {CHECKPOINTS}:0:") == 1, "the others are read"
    assert rebuilt(log)[0]["lost"] == []
    check(log, before)


def test_keys_and_what_else_the_directory_has_stay(log: Log) -> None:
    directory = TopicPartition(DIRECTORY, 0)
    log.append([Append(directory, [(b"key/1", b"{}")])], NOON)
    rebuilt(log)
    assert [(record.key, record.value) for record in log.read(directory, 0)] == [(b"key/1", b"{}")]


def test_an_empty_log_is_fine(tmp_path: Path) -> None:
    log = Log(tmp_path / "data", partitions=PARTITIONS)
    assert [each["rows"] for each in rebuilt(log)] == [0, 0]
    check(log, {})


@pytest.mark.parametrize("name", ["serve.lock", "worker.lock"])
def test_nothing_is_done_while_a_server_or_worker_runs(log: Log, name: str) -> None:
    lock = FileLock(log.path.parent / name)
    lock.acquire("it is free")
    assert "stop it first" in refused(log)
    lock.close()
    rebuilt(log)


def test_a_directory_without_a_log_is_not_made(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["rebuild", "--data-dir", str(tmp_path / "nowhere")])
    assert done.exit_code == 2
    assert "there is no log in" in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_rows_say_what_they_contain_also_where_the_progress_is_damaged(log: Log) -> None:
    """Else a counted event that is damaged, too, would be left out without a word."""
    rows = TopicPartition(ROWS, 0)
    progress = max(r.offset for r in log.read(rows, 0, 100_000) if r.key == table_rows.encode_key(0, "progress"))
    event = log.end(TopicPartition(EVENTS, 0)) - 1
    flip(log, rows, progress)
    flip(log, TopicPartition(EVENTS, 0), event)
    assert "these rows cannot be made again" in refused(log)
