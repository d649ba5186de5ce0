"""Upper offsets in a cursor: exact in whatever room there is, or refused."""

import random
from itertools import count
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import Refused
from server.explore.events import answer_events
from server.explore.question_params import MAX_CURSOR
from server.explore.questions import EventsQuestion, Filters, Times, TracesQuestion
from server.explore.traces import answer_traces
from server.explore.upper_offsets import pack, unpack
from tests.support.event_store import NOON, StoreDirectory, make_row

ALL = Filters(kinds="all")


def spread(chance: random.Random, partitions: int, most: int = 2**48) -> dict[int, int]:
    return {each: chance.randrange(1, most) for each in chance.sample(range(1024), partitions)}


@given(seed=st.integers(), partitions=st.integers(0, 1024), bits=st.integers(1, 48), room=st.integers(200, 1500))
def test_what_is_packed_comes_back_or_is_refused(seed: int, partitions: int, bits: int, room: int) -> None:
    chance = random.Random(seed)
    bounds = spread(chance, partitions, 2**bits)
    if room < 850:  # 6 bits of 1,024 offsets, and the rest
        room += 650
    packed = pack(bounds, room)
    assert len(packed) <= room
    later = {each: bounds.get(each, 0) + chance.randrange(60) for each in range(1024)}
    assert unpack(packed, later) == bounds


def test_too_little_room_is_said() -> None:
    with pytest.raises(Refused, match="no room") as refused:
        pack(spread(random.Random(1), 1000), 700)
    assert refused.value.reason == "query_too_heavy"


@pytest.mark.parametrize("seed", range(5))
def test_too_much_since_is_noticed(seed: int) -> None:
    bounds = spread(random.Random(seed), 800)
    packed = pack(bounds, 1300)
    some = min(bounds)
    for later in ({**bounds, some: bounds[some] + 2**20}, {}, {**bounds, some: bounds[some] - 1}):
        with pytest.raises(Refused, match="too old") as refused:
            unpack(packed, later)
        assert refused.value.reason == "bad_request"


def test_few_partitions_need_nothing_of_the_present() -> None:
    bounds = {each: 2**40 + each * 10**6 for each in range(256)}
    assert unpack(pack(bounds, 1300), {}) == bounds


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> StoreDirectory:
    """A thousand partitions at very different offsets; each twentieth has rows."""
    chance = random.Random(1)
    made = StoreDirectory(tmp_path_factory.mktemp("wide") / "events")
    numbers = count()
    for partition in range(1000):
        made.append([], partition=partition, messages=chance.randrange(1, 2**40))
        if partition % 20 == 0:
            names = [f"{'😀' * 250}{next(numbers):06d}" for _ in range(4)]
            made.append([make_row(trace_id=name, timestamp=NOON - 10**6) for name in names], partition=partition)
    return made


@pytest.mark.slow
def test_a_list_of_a_thousand_partitions_is_walked_whole(wide: StoreDirectory) -> None:
    engine, chance = wide.engine(), random.Random(2)
    wanted = [row["event_id"] for row in wide.rows]
    found: list[str] = []
    question = EventsQuestion(project="default", filters=ALL, times=Times(), limit=50)
    while True:
        page = msgspec.json.decode(answer_events(wide.snapshot(engine), question))
        found += [event["event_id"] for event in page["events"]]
        if page["nextCursor"] is None:
            break
        assert len(page["nextCursor"]) <= MAX_CURSOR
        question = msgspec.structs.replace(question, cursor=page["nextCursor"])
        for partition in chance.sample(range(0, 1000, 20), 3):  # they arrive meanwhile, and are not of the walk
            wide.append([make_row(timestamp=NOON + 1)], partition=partition)
    assert sorted(found) == sorted(wanted)
    assert len(set(found)) == len(found)
    engine.close()


@pytest.mark.slow
def test_ids_of_four_byte_characters_leave_room_in_a_cursor(wide: StoreDirectory) -> None:
    engine = wide.engine()
    question = TracesQuestion(project="default", filters=ALL, times=Times(end=NOON), sort="errors", limit=30)
    found: list[str] = []
    while True:
        page = msgspec.json.decode(answer_traces(wide.snapshot(engine), question))
        found += [trace["trace_id"] for trace in page["traces"]]
        if page["nextCursor"] is None:
            break
        assert len(page["nextCursor"]) <= MAX_CURSOR
        question = msgspec.structs.replace(question, cursor=page["nextCursor"])
    assert found == sorted(row["trace_id"] for row in wide.rows if row["timestamp"] < NOON)
    engine.close()


def test_a_cursor_that_cannot_be_completed_is_refused(tmp_path: Path, wide: StoreDirectory) -> None:
    engine = wide.engine()
    question = EventsQuestion(project="default", filters=ALL, times=Times(), limit=5)
    cursor = msgspec.json.decode(answer_events(wide.snapshot(engine), question))["nextCursor"]
    wide.append([], partition=7, messages=2**20)
    with pytest.raises(Refused, match="begin the list again") as refused:
        answer_events(wide.snapshot(engine), msgspec.structs.replace(question, cursor=cursor))
    assert refused.value.reason == "bad_request"
    engine.close()
