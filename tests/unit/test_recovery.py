"""The embedded log after a person with a tool: whatever range of a topic is gone, it is healed, refused or reported."""

import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from structlog.testing import capture_logs

from processor.core.clock import DAY, HOUR
from processor.core.events import message
from processor.core.tables import table_rows
from processor.core.tables.apply import Tables
from processor.ids.index import IdIndex
from processor.log import losses
from processor.log.address import LogAddress
from processor.log.dead_letters import letters
from processor.log.embedded.log import FILE_NAME, OFFSET_BITS, Log
from processor.log.errors import DamagedRecord, HistoryMismatch
from processor.log.losses import Lost
from processor.log.records import Append, TopicPartition
from processor.log.topics import CLAIMS, DEAD_LETTERS, DIRECTORY, EVENTS, GROUP, ROWS
from processor.state import recovery
from processor.state.applier import Broken
from processor.state.loader import Partition, bring, load, sync_index
from processor.state.rebuild import EmbeddedTarget, Rebuild
from processor.state.verify import Verification, verify
from tests.support.damage import flip
from tests.support.events import make_event
from tests.support.logs import catch_up, newest_rows, put
from tests.support.tables import NOON

E0 = TopicPartition(EVENTS, 0)
ROUNDS = 6
EACH = 20
CALLS = 18
"""The others are spans."""


def send(log: Log, number: int) -> list[dict[str, Any]]:
    """One message; a fifth of its events came before."""
    events = [
        make_event(
            event_id=id_of(EACH * number + each),
            user_id=f"u{(EACH * number + each) // 5}",
            **({"kind": "span", "name": "plan", "cost_usd": 0} if each % 10 == 7 else {}),
        )
        for each in range(-4, EACH)
    ]
    put(log, events[4 if number == 0 else 0 :])
    return events


def id_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with `ROUNDS` messages, applied in as many flushes."""
    directory = tmp_path / "data"
    log = Log(directory)
    for number in range(ROUNDS):
        send(log, number)
        catch_up(directory)
        log.commit(GROUP, [(E0, number + 1)])
    log.close()
    return directory


def delete(data: Path, topic: str, start: int, end: int) -> None:
    """DELETE a range of offsets, as somebody does with sqlite3; the log's numbers stay."""
    with closing(apsw.Connection(str(data / FILE_NAME))) as db:
        [(number,)] = db.execute("SELECT number FROM partition WHERE topic = ? AND partition = 0", (topic,))
        base = number << OFFSET_BITS
        db.execute("DELETE FROM record WHERE id >= ? AND id < ?", (base + start, base + end))
        assert db.changes() > 0


def end_of(data: Path, topic: str) -> int:
    with closing(Log(data, create=False)) as log:
        return log.end(TopicPartition(topic, 0))


def counted(data: Path) -> int:
    with closing(Log(data, create=False)) as log:
        rows = newest_rows(log)
    return sum(
        table_rows.decode_value(value)[1] for key, value in rows.items() if table_rows.decode_key(key)[1] == "user"
    )


def differences(data: Path, tmp_path: Path) -> list[Any]:
    scratch = tmp_path / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with closing(Log(data, create=False)) as log:
        return verify(log, 0, scratch, lambda *_: None)


def reported(data: Path) -> list[tuple[str, int, int, bool]]:
    with closing(Log(data, create=False)) as log:
        return [(each.topic, each.start, each.end, each.counted) for each in losses.read(log)]


def send_again(data: Path) -> None:
    """Every event once more: none of those that are counted may count again."""
    with closing(Log(data, create=False)) as log:
        for number in range(ROUNDS):
            send(log, number)
    catch_up(data)


ALL = ROUNDS * CALLS


@pytest.mark.parametrize("part", ["head", "middle", "tail", "all"])
@pytest.mark.parametrize("topic", [ROWS, CLAIMS])
@pytest.mark.parametrize("with_index", [True, False])
def test_rows_and_claims_are_made_anew_from_the_events(
    data: Path, tmp_path: Path, topic: str, part: str, *, with_index: bool
) -> None:
    end = end_of(data, topic)
    third = end // 3
    delete(
        data,
        topic,
        *{"head": (0, third), "middle": (third, 2 * third), "tail": (2 * third, end), "all": (0, end)}[part],
    )
    if not with_index:
        shutil.rmtree(data / "index")
    catch_up(data)
    assert counted(data) == ALL
    assert differences(data, tmp_path) == []
    assert reported(data) == []
    shutil.rmtree(data / "index")
    send_again(data)
    assert counted(data) == ALL
    assert differences(data, tmp_path) == []
    with closing(Log(data, create=False)) as log:
        log.commit(GROUP, [(E0, log.end(E0))])
    before = end_of(data, topic)
    catch_up(data)
    assert end_of(data, topic) == before, "a log that was healed is healed once more"


def windows_of(rows: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {key: value for key, value in rows.items() if table_rows.decode_key(key)[1] == "window"}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["start", "rebuild"])
def test_no_window_of_long_ago_comes_back_with_rows_that_are_all_gone(tmp_path: Path, way: str) -> None:
    """300 days, two events a day; the windows are those that a worker had which ran all the time."""
    data = tmp_path / "data"
    count = 300 * 2
    newest = NOON + count * 12 * HOUR
    with closing(Log(data)) as log:
        for number in range(count):
            put(log, [make_event(event_id=id_of(number))], arrival=NOON + number * 12 * HOUR)
        put(log, [make_event(event_id=id_of(0))], arrival=NOON)  # a copy that was on its way for long
        last = put(log, [make_event(event_id=id_of(count))], arrival=newest)[0]
    catch_up(data)
    with closing(Log(data, create=False)) as log:
        every = windows_of(newest_rows(log))
        log.commit(GROUP, [(E0, last + 1)])
    open_ = {}
    for key, value in every.items():
        _, _, (_, _, kind, start) = table_rows.decode_key(key)
        if not table_rows.is_expired(kind, start, newest):
            open_[key] = value
    assert 100 < len(open_) < len(every) / 4
    delete(data, ROWS, 0, end_of(data, ROWS))
    if way == "start":
        load(LogAddress(data), 0, lambda: newest + DAY).index.close()
    else:
        with closing(Log(data, create=False)) as log:
            scratch = tmp_path / "rebuild"
            scratch.mkdir()
            target = EmbeddedTarget(log, newest + DAY)
            assert Rebuild(LogAddress(data), log, 0, scratch, target, lambda *_: None).run(allow_loss=False).lost == []
    with closing(Log(data, create=False)) as log:
        assert windows_of(newest_rows(log)) == open_
    assert differences(data, tmp_path) == []
    catch_up(data)
    with closing(Log(data, create=False)) as log:
        assert windows_of(newest_rows(log)) == open_


def test_the_old_rows_do_not_linger(data: Path, tmp_path: Path) -> None:
    stale = table_rows.encode_key(0, "hour", "another", 1, "openai", "gpt-4o", "production")
    with closing(Log(data, create=False)) as log:
        log.append([Append(TopicPartition(ROWS, 0), [(stale, b"[1,1,0,1,1,0,1,0,1,1]")])], NOON)
    catch_up(data)
    with closing(Log(data, create=False)) as log:
        assert stale not in newest_rows(log)
    assert differences(data, tmp_path) == []


def test_events_that_no_worker_had_read_are_lost_by_name(data: Path, tmp_path: Path) -> None:
    with closing(Log(data, create=False)) as log:
        for number in range(ROUNDS, ROUNDS + 5):
            send(log, number)
    delete(data, EVENTS, ROUNDS + 1, ROUNDS + 3)
    catch_up(data)
    assert counted(data) == ALL + 3 * CALLS + 3  # the message behind the lost ones has copies of four of their events
    assert reported(data) == [("events", ROUNDS + 1, ROUNDS + 3, False)]
    catch_up(data)
    assert len(reported(data)) == 1
    with closing(Log(data, create=False)) as log:  # what is lost counts when it is sent again
        send(log, ROUNDS + 1)
        send(log, ROUNDS + 2)
    catch_up(data)
    assert counted(data) == ALL + 5 * CALLS


def test_the_last_events_are_lost_by_name_and_nothing_waits_for_them(data: Path) -> None:
    with closing(Log(data, create=False)) as log:
        for number in range(ROUNDS, ROUNDS + 3):
            send(log, number)
    delete(data, EVENTS, ROUNDS + 1, ROUNDS + 3)
    catch_up(data)
    assert reported(data) == [("events", ROUNDS + 1, ROUNDS + 3, False)]
    assert counted(data) == ALL + CALLS
    with closing(Log(data, create=False)) as log:
        progress = newest_rows(log)[table_rows.encode_key(0, "progress")]
        assert table_rows.decode_value(progress)[0] == log.end(E0) - 1


def test_events_that_are_counted_and_gone_are_named(data: Path) -> None:
    delete(data, EVENTS, 1, 3)
    catch_up(data)
    assert reported(data) == [("events", 1, 3, True)]
    assert counted(data) == ALL
    send_again(data)
    assert counted(data) == ALL


def discarded(data: Path) -> list[str]:
    """Why a start has thrown an id index away; the worker stops at once, with a checkpoint."""
    with capture_logs() as said:
        partition = load(LogAddress(data), 0)
    sync_index(partition, final=True)
    partition.index.close()
    return [each["reason"] for each in said if each["event"] == "index.discarded"]


def test_claims_of_a_message_of_a_newer_version_are_not_judged_by_this_one(data: Path) -> None:
    newer = msgspec.msgpack.encode([message.VERSION + 1, {"blocks": []}, b"", b"checksum"])
    with closing(Log(data, create=False)) as log, closing(apsw.Connection(str(log.path))) as db:
        place = (log.number(E0) << OFFSET_BITS) + ROUNDS - 1
        db.execute("UPDATE record SET value = ?, checksum = NULL WHERE id = ?", (newer, place))
    end = end_of(data, ROWS)
    with closing(Log(data, create=False)) as log:
        progress = table_rows.encode_key(0, "progress")
        last = log.offsets_of(TopicPartition(ROWS, 0), progress, 0, end)[-2]
    delete(data, ROWS, last + 1, end)
    partition = load(LogAddress(data), 0)
    partition.index.close()
    assert partition.expected == ROUNDS - 1, "it stops there, and the right program goes on"
    assert reported(data) == []
    assert end_of(data, EVENTS) == ROUNDS


def test_an_index_is_thrown_away_once_for_what_was_lost(data: Path) -> None:
    with closing(Log(data, create=False)) as log:
        for number in range(ROUNDS, ROUNDS + 3):
            send(log, number)
    delete(data, EVENTS, ROUNDS, ROUNDS + 2)
    assert discarded(data) == []
    catch_up(data)
    assert reported(data) == [("events", ROUNDS, ROUNDS + 2, False)]
    [reason] = discarded(data)
    assert f"the lost events (none), but must skip {ROUNDS} to {ROUNDS + 1}" in reason
    assert discarded(data) == []
    with closing(Log(data, create=False)) as log:
        send(log, ROUNDS)
    catch_up(data)
    assert discarded(data) == []
    assert counted(data) == ALL + 2 * CALLS + 3
    send_again(data)
    assert counted(data) == ALL + 2 * CALLS + 3


def test_a_start_looks_for_the_last_messages_and_a_few_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing in between is for `verify` to name, and for a start that has rows to make anew."""
    monkeypatch.setattr(recovery, "STRETCH", 2)
    monkeypatch.setattr(recovery, "PROBES", 2)  # the messages 0 and 2
    looked_for: list[int] = []
    missing = Log.missing

    def count(log: Log, tp: TopicPartition, start: int, end: int) -> list[tuple[int, int]]:
        looked_for.extend(range(start, end) if tp == E0 else [])
        return missing(log, tp, start, end)

    monkeypatch.setattr(Log, "missing", count)
    delete(data, EVENTS, 1, 2)
    catch_up(data)
    assert looked_for == [0, 2, 4, 5]
    assert reported(data) == []
    with closing(Log(data, create=False)) as log:
        verification = Verification(log, 0, tmp_path, lambda *_: None)
        list(verification.run())
    assert (EVENTS, "messages 1 to 1 are not there") in [(each.topic, each.text) for each in verification.problems]
    delete(data, ROWS, 0, end_of(data, ROWS) // 2)
    with pytest.raises(HistoryMismatch, match=r"partition 0: records of the rows are missing"):
        catch_up(data)
    delete(data, EVENTS, 2, 3)
    with pytest.raises(HistoryMismatch, match=r"partition 0: records of the rows are missing"):
        catch_up(data)


def test_a_probe_that_finds_nothing_has_all_messages_looked_for(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "STRETCH", 2)
    monkeypatch.setattr(recovery, "PROBES", 2)
    delete(data, EVENTS, 1, 3)
    catch_up(data)
    assert reported(data) == [("events", 1, 3, True)]
    delete(data, EVENTS, 3, 4)
    catch_up(data)
    assert reported(data) == [("events", 1, 3, True)]  # a loss that is known is no reason to look for more
    delete(data, EVENTS, 4, 5)
    catch_up(data)
    assert reported(data) == [("events", 1, 3, True), ("events", 3, 5, True)]


def test_a_start_that_is_refused_holds_nothing_open(data: Path) -> None:
    """Whoever repairs the partition in this process, or waits, would have its ids open a second time."""
    address = LogAddress(data)
    partition = load(address, 0)
    sync_index(partition, final=True)
    partition.index.close()
    delete(data, EVENTS, 0, 2)
    delete(data, ROWS, 0, end_of(data, ROWS) // 2)
    closed: list[Path] = []
    warm: dict[int, Partition] = {}
    with closing(Log(data, create=False)) as log, pytest.MonkeyPatch.context() as patched:
        close = IdIndex.close

        def note(index: IdIndex) -> None:
            closed.append(data)
            close(index)

        patched.setattr(IdIndex, "close", note)
        with pytest.raises(HistoryMismatch):
            bring(address, log, 0, lambda appends: log.append(appends, NOON), lambda: NOON, warm)
        assert (len(closed), warm) == (1, {})
        delete(data, CLAIMS, 0, 1)
        flip(log, TopicPartition(CLAIMS, 0), 2)
        shutil.rmtree(data / "index")
        with pytest.raises(DamagedRecord):
            bring(address, log, 0, lambda appends: log.append(appends, NOON), lambda: NOON, warm)
        assert (len(closed), warm) == (2, {})


@pytest.mark.parametrize("topic", [ROWS, CLAIMS])
def test_what_cannot_be_computed_anew_is_refused_with_a_way_out(data: Path, topic: str) -> None:
    delete(data, EVENTS, 0, 2)
    catch_up(data)
    delete(data, topic, 0, end_of(data, topic) // 2)
    if topic == CLAIMS:
        shutil.rmtree(data / "index")
        with closing(apsw.Connection(str(data / FILE_NAME))) as db:  # nobody was told that these events are gone
            [(number,)] = db.execute("SELECT number FROM partition WHERE topic = ?", (DIRECTORY,))
            db.execute("DELETE FROM record WHERE id >= ?", (number << OFFSET_BITS,))
            db.execute("UPDATE partition SET next = 0 WHERE topic = ?", (DIRECTORY,))
            db.execute("UPDATE partition SET first = 2 WHERE topic = ?", (EVENTS,))
    with pytest.raises(HistoryMismatch, match=r"partition 0: records of the (rows|claims) are missing.*backup.*export"):
        catch_up(data)


def test_dead_letters_that_are_gone_are_named(data: Path) -> None:
    with closing(Log(data, create=False)) as log:
        log.append([Append(E0, [(None, b"junk"), (None, b"more junk")])], NOON)
    catch_up(data)
    delete(data, DEAD_LETTERS, 0, 1)
    catch_up(data)
    assert reported(data) == [("dead-letters", 0, 1, False)]


def test_dead_letters_that_are_gone_are_written_again(data: Path, tmp_path: Path) -> None:
    with closing(Log(data, create=False)) as log:
        log.append([Append(E0, [(None, b"junk"), (None, b"more junk")])], NOON)
    catch_up(data)
    with closing(Log(data, create=False)) as log:
        before = [(letter.dead.offset, letter.dead.reason, letter.size) for letter in letters(log, 0)]
    assert len(before) == 2
    delete(data, DEAD_LETTERS, 0, 2)
    for _ in range(2):
        catch_up(data)
        with closing(Log(data, create=False)) as log:
            assert sorted((each.dead.offset, each.dead.reason, each.size) for each in letters(log, 0)) == before
    assert counted(data) == ALL
    assert differences(data, tmp_path) == []


@pytest.fixture
def data_with_a_fault(data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Message `ROUNDS` is a dead letter, though it can be read; some of its events came once more after it."""
    apply = Tables.apply

    def fails(self: Tables, offset: int, *others: Any) -> Any:
        if offset == ROUNDS:
            raise ValueError("a fault of the program")
        return apply(self, offset, *others)

    with closing(Log(data, create=False)) as log:
        send(log, ROUNDS)
    monkeypatch.setattr(Tables, "apply", fails)
    with pytest.raises(Broken):
        catch_up(data)
    monkeypatch.undo()
    with closing(Log(data, create=False)) as log:
        send(log, ROUNDS + 1)
    catch_up(data)
    return data


def test_a_letter_of_a_message_that_was_read_and_not_applied_is_written_again(
    data_with_a_fault: Path, tmp_path: Path
) -> None:
    data = data_with_a_fault
    known = counted(data)
    delete(data, DEAD_LETTERS, 0, 1)
    catch_up(data)
    with closing(Log(data, create=False)) as log:
        [letter] = letters(log, 0)
    assert (letter.dead.offset, letter.retry) == (ROUNDS, None)
    assert counted(data) == known
    assert differences(data, tmp_path) == []


def test_letters_that_are_gone_with_claims_are_refused_where_nothing_tells_what_was_applied(
    data_with_a_fault: Path,
) -> None:
    data = data_with_a_fault
    delete(data, DEAD_LETTERS, 0, 1)
    delete(data, CLAIMS, 2, 3)
    shutil.rmtree(data / "index")
    for _ in range(2):
        with pytest.raises(HistoryMismatch, match="1 dead letters and some of the claims are missing"):
            catch_up(data)


def test_a_directory_with_a_hole_is_refused_by_name(tmp_path: Path) -> None:
    with closing(Log(tmp_path / "data")) as log:
        home = TopicPartition(DIRECTORY, 0)
        log.append([Append(home, [(b"key/%d" % number, b"{}") for number in range(4)])], NOON)
        losses.check_directory(log)
        delete(tmp_path / "data", DIRECTORY, 1, 2)
        with pytest.raises(HistoryMismatch, match=r"spendstream\.directory.*revoked keys.*backup"):
            losses.check_directory(log)


def test_rows_of_the_format_before_are_believed(data: Path, tmp_path: Path) -> None:
    """They say nothing of the other pieces; the first flush does."""
    progress = table_rows.encode_key(0, "progress")
    with closing(Log(data, create=False)) as log:
        numbers = table_rows.decode_value(newest_rows(log)[progress])
        log.append([Append(TopicPartition(ROWS, 0), [(progress, json.dumps(numbers[:2]).encode())])], NOON)
        send(log, ROUNDS)
    catch_up(data)
    with closing(Log(data, create=False)) as log:
        offset, _, digest, claimed, claims_from, events, rows, dead, spans = table_rows.decode_value(
            newest_rows(log)[progress]
        )
        assert (offset, claimed, claims_from, events) == (ROUNDS, ROUNDS, 0, ALL + CALLS)
        assert digest >= 0
        assert rows == len(newest_rows(log)) - 2  # this one, and the horizon
        assert (dead, spans) == (0, EACH - CALLS)  # before there were none
    assert differences(data, tmp_path) == []


def test_a_report_reads_like_a_sentence() -> None:
    lost = Lost(topic="events", partition=2, start=7, end=9, counted=False, reason="deleted", at=NOON)
    assert (
        lost.text
        == "events 7 to 8 of partition 2 are gone from the log (deleted): they are LOST: no table contains them"
    )
    assert losses.decode(lost.encode()[1]) == lost
    assert lost.encode()[0] == b"lost/events/2/7"
    again = Lost(topic="acknowledged", partition=2, start=8, end=12, counted=False, reason="", at=NOON)
    there = Lost(topic="events", partition=1, start=0, end=5, counted=True, reason="", at=NOON)
    assert losses.uncounted([lost, again, there]) == {2: 5}
