"""Verify finds what was planted, whatever it is, and nothing else."""

import json
import shutil
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from processor.core.clock import DAY
from processor.core.events import message
from processor.core.tables import dedupe, table_rows
from processor.core.tables.dedupe import Claimed
from processor.log.dead_letters import DeadLetter
from processor.log.embedded.log import OFFSET_BITS, Log, checksum
from processor.log.port import LogReader
from processor.log.records import Append, TopicPartition
from processor.log.topics import CLAIMS, DEAD_LETTERS, DIRECTORY, EVENTS, GROUP, ROWS
from processor.state.loader import open_index
from processor.state.recompute import arrays_of
from processor.state.verify import Difference, Verification, VerifyError, damage_elsewhere
from server.cli.commands import main
from tests.support.damage import covered, empty, flip
from tests.support.events import make_event
from tests.support.logs import catch_up, newest_rows, put
from tests.support.messages import blocks_of
from tests.support.tables import NOON

KINDS = ["user", "hour", "latency", "window"]


def kind_of(number: int) -> dict[str, Any]:
    """One event of five is a span."""
    return {"kind": "span", "name": "plan", "cost_usd": 0} if number % 5 == 4 else {}


@pytest.fixture
def log(tmp_path: Path) -> Log:
    data = tmp_path / "data"
    made = Log(data, partitions=2)
    for number in range(5):
        put(made, [make_event(user_id=f"u{number}", model=f"m{n % 2}", **kind_of(n)) for n in range(20)])
        catch_up(data)
    return made


def plant(log: Log, key: bytes, value: bytes | None) -> None:
    """Write one row, followed by the progress as at the end of a flush."""
    partition, _, _ = table_rows.decode_key(key)
    progress = table_rows.encode_key(partition, "progress")
    log.append([Append(TopicPartition(ROWS, partition), [(key, value), (progress, newest_rows(log)[progress])])], NOON)


def differences(log: Log, tmp_path: Path) -> list[Difference]:
    found: list[Difference] = []
    for number in range(log.partitions):
        scratch = tmp_path / f"scratch-{number}"
        scratch.mkdir(parents=True)
        found += Verification(log, number, scratch, lambda *_: None).run()
    return found


def verified(log: LogReader, tmp_path: Path, number: int) -> tuple[Verification, list[Difference]]:
    """One partition, its index among it."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
        index = tmp_path / "data" / "index" / f"{number:04d}"
        verification = Verification(log, number, Path(scratch), lambda *_: None, index)
        return verification, list(verification.run())


def problems(log: LogReader, tmp_path: Path) -> list[str]:
    """The kinds of all problems, and nothing that differs."""
    found: list[str] = []
    for number in range(2):
        verification, different = verified(log, tmp_path, number)
        assert different == []
        assert verification.problem_count == len(verification.problems)
        found += [each.kind for each in verification.problems]
    return found


def empty_all(log: Log, topic: str, *, whole: bool = False) -> None:
    for partition in range(2):
        empty(log, topic, partition, whole=whole)


def some_row(log: Log, kind: str) -> tuple[bytes, list[int]]:
    rows = newest_rows(log)
    key = max(key for key in rows if table_rows.decode_key(key)[1] == kind)
    return key, table_rows.decode_value(rows[key])


def test_there_is_no_difference(log: Log, tmp_path: Path) -> None:
    assert differences(log, tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_row_is_found(log: Log, tmp_path: Path, kind: str) -> None:
    key, value = some_row(log, kind)
    changed = [*value[:2], value[2] + 7, *value[3:]]
    plant(log, key, json.dumps(changed).encode())
    assert differences(log, tmp_path) == [Difference(table_rows.decode_key(key)[0], key.decode(), changed, value)]


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
    partition, _, parts = table_rows.decode_key(key)
    extra = (
        table_rows.encode_key(partition, kind, "somebody", *parts[1:])
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
    progress = table_rows.encode_key(0, "progress")
    log.append([Append(TopicPartition(ROWS, 0), [(progress, json.dumps([end, NOON]).encode())])], NOON)
    verification, found = verified(log, tmp_path, 0)
    assert found == []
    assert [(each.kind, each.topic, each.offset) for each in verification.problems] == [("damaged_record", EVENTS, end)]
    assert "not an event message" in verification.problems[0].text


def test_a_flush_of_which_a_part_is_there_is_said_to_be_one(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.state.verify.PATIENCE", 0.05)
    key, value = some_row(log, "user")
    partition = table_rows.decode_key(key)[0]
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
    number, _, parts = table_rows.decode_key(key)
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
    for row_key in [key for key in newest_rows(log) if table_rows.decode_key(key)[1] == "hour"]:
        plant(log, row_key, None)
    code, shown = run(log, "verify")
    assert code == 1
    assert "is missing in the table" in shown
    assert "more (--json names" in shown


def horizon_of(log: Log, partition: int) -> list[int]:
    return table_rows.decode_value(newest_rows(log)[table_rows.encode_key(partition, "horizon")])


def test_rows_that_an_earlier_version_has_written_are_gone_on_with(log: Log, tmp_path: Path) -> None:
    """It had no row that says which windows are gone, and closed them, and leases, by the largest arrival ever."""
    late = NOON + 100 * DAY
    put(log, [make_event() for _ in range(20)], arrival=late)
    catch_up(log.path.parent)
    for partition in range(log.partitions):
        tp = TopicPartition(ROWS, partition)
        log.delete(tp, log.offsets_of(tp, table_rows.encode_key(partition, "horizon"), 0, log.end(tp)))
    closed = []
    for key in newest_rows(log):
        _, kind, parts = table_rows.decode_key(key)
        if kind == "window" and table_rows.is_expired(parts[2], parts[3], late):
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
    key = table_rows.encode_key(0, "horizon")
    plant(log, key, json.dumps([NOON + 1, *numbers[1:]]).encode())
    [difference] = differences(log, tmp_path)
    assert (difference.key, difference.columns()) == (key.decode(), {"windows": (NOON + 1, NOON)})


def test_a_horizon_that_is_none_is_said_to_be_one(log: Log, tmp_path: Path) -> None:
    plant(log, table_rows.encode_key(0, "horizon"), b"[1]")
    with pytest.raises(VerifyError, match="horizon of partition 0"):
        differences(log, tmp_path)


# --- events, rows and claims without the others ---------------------------------------------------------------------


def test_an_empty_log_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPENDSTREAM_DATA_DIR", "")
    assert run(Log(tmp_path / "data", partitions=2), "verify") == (0, "0 messages, 0 differences\n")


def test_events_that_no_worker_has_seen_are_fine(tmp_path: Path) -> None:
    log = Log(tmp_path / "data", partitions=2)
    put(log, [make_event() for _ in range(20)])
    assert problems(log, tmp_path) == []


def test_nothing_is_wrong(log: Log, tmp_path: Path) -> None:
    assert problems(log, tmp_path) == []


@pytest.mark.parametrize(
    ("topic", "kinds"),
    [
        (ROWS, {"rows_missing", "claims_without_rows"}),
        (CLAIMS, {"claims_missing"}),
        (EVENTS, {"events_missing", "claims_without_events"}),
    ],
)
def test_an_emptied_topic_is_noticed(log: Log, tmp_path: Path, topic: str, kinds: set[str]) -> None:
    empty_all(log, topic)
    found = [verified(log, tmp_path, number)[0].problems for number in range(2)]
    assert [{each.kind for each in some} for some in found] == [kinds, kinds]


@pytest.mark.parametrize("topic", [EVENTS, ROWS, CLAIMS, DEAD_LETTERS])
def test_a_deleted_topic_is_noticed(log: Log, monkeypatch: pytest.MonkeyPatch, topic: str) -> None:
    monkeypatch.setenv("SPENDSTREAM_DATA_DIR", "")
    empty_all(log, topic, whole=True)
    code, shown = run(log, "verify", "--json")
    answer = json.loads(shown)
    assert code == 1
    missing = [each["partition"] for each in answer["problems"] if each["kind"] == "topic_missing"]
    assert missing == [0, 1]
    assert {each["topic"] for each in answer["problems"] if each["kind"] == "topic_missing"} == {topic}


class Renamed(Log):
    """A log that has other names for its topics, as one on Kafka may."""

    def name_of(self, topic: str) -> str:
        return topic.replace("spendstream.", "team-a.")


def test_topics_have_the_names_that_an_operator_knows(log: Log, tmp_path: Path) -> None:
    empty_all(log, ROWS, whole=True)
    [missing] = verified(Renamed(log.path.parent), tmp_path, 0)[0].problems
    assert (missing.kind, missing.topic) == ("topic_missing", "team-a.rows")
    assert missing.text == "there is no partition 0 of the topic team-a.rows"


def test_rows_and_claims_that_are_both_gone_are_missed_by_what_was_committed(log: Log, tmp_path: Path) -> None:
    log.commit(GROUP, [(TopicPartition(EVENTS, number), 5) for number in range(2)])
    empty_all(log, ROWS)
    empty_all(log, CLAIMS)
    assert problems(log, tmp_path) == ["rows_missing", "rows_missing"]


def test_tables_beyond_the_events_are_noticed(log: Log, tmp_path: Path) -> None:
    with closing(apsw.Connection(str(log.path))) as db:
        number = log.number(TopicPartition(EVENTS, 1))
        db.execute("DELETE FROM record WHERE id = ?", ((number << OFFSET_BITS) + 4,))
        db.execute("UPDATE partition SET next = 4 WHERE number = ?", (number,))
    verification, different = verified(log, tmp_path, 1)
    assert different  # the rows of what is gone
    assert [each.kind for each in verification.problems] == ["events_missing", "claims_without_events"]
    assert verification.problems[0].text == (
        "the tables of partition 1 contain messages up to 4, the events end before 4"
    )


def claim(log: Log, number: int, offset: int) -> None:
    value = dedupe.encode_claims([Claimed(offset, b"k" * 16, b"d" * 8)])
    log.append([Append(TopicPartition(CLAIMS, number), [(None, value)])], NOON)


def test_an_id_that_no_event_has_is_noticed(log: Log, tmp_path: Path) -> None:
    claim(log, 0, 3)
    assert problems(log, tmp_path) == ["claims_without_events"]


def test_claims_beyond_the_rows_are_noticed(log: Log, tmp_path: Path) -> None:
    claim(log, 1, 5)
    assert problems(log, tmp_path) == ["claims_without_rows"]


def test_an_id_that_is_claimed_by_another_message_is_noticed(log: Log, tmp_path: Path) -> None:
    tp = TopicPartition(CLAIMS, 0)
    records = [dedupe.decode_claims(record.value or b"") for record in log.read(tp, 0)]
    empty_all(log, CLAIMS)
    [first, *others] = [each for found in records for each in found]
    moved = [Claimed(first.offset + 1, first.keys, first.digests), *others]
    log.append([Append(tp, [(None, dedupe.encode_claims(moved))])], NOON)
    assert {each.kind for each in verified(log, tmp_path, 0)[0].problems} == {"claims_wrong", "claims_without_events"}


def test_claims_that_were_written_twice_are_fine(log: Log, tmp_path: Path) -> None:
    """As after a replay, which writes again what may not have become durable."""
    tp = TopicPartition(CLAIMS, 0)
    log.append([Append(tp, [(None, record.value) for record in log.read(tp, 0)])], NOON)
    assert problems(log, tmp_path) == []


def test_a_dead_letter_of_no_message_is_noticed(log: Log, tmp_path: Path) -> None:
    letter = DeadLetter(EVENTS, 0, 5, "a reason", NOON)
    log.append([Append(TopicPartition(DEAD_LETTERS, 0), [(letter.encode(), b"")])], NOON)
    assert problems(log, tmp_path) == ["events_missing"]


# --- the id index ---------------------------------------------------------------------------------------------------


def test_an_index_that_lacks_ids_it_says_to_have_is_noticed(log: Log, tmp_path: Path) -> None:
    directory = tmp_path / "data" / "index" / "0000"
    shutil.rmtree(directory)
    index = open_index(directory, log, 0)
    index.claim(np.array([[7, 7]], np.uint64), np.array([1], np.uint64), 3)
    index.sync(covered(log, 0, 1), final=True)
    index.close()
    verification, _ = verified(log, tmp_path, 0)
    assert [each.kind for each in verification.problems] == ["index"]
    assert "lacks" in verification.problems[0].text


def test_an_index_with_ids_that_nobody_claimed_is_noticed(log: Log, tmp_path: Path) -> None:
    index = open_index(tmp_path / "data" / "index" / "0001", log, 1)
    for record in log.read(TopicPartition(CLAIMS, 1), 0):
        for each in dedupe.decode_claims(record.value or b""):
            index.claim(*arrays_of(each), each.offset)
    index.claim(np.array([[7, 7], [8, 8]], np.uint64), np.array([1, 2], np.uint64), 3)
    index.sync(covered(log, 1, len(index)), final=True)
    index.close()
    verification, _ = verified(log, tmp_path, 1)
    assert [each.text.partition(" has ")[2] for each in verification.problems] == ["2 ids that were never claimed"]


# --- original bytes -------------------------------------------------------------------------------------------------


def rewrite(log: Log, number: int, offset: int, change: Any) -> None:
    """Store a message with other contents, as a program with a fault might have."""
    tp = TopicPartition(EVENTS, number)
    [record] = log.read(tp, offset, 1)
    decoded = message.decode(record.value or b"")
    [block] = blocks_of(decoded)
    value = message.encode([change(block)])
    with closing(apsw.Connection(str(log.path))) as db:
        place = (log.number(tp) << OFFSET_BITS) + offset
        query = "UPDATE record SET value = ?, checksum = ? WHERE id = ?"
        db.execute(query, (value, checksum(place, record.at, record.key, value), place))


def original_bytes(log: Log, tmp_path: Path, number: int) -> list[str]:
    verification, _ = verified(log, tmp_path, number)
    assert {each.kind for each in verification.problems} <= {"original_bytes", "claims_wrong"}
    return [each.text.partition(": ")[2] for each in verification.problems if each.kind == "original_bytes"]


@pytest.mark.parametrize("name", ["at", "input", "output", "cached", "cost", "flags", "latency", "digest"])
def test_columns_that_are_not_those_of_the_original_bytes_are_noticed(log: Log, tmp_path: Path, name: str) -> None:
    def change(block: message.Block) -> message.Block:
        rows = block.rows.copy()
        rows[name][1] += 1
        return msgspec.structs.replace(block, rows=rows)

    rewrite(log, 0, 2, change)
    assert original_bytes(log, tmp_path, 0) == [f"request 0, event 1: {name} differs from its original bytes"]


def test_a_latency_that_is_lost_is_noticed(log: Log, tmp_path: Path) -> None:
    def change(block: message.Block) -> message.Block:
        rows = block.rows.copy()
        rows["latency"][1] = 0
        return msgspec.structs.replace(block, rows=rows)

    rewrite(log, 0, 2, change)
    assert original_bytes(log, tmp_path, 0) == ["request 0, event 1: latency differs from its original bytes"]


def test_users_and_dims_that_are_not_those_of_the_original_bytes_are_noticed(log: Log, tmp_path: Path) -> None:
    rewrite(log, 0, 1, lambda block: msgspec.structs.replace(block, users=["another"]))
    found = original_bytes(log, tmp_path, 0)
    assert found[0] == "request 0, event 0: user differs from its original bytes"


def test_original_bytes_that_are_missing_or_of_other_events_are_noticed(log: Log, tmp_path: Path) -> None:
    rewrite(log, 0, 1, lambda block: msgspec.structs.replace(block, originals=[block.originals[0][1:]]))
    assert "columns of" in original_bytes(log, tmp_path, 0)[0]
    rewrite(log, 1, 1, lambda block: msgspec.structs.replace(block, originals=[[*block.originals[0][:-1], b"{}"]]))
    [found] = original_bytes(log, tmp_path, 1)
    assert "its original bytes are no event" in found


def test_lenient_events_are_compared_by_what_no_rule_may_change(tmp_path: Path) -> None:
    log = Log(tmp_path / "data")
    odd = [make_event(cost_usd=None, model=None), make_event(input_tokens=5, cached_tokens=7), make_event()]
    put(log, odd, handling="lenient")
    catch_up(tmp_path / "data")
    assert original_bytes(log, tmp_path, 0) == []

    def change(block: message.Block) -> message.Block:
        rows = block.rows.copy()
        rows["input"] += 3  # as a later rule may read the first two
        return msgspec.structs.replace(block, rows=rows)

    rewrite(log, 0, 0, change)
    assert original_bytes(log, tmp_path, 0) == ["request 0, event 2: input differs from its original bytes"]


# --- damaged records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", [EVENTS, ROWS, CLAIMS])
def test_a_damaged_record_is_named_and_the_rest_is_checked(log: Log, tmp_path: Path, topic: str) -> None:
    for offset in (1, 2):
        flip(log, TopicPartition(topic, 0), offset)
    verification, _ = verified(log, tmp_path, 0)
    named = [(each.topic, each.offset) for each in verification.problems if each.kind == "damaged_record"]
    assert named == [(topic, 1), (topic, 2)]
    assert f"{topic}:0:1" in verification.problems[0].text
    assert verification.messages == 5
    assert "claims_missing" not in {each.kind for each in verification.problems} or topic == CLAIMS


def test_a_damaged_event_that_is_a_dead_letter_is_known(log: Log, tmp_path: Path) -> None:
    offset = log.append([Append(TopicPartition(EVENTS, 0), [(None, b"junk")])], NOON)[0]
    letter = DeadLetter(EVENTS, 0, offset, "damaged", NOON, damaged=True)
    log.append([Append(TopicPartition(DEAD_LETTERS, 0), [(letter.encode(), b"junk")])], NOON)
    catch_up(tmp_path / "data")
    flip(log, TopicPartition(EVENTS, 0), offset)
    verification, different = verified(log, tmp_path, 0)
    assert (verification.problems, different) == ([], [])
    assert f"{EVENTS}:0:{offset}" in verification.notices[0]


def test_damage_in_topics_that_no_partition_reads_is_found(log: Log) -> None:
    log.append([Append(TopicPartition(DIRECTORY, 0), [(b"key/1", b"{}"), (b"key/2", b"{}")])], NOON)
    assert damage_elsewhere(log) == []
    flip(log, TopicPartition(DIRECTORY, 0), 0)
    assert [(each.topic, each.offset) for each in damage_elsewhere(log)] == [(DIRECTORY, 0)]
