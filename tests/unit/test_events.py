"""Lists of events and single ones, against an oracle in plain Python."""

import itertools
import json
import random
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.core.clock import LAST, format_timestamp
from processor.core.kernel.loaded import RUNNING
from server.errors import Refused
from server.explore import chosen_rows, row_scan
from server.explore.engine import Engine
from server.explore.event_json import MEMBERS
from server.explore.events import answer_event, answer_events
from server.explore.questions import EventQuestion, EventsQuestion, Filters, Kinds, Order, Times
from server.explore.row_scan import RowScan
from server.explore.segment_files import OpenFile
from tests.support.event_store import NOON, UNCOUNTED, Row, StoreDirectory, make_row, random_row
from tests.unit.test_snapshot import all_filters, matches, one_filter, times

ALL = Filters(kinds="all")
ALWAYS = Times()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreDirectory:
    rng = random.Random(3)
    made = StoreDirectory(tmp_path_factory.mktemp("store") / "events")
    for number in range(15):
        made.append([random_row(rng) for _ in range(rng.randrange(30))], partition=number % 3)
    made.merge(0, 0, 3)
    made.merge(2, 1, 4)
    return made


@pytest.fixture(scope="module")
def engine(store: StoreDirectory) -> Iterator[Engine]:
    made = store.engine()
    yield made
    made.close()


def decode(answer: bytes) -> Any:
    return json.loads(answer)


def key(row: Row) -> tuple[int, int, int, int]:
    return row["timestamp"], row["log_partition"], row["log_offset"], row["log_index"]


def expected(rows: list[Row], project: str, filters: Filters, when: Times, order: Order) -> list[str]:
    found = sorted((row for row in rows if matches(row, project, filters, when)), key=key, reverse=order == "desc")
    return [row["event_id"] for row in found]


def pages(store: StoreDirectory, engine: Engine, question: EventsQuestion) -> Iterator[Any]:
    cursor: str | None = None
    while True:
        page = decode(answer_events(store.snapshot(engine), msgspec.structs.replace(question, cursor=cursor)))
        yield page
        cursor = page["nextCursor"]
        if cursor is None:
            return
        assert len(cursor) <= 2048


def walked(store: StoreDirectory, engine: Engine, question: EventsQuestion) -> list[str]:
    return [event["event_id"] for page in pages(store, engine, question) for event in page["events"]]


@pytest.mark.slow
@settings(deadline=None)
@given(
    filters=st.just(ALL) | one_filter | all_filters,
    when=times,
    project=st.sampled_from(["default", "other", "nobody"]),
    order=st.sampled_from(["asc", "desc"]),
    limit=st.sampled_from([20, 50, 200]),
)
def test_walk_is_what_the_filters_say_in_order(
    store: StoreDirectory, engine: Engine, filters: Filters, when: Times, project: str, order: Order, limit: int
) -> None:
    question = EventsQuestion(project=project, filters=filters, times=when, order=order, limit=limit)
    wanted = expected(store.rows, project, filters, when, order)
    found = list(pages(store, engine, question))
    assert [event["event_id"] for page in found for event in page["events"]] == wanted
    assert {page["total"] for page in found} == {len(wanted)}


@pytest.fixture(scope="module", params=[1, 8, 50])
def grouped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StoreDirectory:
    """Events of three users, in groups of so many rows."""
    rng = random.Random(request.param)
    made = StoreDirectory(tmp_path_factory.mktemp("grouped") / "events", group_rows=request.param)
    users = ["rare", *["u1"] * 4, *["u2"] * 15]
    for number in range(8):
        rows = [random_row(rng, user_id=rng.choice(users), model=rng.choice(["a", "b"])) for _ in range(16)]
        made.append(rows, partition=number % 2)
    made.merge(0, 0, 3)
    made.expire(1)
    return made


WITHOUT: Final = pytest.mark.skipif(RUNNING == "pure", reason="the compiled kernel does not run")


@pytest.mark.slow
@pytest.mark.parametrize("is_compiled", [pytest.param(True, marks=WITHOUT), False])
@pytest.mark.parametrize(("few", "gathered"), [(512, 65_536), (1, 3), (512, 10)])
def test_pages_of_one_user_are_the_same_however_their_rows_are_read(
    grouped: StoreDirectory, few: int, gathered: int, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_compiled:
        for module in (chosen_rows, row_scan):
            monkeypatch.setattr(module, "kernel", None)
    monkeypatch.setattr(chosen_rows, "FEW", few)
    monkeypatch.setattr(row_scan, "GATHERED", gathered)
    rng, store = random.Random(few + gathered), grouped
    engine = store.engine()
    others: list[dict[str, tuple[str, ...]]] = [{}, {"model": ("a",)}, {"session_id": ("s1", "s2")}]
    for user, more in itertools.product(("rare", "u1", "u2"), others):
        some = Times(NOON - 10**6, NOON + 10**9)
        for tags, when in (((), ALWAYS), ((), some), ((("team", "search"),), some)):
            filters = Filters(equal={"user_id": (user,), **more}, tags=tags, kinds=rng.choice(["all", "call", "span"]))
            order: Order = rng.choice(["asc", "desc"])
            question = EventsQuestion(project="default", filters=filters, times=when, order=order, limit=7)
            found, wanted = [*pages(store, engine, question)], expected(store.rows, "default", filters, when, order)
            assert [event["event_id"] for page in found for event in page["events"]] == wanted
            assert {page["total"] for page in found} == {len(wanted)}
            rows_by_id = {row["event_id"]: row for row in store.rows}
            for event in (event for page in found for event in page["events"]):
                assert event == json.loads(json.dumps(as_event(rows_by_id[event["event_id"]]), default=float))
    engine.close()


@pytest.mark.parametrize("users", [("u1",), ("u2", "u1", "u1"), ("u1", UNCOUNTED), ("u1", None)])
@pytest.mark.parametrize("kinds", ["all", "call", "span"])
@pytest.mark.parametrize("when", [ALWAYS, Times(NOON, None)])
def test_events_of_users_are_counted_by_the_index_as_far_as_it_knows_them(
    store: StoreDirectory,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    users: tuple[str | None, ...],
    kinds: Kinds,
    when: Times,
) -> None:
    filters = Filters(equal={"user_id": users}, kinds=kinds)
    is_known = when == ALWAYS and not {UNCOUNTED, None} & {*users}
    with RowScan(store.snapshot(engine), "default", filters, when) as scan, monkeypatch.context() as reading:
        if is_known:
            reading.setattr(RowScan, "_counted", None)
            reading.setattr(RowScan, "_counted_in_files", None)
        assert scan.count() == len(expected(store.rows, "default", filters, when, "asc"))


def test_other_filters_are_not_counted_by_the_index(store: StoreDirectory, engine: Engine) -> None:
    user = {"user_id": ("u1",)}
    for filters in (
        Filters(equal={**user, "model": ("gpt-4o",)}),
        Filters(equal=user, unequal={"status": ("success",)}),
        Filters(unequal=user),
        Filters(equal=user, min_latency=1.0),
    ):
        with RowScan(store.snapshot(engine), "default", filters, ALWAYS) as scan:
            assert scan.count() == len(expected(store.rows, "default", filters, ALWAYS, "asc"))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_walk_sees_a_frozen_set_while_others_arrive_and_segments_are_merged(tmp_path: Path, order: Order) -> None:
    rng = random.Random(5)
    store = StoreDirectory(tmp_path / "events")
    for number in range(8):
        rows = [random_row(rng, timestamp=NOON + rng.choice([0, 0, 0, 5])) for _ in range(25)]
        store.append(rows, partition=number % 2)
    question = EventsQuestion(project="default", filters=ALL, times=ALWAYS, order=order, limit=9)
    wanted = expected(store.rows, "default", ALL, ALWAYS, order)
    found: list[str] = []
    for turn, page in enumerate(pages(store, store.engine(), question)):  # each page as of a process started anew
        found += [event["event_id"] for event in page["events"]]
        assert page["total"] == len(wanted)
        assert "expired" not in page
        store.append([random_row(rng, timestamp=NOON + rng.choice([-5, 0, 5])) for _ in range(6)], partition=turn % 3)
        if turn % 3 == 2:
            store.merge(turn % 2)
    assert found == wanted


def test_page_after_retention_says_so_and_misses_only_what_it_deleted(tmp_path: Path) -> None:
    store = StoreDirectory(tmp_path / "events")
    for minute in range(4):
        store.append([make_row(timestamp=NOON + minute * 60_000_000 + each) for each in range(10)])
    engine = store.engine()
    question = EventsQuestion(project="default", filters=ALL, times=ALWAYS, limit=15)
    wanted = expected(store.rows, "default", ALL, ALWAYS, "desc")
    steps = pages(store, engine, question)
    first = next(steps)
    store.expire(0)
    second = next(steps)
    assert second["expired"] is True
    assert list(steps) == []
    ids = [event["event_id"] for page in (first, second) for event in page["events"]]
    assert ids == wanted[:30]


def test_cursor_is_bound_to_its_question(store: StoreDirectory, engine: Engine) -> None:
    question = EventsQuestion(project="default", filters=ALL, times=ALWAYS, limit=2)
    cursor = next(pages(store, engine, question))["nextCursor"]
    others: list[dict[str, Any]] = [
        {"project": "other"},
        {"filters": Filters()},
        {"filters": Filters(kinds="all", equal={"model": ("gpt-4o",)})},
        {"order": "asc"},
        {"times": Times(start=NOON)},
        {"given": Times(end=NOON)},
        {"cursor": cursor[:-3]},
        {"cursor": "A" + cursor},
        {"cursor": "x" * 3000},
        {"cursor": "ü"},
        {"cursor": ""},
    ]
    for changed in others:
        asked = msgspec.structs.replace(question, **{"cursor": cursor, **changed})
        with pytest.raises(Refused, match="cursor") as refused:
            answer_events(store.snapshot(engine), asked)
        assert refused.value.reason == "bad_request"
    later = msgspec.structs.replace(question, cursor=cursor, limit=5, extra=False)
    assert len(decode(answer_events(store.snapshot(engine), later))["events"]) == 5


@pytest.mark.slow
def test_a_default_range_is_that_of_the_first_page(store: StoreDirectory, engine: Engine) -> None:
    first, later = Times(NOON - 10**6, NOON + 10**6), Times(NOON, NOON + 2 * 10**6)
    asked = EventsQuestion(project="default", filters=ALL, times=first, given=Times(), limit=2)
    cursor = next(pages(store, engine, asked))["nextCursor"]
    found = [event["event_id"] for page in pages(store, engine, asked) for event in page["events"]]
    second = msgspec.structs.replace(asked, times=later, cursor=cursor, limit=200)
    page = decode(answer_events(store.snapshot(engine), second))
    assert [event["event_id"] for event in page["events"]] == found[2:]


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode()))
@settings(deadline=None)
def test_no_cursor_is_a_fault_of_ours(store: StoreDirectory, engine: Engine, raw: bytes) -> None:
    question = EventsQuestion(project="default", filters=ALL, times=ALWAYS, cursor=raw.decode("latin1"), limit=2)
    with pytest.raises(Refused):
        answer_events(store.snapshot(engine), question)


def as_event(row: Row) -> dict[str, Any]:
    """The oracle of the answer's form."""
    found: dict[str, Any] = {}
    for name in MEMBERS:
        value = row[name]
        if name in {"timestamp", "received_at"}:
            value = format_timestamp(value)
        elif name == "cost_usd":
            found[name] = None if value is None else Decimal(value).scaleb(-12)
            continue
        elif name == "extra" and value is not None:
            value = json.loads(value, parse_float=Decimal)
        if value is not None:
            found[name] = value
    return found


def test_event_has_its_fields_in_order_with_all_digits(store: StoreDirectory, engine: Engine) -> None:
    for row in store.rows[:60]:
        question = EventQuestion(project=row["project"], event_id=row["event_id"])
        answer = answer_event(store.snapshot(engine), question)
        found = json.loads(answer, parse_float=Decimal)
        assert (found.pop("asOf"), found.pop("lagSeconds")) == ("2026-04-20T16:16:40.000Z", 1)
        wanted = as_event(row)
        assert list(found) == list(wanted)
        assert found == json.loads(_number(wanted), parse_float=Decimal)


def _number(value: Any) -> bytes:
    return msgspec.json.Encoder(decimal_format="number").encode(value)


@pytest.mark.parametrize(
    ("pico", "text"),
    [(1, b"0.000000000001"), (10**18, b"1000000"), (0, b"0"), (3_400_000_000, b"0.0034"), (None, b"null")],
)
def test_cost_is_a_plain_number(tmp_path: Path, pico: int | None, text: bytes) -> None:
    store = StoreDirectory(tmp_path / "events")
    row = make_row(cost_usd=pico, extra='{"a":1.0e2,"b":"\\u00e9"}')
    store.append([row])
    answer = answer_event(store.snapshot(store.engine()), EventQuestion(project="default", event_id=row["event_id"]))
    assert b'"cost_usd":' + text + b"," in answer
    assert b'"extra":{"a":1.0e2,"b":"\\u00e9"}' in answer


def test_another_projects_event_is_not_found(store: StoreDirectory, engine: Engine) -> None:
    row = next(row for row in store.rows if row["project"] == "other")
    with pytest.raises(Refused) as refused:
        answer_event(store.snapshot(engine), EventQuestion(project="default", event_id=row["event_id"]))
    assert refused.value.reason == "not_found"


def test_extra_is_left_out_where_it_is_not_asked_for(store: StoreDirectory, engine: Engine) -> None:
    question = EventsQuestion(project="default", filters=ALL, times=ALWAYS, limit=200, extra=False)
    assert all("extra" not in event for page in pages(store, engine, question) for event in page["events"])


@pytest.mark.parametrize("as_of", [-1, LAST + 1, 2**64 - 1])
def test_a_cursor_that_says_an_impossible_time_is_no_fault_of_ours(
    store: StoreDirectory, engine: Engine, as_of: int
) -> None:
    question = EventsQuestion(project="default", filters=ALL, times=ALWAYS, limit=2)
    cursor = next(pages(store, engine, question))["nextCursor"]
    members = msgspec.msgpack.decode(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    members[2] = as_of
    made_up = urlsafe_b64encode(msgspec.msgpack.encode(members)).decode().rstrip("=")
    with pytest.raises(Refused, match="cursor") as refused:
        answer_events(store.snapshot(engine), msgspec.structs.replace(question, cursor=made_up))
    assert refused.value.reason == "bad_request"


def test_a_store_that_is_built_anew_refuses_older_cursors(tmp_path: Path) -> None:
    store = StoreDirectory(tmp_path / "events")
    store.append([make_row() for _ in range(10)])
    engine = store.engine()
    question = EventsQuestion(project="default", filters=ALL, times=ALWAYS, limit=3)
    cursor = next(pages(store, engine, question))["nextCursor"]
    empty = StoreDirectory(tmp_path / "anew")
    with pytest.raises(Refused, match="built anew") as refused:
        answer_events(empty.snapshot(engine), msgspec.structs.replace(question, cursor=cursor))
    assert refused.value.retry_after == 5


def test_a_cursor_that_was_made_up_shows_nothing_of_others(store: StoreDirectory, engine: Engine) -> None:
    question = EventsQuestion(project="default", filters=ALL, times=ALWAYS, limit=200)
    mine = {row["event_id"] for row in store.rows if row["project"] == "default"}
    cursor = next(pages(store, engine, msgspec.structs.replace(question, limit=2)))["nextCursor"]
    members = msgspec.msgpack.decode(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    for place in ([2**60, 2**60, 2**60, 2**60, None], [NOON, -1, -1, -1, 5], [-(2**60), 0, 0, 0, 0]):
        members[-1] = place
        forged = urlsafe_b64encode(msgspec.msgpack.encode(members)).decode()
        page = decode(answer_events(store.snapshot(engine), msgspec.structs.replace(question, cursor=forged)))
        assert {event["event_id"] for event in page["events"]} <= mine
    for wrong in ([2**63, 0, 0, 0, None], [0, 0, 0], ["x", 0, 0, 0, 1], [0, 0, 0, 0, -1]):
        members[-1] = wrong
        forged = urlsafe_b64encode(msgspec.msgpack.encode(members)).decode()
        with pytest.raises(Refused):
            answer_events(store.snapshot(engine), msgspec.structs.replace(question, cursor=forged))


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_page_among_many_of_one_time_reads_few_row_groups(
    tmp_path: Path, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreDirectory(tmp_path / "events", group_rows=50)
    for number in range(4):
        store.append([make_row() for _ in range(500)], partition=number % 2, messages=50)
    engine = store.engine()
    question = EventsQuestion(project="default", filters=ALL, times=ALWAYS, order=order, limit=40)
    steps = pages(store, engine, question)
    seen = [event["event_id"] for _ in range(20) for event in next(steps)["events"]]
    reads: list[int] = []
    real = OpenFile.read

    def read(file: OpenFile, group: int, columns: Any = None) -> Any:
        reads.append(group)
        return real(file, group, columns)

    monkeypatch.setattr(OpenFile, "read", read)
    for _ in range(10):
        reads.clear()
        seen += [event["event_id"] for event in next(steps)["events"]]
        assert len(reads) <= 6
    assert seen == expected(store.rows, "default", ALL, ALWAYS, order)[: len(seen)]


@WITHOUT
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("kinds", ["all", "call", "span"])
def test_rows_of_users_need_no_statement(
    grouped: StoreDirectory, kinds: Kinds, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing but ids, a kind and times are asked for, whatever the bounds of the snapshot are."""
    engine = grouped.engine()

    def refuse(*_: object) -> None:
        raise AssertionError("DuckDB is asked")

    monkeypatch.setattr(Engine, "rows", refuse)
    counts = set()
    whole = grouped.snapshot(engine)
    parts = [whole, whole.frozen({0: 3, 1: 2}, NOON), whole.behind({0: 3, 1: 2})]
    for snapshot, users in itertools.product(parts, [("rare",), ("u1",), ("u2", "rare"), ("nobody",)]):
        for when in (ALWAYS, Times(NOON, NOON + 60_000_000), Times(NOON + 1), Times(None, NOON)):
            filters = Filters(equal={"user_id": users}, kinds=kinds)
            with RowScan(snapshot, "default", filters, when) as scan:
                found = [tuple(each.key) for each in scan.first(order, 1000)]
            rows = [row for row in grouped.rows if matches(row, "default", filters, when)]
            keys = [key(row) for row in rows if is_between(row, snapshot.since, snapshot.bounds)]
            assert found == sorted(keys, reverse=order == "desc")
            counts.add(len(found))
    assert len(counts) > 4
    engine.close()


def is_between(row: Row, since: Mapping[int, int], before: Mapping[int, int]) -> bool:
    partition, offset = int(row["log_partition"]), int(row["log_offset"])
    return since.get(partition, 0) <= offset < before.get(partition, 0)
