"""The rows that a question may see, against a filter in plain Python."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.core.clock import SECOND
from server.explore import snapshot
from server.explore.engine import Engine
from server.explore.questions import TEXT_FILTERS, Filters, Times
from tests.support.event_store import NOON, Row, StoreDirectory, make_row, random_row


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreDirectory:
    """A store of two partitions and two projects, merged in part."""
    rng = random.Random(7)
    made = StoreDirectory(tmp_path_factory.mktemp("store") / "events")
    for number in range(12):
        made.append([random_row(rng) for _ in range(rng.randrange(40))], partition=number % 2)
    made.merge(0, 0, 3)
    made.merge(1, 2, 5)
    return made


@pytest.fixture(scope="module")
def engine(store: StoreDirectory) -> Iterator[Engine]:
    """An engine over it."""
    made = store.engine()
    yield made
    made.close()


def matches(row: Row, project: str, filters: Filters, times: Times) -> bool:
    """The oracle: whether a row agrees to all of the filters. An empty text is as good as none."""
    tools, tags = row["tools_used"] or [], row["tags"] or {}
    cost = row["cost_usd"]

    def uses(tool: str | None) -> bool:
        return not tools or "" in tools if tool is None else tool in tools

    return (
        row["project"] == project
        and filters.kinds in {"all", row["kind"]}
        and all((row[name] or None) in values for name, values in filters.equal.items())
        and all((row[name] or None) not in values for name, values in filters.unequal.items())
        and (not filters.tools or any(map(uses, filters.tools)))
        and not any(map(uses, filters.no_tools))
        and all((tags.get(key) or None) == value for key, value in filters.tags)
        and not any((tags.get(key) or None) == value for key, value in filters.no_tags)
        and (filters.min_cost is None or (cost is not None and cost >= filters.min_cost))
        and (filters.max_cost is None or (cost is not None and cost <= filters.max_cost))
        and (filters.min_latency is None or row["latency_ms"] >= filters.min_latency)
        and (filters.max_latency is None or row["latency_ms"] <= filters.max_latency)
        and (times.start is None or row["timestamp"] >= times.start)
        and (times.end is None or row["timestamp"] < times.end)
    )


HOSTILE = ["' OR 1=1 --", "'; DROP TABLE events; --", "\\", "%", "a\0b", "other", "?", "$1", '"project"', "ünï"]
TEXTS: dict[str, list[str]] = {
    "model": ["gpt-4o", "claude"],
    "trace_id": ["trace-1", "trace-2"],
    "user_id": ["u1", "u2"],
    "session_id": ["s1", "s2"],
    "error_code": ["E1", "e;DROP TABLE x"],
    "name": ["step"],
    "status": ["error", "success"],
}

columns = st.sampled_from(TEXT_FILTERS)


@st.composite
def text_filters(draw: st.DrawFn) -> dict[str, tuple[str | None, ...]]:
    found = {}
    for name in draw(st.lists(columns, max_size=2, unique=True)):
        value = st.none() | st.sampled_from([*TEXTS.get(name, []), *HOSTILE])
        found[name] = tuple(draw(st.lists(value, min_size=1, max_size=3)))
    return found


tools = st.lists(st.none() | st.sampled_from(["grep", "ls", *HOSTILE]), max_size=2).map(tuple)
tag = st.tuples(
    st.sampled_from(["team", "a:b", "x", *HOSTILE]), st.none() | st.sampled_from(["search", "c\\d", *HOSTILE])
)
tags = st.lists(tag, max_size=2).map(tuple)
costs = st.none() | st.sampled_from([-1, 0, 1, 2, 3_400_000_000, 10**18, 10**30])
latencies = st.none() | st.sampled_from([0.0, 1.5, 2.0, 1e300])

all_filters = st.builds(
    Filters,
    equal=text_filters(),
    unequal=text_filters(),
    tools=tools,
    no_tools=tools,
    tags=tags,
    no_tags=tags,
    kinds=st.sampled_from(["call", "span", "all"]),
    min_cost=costs,
    max_cost=costs,
    min_latency=latencies,
    max_latency=latencies,
)
one_filter = st.one_of(
    st.builds(Filters, equal=text_filters(), kinds=st.just("all")),
    st.builds(Filters, unequal=text_filters(), kinds=st.just("all")),
    st.builds(Filters, tools=tools, no_tools=tools),
    st.builds(Filters, tags=tags, no_tags=tags),
    st.builds(Filters, min_cost=costs, max_cost=costs, min_latency=latencies, max_latency=latencies),
)
instants = st.none() | st.sampled_from([NOON - 1000, NOON, NOON + 1, NOON + 10**12, -(10**18), 10**18])
times = st.builds(Times, start=instants, end=instants)


@settings(deadline=None)
@given(filters=one_filter | all_filters, times=times, project=st.sampled_from(["default", "other", "nobody", *HOSTILE]))
def test_relation_is_what_the_filters_say(
    store: StoreDirectory, engine: Engine, filters: Filters, times: Times, project: str
) -> None:
    relation = store.snapshot(engine).relation(project, filters, times)
    found = engine.rows(f"SELECT event_id FROM ({relation.sql})", relation.params)
    engine.release()
    expected = [row["event_id"] for row in store.rows if matches(row, project, filters, times)]
    assert sorted(text for (text,) in found) == sorted(expected)


def test_relation_of_ids_is_read_row_group_by_row_group(store: StoreDirectory, engine: Engine) -> None:
    filters = Filters(equal={"trace_id": ("trace-1",)}, kinds="all")
    relation = store.snapshot(engine).relation("default", filters, Times())
    assert "read_parquet" not in relation.sql
    engine.release()


def test_everything_has_both_kinds(store: StoreDirectory, engine: Engine) -> None:
    filters = Filters(equal={"user_id": ("u1",)}, kinds="call")
    relation = store.snapshot(engine).relation("default", filters, Times(), everything=True, columns=["kind"])
    found = {kind for (kind,) in engine.rows(f"SELECT kind FROM ({relation.sql})", relation.params)}
    engine.release()
    assert found == {"call", "span"}


def test_rows_behind_the_bounds_are_left_out_wherever_they_lie(tmp_path: Path) -> None:
    store = StoreDirectory(tmp_path / "events")
    old = [make_row(model="old") for _ in range(10)]
    store.append(old, partition=3)
    engine = store.engine()
    before = store.snapshot(engine)
    store.append([make_row(model="new") for _ in range(10)], partition=3)
    store.append([make_row(model="new") for _ in range(10)], partition=4)
    store.merge(3)
    after = store.snapshot(engine).frozen(before.bounds, before.as_of)
    relation = after.relation("default", Filters(), Times())
    found = engine.rows(f"SELECT event_id FROM ({relation.sql})", relation.params)
    assert sorted(text for (text,) in found) == sorted(row["event_id"] for row in old)
    assert after.floor == before.floor
    store.expire(3)
    assert store.snapshot(engine).frozen(before.bounds, before.as_of).floor > before.floor


def test_rows_that_retention_has_deleted_are_noticed_whatever_is_merged(tmp_path: Path) -> None:
    """A partition begins with messages that were not counted, and is merged; of another the oldest events go."""
    store = StoreDirectory(tmp_path / "events")
    store.append([], partition=3, messages=9)
    for partition in (3, 4, 4):
        store.append([make_row() for _ in range(3)], partition=partition, messages=2)
    engine = store.engine()
    before = store.snapshot(engine)
    store.merge(3)
    assert store.snapshot(engine).frozen(before.bounds, before.as_of).floor == before.floor
    store.append([make_row()], partition=4)
    store.expire(4)
    after = store.snapshot(engine).frozen(before.bounds, before.as_of)
    assert after.floor > before.floor
    store.expire(4, 2)
    assert store.snapshot(engine).frozen(before.bounds, before.as_of).floor > after.floor
    engine.close()


def test_a_column_that_is_no_filter_is_refused(store: StoreDirectory, engine: Engine) -> None:
    hostile: dict[str, Any] = {"project = project OR model": ("x",)}
    with pytest.raises(ValueError, match="not a field"):
        store.snapshot(engine).relation("default", Filters(equal=hostile), Times())


@pytest.mark.parametrize("end", [None, NOON + 150 * SECOND])
@pytest.mark.parametrize("rows", [1, 25, 80, 149])
def test_when_the_latest_rows_begin(tmp_path: Path, engine: Engine, rows: int, end: int | None) -> None:
    """A row group of each partition more or less than wanted; what lies behind the range does not count."""
    store = StoreDirectory(tmp_path / "events")
    for number in range(2):  # two partitions of the same time, a row a second
        made = [make_row(timestamp=NOON + at * SECOND) for at in range(number, 200, 2)]
        for first in range(0, 100, 20):
            store.append(made[first : first + 20], partition=number)
    times = Times(None, end)
    start = store.snapshot(engine).latest("default", Filters(kinds="all"), times, rows)
    assert start is not None
    found = [row for row in store.rows if matches(row, "default", Filters(kinds="all"), Times(start, end))]
    assert abs(len(found) - rows) <= 2 * 8


def test_all_rows_are_the_latest_where_there_are_no_more(store: StoreDirectory, engine: Engine) -> None:
    snapshot, every = store.snapshot(engine), Filters(kinds="all")
    assert snapshot.latest("default", every, Times(), len(store.rows)) is None
    assert snapshot.latest("default", every, Times(NOON + 10**15, None), 1) is None
    assert snapshot.latest("default", every, Times(), None) is None


def test_rows_that_name_a_session_are_counted_apart(tmp_path: Path, engine: Engine) -> None:
    store = StoreDirectory(tmp_path / "events")
    store.append([make_row(timestamp=NOON + at * SECOND, session_id="s") for at in range(40)])
    store.append([make_row(timestamp=NOON + at * SECOND) for at in range(40, 80)])
    start = store.snapshot(engine).latest("default", Filters(kinds="all"), Times(), 8, in_session=True)
    assert start is not None
    assert NOON + 24 * SECOND <= start <= NOON + 32 * SECOND


@pytest.mark.parametrize("has_statistics", [True, False])
def test_rows_without_a_session_are_looked_for_where_there_may_be_some(tmp_path: Path, has_statistics: bool) -> None:
    """Files of older releases do not say how many rows of a row group name a session."""
    store = StoreDirectory(tmp_path / "events")
    store.append([make_row(timestamp=NOON + at, trace_id=f"t{at % 4}", session_id="s") for at in range(16)])
    store.append(
        [make_row(timestamp=NOON + 20 + at, trace_id="t2", session_id="s" if at else None) for at in range(16)]
    )
    store.append([make_row(timestamp=NOON + 40, trace_id="other")])
    engine = store.engine()
    snapshot = store.snapshot(engine)
    if not has_statistics:
        for segment in store.catalog.live():
            snapshot.files.get(segment).groups.in_session.fill(-1)
    found = snapshot.without_session("default", pa.array(["t1", "t2"]))
    assert found is not None
    assert len(found.segments) == (1 if has_statistics else 2)
    assert engine.rows(f"SELECT trace_id FROM ({found.sql})", found.params) == [("t2",)]
    assert (snapshot.without_session("default", pa.array(["t1"])) is None) == has_statistics
    engine.close()


def test_the_rows_of_many_traces_are_gathered_where_most_row_groups_have_none(tmp_path: Path) -> None:
    """Else DuckDB reads the column of the whole store, with each statement anew."""
    few, store = snapshot.FEW, StoreDirectory(tmp_path / "events", group_rows=2)
    rows = [make_row(trace_id=f"t{at // 2}", user_id=f"u{at // 2}", timestamp=NOON + at) for at in range(12 * few)]
    store.append(rows)
    engine = store.engine()
    for column, many, is_gathered in (
        ("trace_id", few + 1, True),
        ("trace_id", 6 * few // snapshot.SPARSE, True),
        ("trace_id", 6 * few // snapshot.SPARSE + 1, False),
        ("user_id", few, True),
        ("user_id", few + 1, False),
    ):
        ids = [f"{column[0]}{number}" for number in range(0, 2 * many, 2)]
        filters = Filters(equal={column: tuple(ids)}, kinds="all")
        found = store.snapshot(engine).relation("default", filters, Times(), columns=["log_index"])
        assert ("read_parquet" not in found.sql) is is_gathered, (column, many)
        numbers = engine.rows(f"SELECT log_index FROM ({found.sql}) ORDER BY 1", found.params)
        assert [row[0] for row in numbers] == [at for at in range(12 * few) if rows[at][column] in ids]
        engine.release()
    dense = store.snapshot(engine).relation(
        "default", Filters(equal={"trace_id": tuple(f"t{at}" for at in range(few + 1))}), Times(), dense=True
    )
    assert "read_parquet" in dense.sql
    engine.close()
