"""Events past their time go; the tables, the ids and the proof stay, wherever a round is cut off."""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from processor.core.clock import DAY, HOUR
from processor.core.tables.table_rows import decode_value
from processor.log.address import LogAddress
from processor.log.dead_letters import dead_offsets
from processor.log.embedded.log import Log
from processor.log.records import Append, TopicPartition
from processor.log.topics import (
    CHECKPOINTS,
    CLAIMS,
    EVENT_CONSUMERS,
    EVENTS,
    GROUP,
    STORE_GROUP,
    STORE_PATIENCE,
    EventConsumer,
)
from processor.state import retention as module
from processor.state.loader import Partition, load
from processor.state.retention import Sealer, SealError
from processor.state.verify import Verification
from tests.support.damage import flip
from tests.support.events import make_event
from tests.support.examples import tries
from tests.support.logs import catch_up, newest_rows, put
from tests.support.tables import NOON

E0, C0 = TopicPartition(EVENTS, 0), TopicPartition(CHECKPOINTS, 0)
RETENTION = 3
SPAN = {"kind": "span", "name": "plan", "cost_usd": 0}


def identified(number: int, **changes: Any) -> dict[str, Any]:
    return make_event(
        event_id=str(UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, version=4)), **changes
    )


def batch(day: int) -> list[dict[str, Any]]:
    """A day's events: some are copies of the days before, some of them say something else, one is a span."""
    return [
        identified(7 * day + n, user_id=f"u{n % 4}", input_tokens=n if n < 8 else 512, **(SPAN if n == 3 else {}))
        for n in range(12)
    ]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """Ten days of events, one dead letter among them; at NOON + 10 days the first six are past their time."""
    data = tmp_path / "data"
    made = Log(data)
    for day in range(10):
        put(made, batch(day), arrival=NOON + day * DAY, key=f"key{day % 2}")
        if day == 2:
            made.append([Append(E0, [(None, b"junk")])], NOON + 2 * DAY)
    work(made)
    return made


def work(log: Log) -> None:
    catch_up(log.path.parent)
    log.commit(GROUP, [(E0, log.end(E0))])


def seal(log: Log, at: int = NOON + 10 * DAY, *others: EventConsumer) -> int:
    """All rounds there are at `at`: as many days of running time pass as are needed."""
    partition = load(LogAddress(log.path.parent), 0)
    try:
        return sum(iter(lambda: run(partition, log, at, *others), 0))
    finally:
        partition.index.close()


def run(partition: Partition, log: Log, at: int = NOON + 10 * DAY, *others: EventConsumer) -> int:
    """One round, a day of running time after the one before."""
    horizon = partition.tables.horizon
    horizon.retained, horizon.running = at, max(horizon.running, days_run[log.path]) + DAY
    days_run[log.path] = horizon.running
    sealer = Sealer(log.path.parent, {0: partition}, lambda: at, RETENTION, 60, (*EVENT_CONSUMERS, *others))
    return asyncio.run(sealer.round(partition))


days_run: Counter[Path] = Counter()


def differences(log: Log) -> list[Any]:
    scratch = log.path.parent / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    return list(Verification(log, 0, scratch, lambda *_: None).run())


def costs(rows: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {key: value for key, value in rows.items() if key.startswith((b'[0,"user"', b'[0,"hour"'))}


def offsets(log: Log) -> list[int]:
    return [record.offset for record in log.read(E0, 0)]


def test_old_events_go_and_nothing_else_changes(log: Log) -> None:
    rows = newest_rows(log)
    assert seal(log) == 8
    assert offsets(log) == [8, 9, 10]
    assert (log.first(E0), log.end(E0)) == (8, 11)
    assert newest_rows(log) == rows
    assert differences(log) == []
    assert seal(log) == 0, "nothing is past its time"

    # Copies of events that are gone are still copies, also when the ids are built again from their log.
    for day in range(4):
        put(log, batch(day), arrival=NOON + 10 * DAY)
        if day == 2:
            shutil.rmtree(log.path.parent / "index")
        work(log)
    again = newest_rows(log)
    assert costs(again) == costs(rows)
    assert differences(log) == []

    # And the next round goes on from there.
    assert seal(log, NOON + 20 * DAY) == len(range(8, 15))
    assert offsets(log) == []
    assert newest_rows(log) == again
    assert differences(log) == []
    put(log, batch(30), arrival=NOON + 20 * DAY)
    work(log)
    assert differences(log) == []


def test_what_is_not_committed_and_what_is_hardly_past_its_time_stays(log: Log) -> None:
    log.commit(GROUP, [(E0, 2)])
    assert seal(log) == 2
    assert offsets(log)[0] == 2
    assert differences(log) == []
    fresh = Log(log.path.parent / "fresh")
    put(fresh, batch(0), arrival=NOON)
    work(fresh)
    assert seal(fresh, NOON + RETENTION * DAY + HOUR) == 0
    assert seal(fresh, NOON + RETENTION * DAY + HOUR + 1) == 1


STORE = EventConsumer("spendstream.store", 2 * DAY)


def test_the_slowest_consumer_that_is_switched_on_holds_deletion_back(log: Log) -> None:
    slow, slower = EventConsumer("slow", None), EventConsumer("slower", None)
    log.commit(slow.group, [(E0, 5)])
    assert seal(log, NOON + 10 * DAY, slow, slower) == 0, "one has committed nothing yet"
    log.commit(slower.group, [(E0, 3)])
    assert seal(log, NOON + 10 * DAY, slow, slower) == 3
    assert seal(log, NOON + 10 * DAY, slow, slower) == 0
    assert differences(log) == []
    log.commit(slower.group, [(E0, 11)])
    assert seal(log, NOON + 10 * DAY, slow, slower) == 2
    assert offsets(log)[0] == 5
    assert differences(log) == []
    assert seal(log) == 3, "both are switched off"
    assert offsets(log) == [8, 9, 10]
    assert differences(log) == []


def test_a_consumer_is_waited_for_as_long_as_its_patience(log: Log) -> None:
    with capture_logs() as said:
        assert seal(log, NOON + 5 * DAY, STORE) == 0, "day 0 is past its time, and within the patience"
        assert seal(log, NOON + 10 * DAY, STORE) == 6
    assert offsets(log)[0] == 6, "of days 5 and 6 the store has not read anything"
    passed = [each for each in said if each["event"] == "retention.not_read"]
    assert {each["group"] for each in passed} == {STORE.group}
    assert sum(each["messages"] for each in passed) == 6
    assert differences(log) == []
    log.commit(STORE.group, [(E0, 7)])
    with capture_logs() as said:
        assert seal(log, NOON + 10 * DAY, STORE) == 1
    assert "retention.not_read" not in {each["event"] for each in said}


def test_the_patience_with_a_store_that_reads_nothing_ends(log: Log) -> None:
    """It was counted from how far a round goes, which is less than it is long: nothing was ever deleted."""
    store = EventConsumer(STORE_GROUP, STORE_PATIENCE)
    ends = (RETENTION + 7) * DAY
    assert seal(log, NOON + ends, store) == 0
    assert seal(log, NOON + ends + DAY, store) == 1
    assert seal(log, NOON + ends + 30 * DAY, store) == 10
    assert offsets(log) == []
    assert differences(log) == []


def test_a_consumer_that_is_switched_on_after_a_kill_finds_what_was_sealed(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Log, "trim", deadly)
        with pytest.raises(Killed):
            seal(log)
    first = log.first(E0)
    assert first == 0
    log.commit(STORE.group, [(E0, 1)])
    assert seal(log, NOON + 6 * DAY, STORE) == 1
    assert offsets(log)[0] == 1
    assert differences(log) == []
    assert seal(log) == 7
    assert differences(log) == []


def deadly(*arguments: Any) -> int:
    raise Killed


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> None:
    """End the round at the `number`-th thing it writes, before or after that."""
    left = number

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and not after:
                raise Killed
            done = real(*args, **kwargs)
            if left == 0:
                raise Killed
            return done

        return call

    for name in ("append", "compact", "trim"):
        monkeypatch.setattr(Log, name, deadly(getattr(Log, name)))


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_point_leaves_a_usable_state(log: Log, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    monkeypatch.setattr(module, "ROWS_STEP", 7)
    monkeypatch.setattr(module, "MESSAGES", 3)
    monkeypatch.setattr(module, "MAX_MESSAGES", 3)
    monkeypatch.setattr(module, "COMPACT_SLACK", -1000)
    monkeypatch.setattr(module, "COMPACT_STEP", 20)
    monkeypatch.setattr(module, "PAUSE", 0)
    rows = newest_rows(log)
    kills = 0
    for number in range(1, tries(100)):
        with monkeypatch.context() as patched:
            kill_at(patched, number % 9 + 1 if number > 30 else number, after=after)
            try:
                seal(log, NOON + 5 * DAY + number * HOUR)
            except Killed:
                kills += 1
        assert newest_rows(log) == rows
        assert differences(log) == []
    assert kills > 5
    seal(log, NOON + 20 * DAY)
    assert offsets(log) == []
    assert differences(log) == []
    put(log, batch(3), arrival=NOON + 20 * DAY)
    work(log)
    assert differences(log) == []


@pytest.mark.slow
def test_a_kill_between_every_two_writes_of_one_round(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_STEP", 7)
    monkeypatch.setattr(module, "MESSAGES", 3)
    monkeypatch.setattr(module, "COMPACT_SLACK", -1000)
    monkeypatch.setattr(module, "PAUSE", 0)
    original = log.path.parent
    log.checkpoint(reset=True)
    for number in range(1, 200):
        copy = original.with_name(f"copy-{number}")
        shutil.copytree(original, copy)
        torn = Log(copy, create=False)
        with monkeypatch.context() as patched:
            kill_at(patched, number, after=True)
            try:
                seal(torn)
            except Killed:
                killed = True
            else:
                killed = False
        assert differences(torn) == []
        seal(torn)
        assert offsets(torn) == [8, 9, 10]
        assert differences(torn) == []
        if not killed:
            assert number > 5
            return
    pytest.fail("a round never ended")


def test_what_no_longer_fits_together_is_not_deleted(log: Log) -> None:
    log.trim(E0, 1)
    with pytest.raises(SealError, match="are gone"):
        seal(log)
    assert log.first(E0) == 1


def test_ids_that_are_missing_stop_a_round(log: Log) -> None:
    partition = load(LogAddress(log.path.parent), 0)
    partition.index.close()  # as good as empty
    with pytest.raises(SealError, match="not in the index"):
        run(partition, log)
    assert log.first(E0) == 0


def test_the_checkpoint_is_compacted(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_SLACK", 0)
    for day in range(4, 14):
        seal(log, NOON + day * DAY)
    assert offsets(log) == []
    assert log.count(C0) < 3 * len(newest_rows(log))
    assert log.count(TopicPartition(CLAIMS, 0)) > 0
    assert differences(log) == []


def test_a_wrong_row_is_not_sealed_as_the_truth(log: Log) -> None:
    key, value = next((key, value) for key, value in sorted(newest_rows(log).items()) if b'"user"' in key)
    rows = TopicPartition("spendstream.rows", 0)
    progress = next((key, value) for key, value in newest_rows(log).items() if b'"progress"' in key)
    numbers = decode_value(value)
    numbers[3] += 1
    log.append([Append(rows, [(key, json.dumps(numbers).encode()), progress])], NOON)
    assert len(differences(log)) == 1
    seal(log, NOON + 20 * DAY)
    assert offsets(log) == []
    assert len(differences(log)) == 1


def test_a_damaged_message_stops_a_round_by_name(log: Log) -> None:
    """The tables contain it, and no checkpoint can be made of it."""
    flip(log, E0, 1)
    with pytest.raises(SealError, match=r"message 1 of partition 0 is damaged, .* `spendstream rebuild --allow-loss`"):
        seal(log)
    assert log.first(E0) == 0, "nothing was deleted"


def test_a_damaged_dead_letter_stops_no_round(log: Log) -> None:
    dead = min(dead_offsets(log, 0))
    flip(log, E0, dead)
    assert seal(log) > dead
    assert differences(log) == []
