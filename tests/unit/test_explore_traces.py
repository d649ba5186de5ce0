"""Traces and sessions: lists, pages and single ones, against plain Python."""

import random
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.kernel.loaded import kernel
from server.errors import Refused
from server.explore import (
    numbered_ids,
    ranked,
    session_rows,
    session_sums,
    session_totals,
    sessions,
    snapshot,
    summaries,
    trace_detail,
)
from server.explore.engine import Engine
from server.explore.event_json import MEMBERS
from server.explore.kept_summaries import KeptSummaries, SummaryKey
from server.explore.questions import (
    Filters,
    SessionQuestion,
    SessionsQuestion,
    Times,
    TraceQuestion,
    TracesQuestion,
)
from server.explore.sessions import answer_session, answer_sessions
from server.explore.trace_detail import answer_trace, trace_chunks
from server.explore.traces import answer_traces
from server.explore.tree import TreeSpan, arrange
from tests.support import explore_oracle as oracle
from tests.support.event_store import NOON, Row, StoreDirectory, make_row, random_row
from tests.support.examples import examples

DECODER: Final = msgspec.json.Decoder(float_hook=Decimal)
EVERY: Final = Filters(kinds="all")
HOUR: Final = 3_600_000_000

needs_kernel = pytest.mark.skipif(kernel is None, reason="nothing is kept without the compiled kernel")


def random_span(rng: random.Random) -> Row:
    """A row of one of few traces, in which spans name each other."""
    return random_row(
        rng,
        trace_id=f"trace-{rng.randrange(30)}",
        span_id=f"p{rng.randrange(1, 12)}",
        parent_span_id=rng.choice([None, "", *(f"p{number}" for number in range(1, 14))])
        if rng.random() < 0.8
        else "gone",
        timestamp=NOON + rng.randrange(-20, 20) * HOUR + rng.choice([0, 1, 999, 1000, 1_000_001]),
        session_id=rng.choice([None, None, None, *(f"s{number}" for number in range(9))]),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreDirectory:
    """A store of two partitions and two projects."""
    rng = random.Random(5)
    made = StoreDirectory(tmp_path_factory.mktemp("store") / "events")
    for number in range(8):
        made.append([random_span(rng) for _ in range(25)], partition=number % 2)
    made.append([random_span(rng) | {"trace_id": f"lone-{number}", "session_id": None} for number in range(40)])
    made.append([make_row(rng, trace_id="pure", span_id=one, parent_span_id=two) for one, two in ("ab", "bc", "ca")])
    made.merge(0, 0, 2)
    return made


@pytest.fixture(scope="module")
def engine(store: StoreDirectory) -> Iterator[Engine]:
    """An engine over it."""
    made = store.engine(timeout=60)
    yield made
    made.close()


def decode(answer: bytes) -> Any:
    """Return an answer without what every one has."""
    found = DECODER.decode(answer)
    assert found.pop("asOf")
    assert found.pop("lagSeconds") == 1
    return found


def plain(summaries_found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return summaries with exact numbers, in any order of members."""
    return [
        {name: Fraction(value) if isinstance(value, int | float | Decimal) else value for name, value in each.items()}
        for each in summaries_found
    ]


def pages(ask: Callable[[str | None], Any], name: str) -> list[dict[str, Any]]:
    """Return what all pages list."""
    found, cursor = [], None
    while True:
        answer = ask(cursor)
        found += answer[name]
        cursor = answer["nextCursor"]
        if cursor is None:
            return found


filters = st.sampled_from(
    [
        EVERY,
        Filters(kinds="call"),
        Filters(kinds="all", equal={"status": ("error",)}),
        Filters(kinds="all", equal={"user_id": ("u1", None)}, tags=(("team", "ads"),)),
        Filters(kinds="all", equal={"trace_id": ("trace-3", "pure")}),
        Filters(kinds="all", equal={"session_id": ("s1",)}),
        Filters(kinds="all", equal={"model": ("no such",)}),
    ]
)
ranges = st.sampled_from([Times(), Times(NOON, None), Times(NOON - HOUR, NOON + 1), Times(None, NOON - 15 * HOUR)])
bounds = st.sampled_from([1, 3, 500])
"""Of candidates and of traces for which the indexes are asked: every way to the answer is taken."""
looks = st.sampled_from([1, 30, 1_000_000])
"""Of the latest rows that are looked at first."""


@pytest.mark.slow
@examples(30)
@given(
    filters,
    ranges,
    st.sampled_from(["start", "duration_ms", "cost_usd", "errors"]),
    st.sampled_from([9, 40]),
    bounds,
    looks,
    st.sampled_from([0, 200]),
    st.sampled_from([0, 200_000]),
)
def test_a_list_of_traces(
    store: StoreDirectory,
    engine: Engine,
    wanted: Filters,
    times: Times,
    sort: Any,
    limit: int,
    bound: int,
    look: int,
    summed: int,
    most: int,
) -> None:
    def ask(cursor: str | None) -> Any:
        question = TracesQuestion(project="default", filters=wanted, times=times, sort=sort, limit=limit, cursor=cursor)
        found = decode(answer_traces(store.snapshot(engine), question))
        engine.release()
        assert len(found["traces"]) <= limit
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.explore.traces.CANDIDATES", bound)
        patch.setattr("server.explore.traces.FIRST_LOOK", look)
        patch.setattr("server.explore.traces.SUMMED", summed)
        patch.setattr(numbered_ids, "MOST_ROWS", most)
        patch.setattr(summaries, "LISTED", bound)
        found = pages(ask, "traces")
    assert plain(found) == plain(oracle.traces(store.rows, "default", wanted, times, sort))


@pytest.mark.slow
@examples(30, deadline=None)
@given(
    filters,
    ranges,
    st.sampled_from(["start", "cost_usd", "calls"]),
    st.sampled_from([4, 40]),
    bounds,
    looks,
    st.sampled_from([0, 200_000]),
    st.sampled_from([0, 200]),
    st.sampled_from([0, 1, 64]),
    st.sampled_from([0, 4, 20_000]),
    st.booleans(),
)
def test_a_list_of_sessions(
    store: StoreDirectory,
    engine: Engine,
    wanted: Filters,
    times: Times,
    sort: Any,
    limit: int,
    bound: int,
    look: int,
    most: int,
    summed: int,
    few: int,
    many: int,
    is_added: bool,
) -> None:
    def ask(cursor: str | None) -> Any:
        question = SessionsQuestion(
            project="default", filters=wanted, times=times, sort=sort, limit=limit, cursor=cursor
        )
        found = decode(answer_sessions(store.snapshot(engine), question))
        engine.release()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "CANDIDATES", bound)
        patch.setattr(sessions, "SUMMED", summed)
        patch.setattr(sessions, "FIRST_LOOK", look)
        patch.setattr(numbered_ids, "MOST_ROWS", most)
        patch.setattr(session_rows, "SOUGHT", max(most, bound))
        patch.setattr(session_rows, "LISTED", bound)
        patch.setattr(session_sums, "FEW", few)
        patch.setattr(session_sums, "MANY", many)
        if many < 20_000:  # of a segment with more, what is kept is a part
            patch.setattr(store.files, "summaries", KeptSummaries())
        if not is_added:
            patch.setattr(sessions, "summed_sessions", lambda *asked: None)
        found = pages(ask, "sessions")
    assert plain(found) == plain(oracle.sessions(store.rows, "default", wanted, times, sort))


def all_sessions(store: StoreDirectory, engine: Engine, sort: Any, times: Times, limit: int = 2) -> Any:
    def ask(cursor: str | None) -> Any:
        question = SessionsQuestion(
            project="default", filters=EVERY, times=times, sort=sort, limit=limit, cursor=cursor
        )
        found = decode(answer_sessions(store.snapshot(engine), question))
        engine.release()
        return found

    return pages(ask, "sessions")


@pytest.mark.slow
@pytest.mark.parametrize("sort", ["cost_usd", "calls"])
@pytest.mark.parametrize("times", [Times(), Times(NOON, NOON + 20)])
@pytest.mark.parametrize(
    "bounds", [{}, {"LISTED": 0}, {"MOST_BYTES": 0}, {"MOST_ROWS": 3}, {"WHOLE": -1}], ids=" ".join
)
def test_sessions_with_long_ids_and_large_costs_whose_traces_name_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sort: Any, times: Times, bounds: dict[str, int]
) -> None:
    """And whose hashes are all the same; whatever the bounds are, the answer is."""
    monkeypatch.setattr(sessions, "CANDIDATES", 1)
    monkeypatch.setattr(snapshot, "FAR_GROUPS", 0)
    monkeypatch.setattr("processor.event_store.id_hashes.of_texts", lambda texts: np.full(len(texts), 7, np.uint32))
    monkeypatch.setattr("tests.support.event_store.text_hashes", lambda texts: np.full(len(texts), 7, np.uint32))
    monkeypatch.setattr("server.explore.segment_files.text_hashes", lambda texts: np.full(1, 7, np.uint32))
    for name, value in bounds.items():
        monkeypatch.setattr(numbered_ids if name in {"MOST_ROWS", "MOST_BYTES"} else session_totals, name, value)
    rng, store = random.Random(3), StoreDirectory(tmp_path / "events")
    names = [None, None, *("s" * length + str(number) for number in range(3) for length in (1, 200))]
    for number in range(6):
        rows = [
            make_row(
                rng,
                trace_id=f"t{rng.randrange(25)}",
                session_id=rng.choice(names),
                timestamp=NOON + 10 * number + rng.randrange(10),
                kind=rng.choice(["call", "call", "span"]),
                cost_usd=rng.choice([None, 1, 10**18]),
                project=rng.choice(["default", "default", "other"]),
            )
            for _ in range(30)
        ]
        store.append(rows, partition=number % 2)
    engine = store.engine()
    found = all_sessions(store, engine, sort, times)
    engine.close()
    assert plain(found) == plain(oracle.sessions(store.rows, "default", EVERY, times, sort))
    assert len(found) > 4


def test_sessions_that_reach_beyond_a_day_are_summed_without_reading_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "CANDIDATES", 1)
    monkeypatch.setattr(sessions, "everything", lambda *of: pytest.fail("everything is read"))
    store, day = StoreDirectory(tmp_path / "events"), 24 * HOUR
    for number in range(4):
        rows = [
            make_row(trace_id=f"t{number}-{at // 2}", session_id=f"s{number}-{at // 4}" if at % 2 else None)
            for at in range(40)
        ]
        for at, row in enumerate(rows):
            row |= {"timestamp": NOON + number * day + at, "cost_usd": at}
        rows[3 * number]["session_id"] = "s2-0"
        store.append(rows)
    engine = store.engine()
    times = Times(NOON + 2 * day, NOON + 3 * day)
    found = all_sessions(store, engine, "cost_usd", times, 50)
    engine.close()
    assert plain(found) == plain(oracle.sessions(store.rows, "default", EVERY, times, "cost_usd"))
    assert len(found) == 10


def test_members_stand_in_the_published_order(store: StoreDirectory, engine: Engine) -> None:
    asked: dict[str, Any] = {"project": "default", "filters": EVERY, "times": Times()}
    trace = decode(answer_traces(store.snapshot(engine), TracesQuestion(**asked)))["traces"][0]
    assert " ".join(trace) == (
        "trace_id name start end duration_ms spans calls errors input_tokens output_tokens cached_tokens cost_usd "
        "user_id session_id environment models complete"
    )
    session = decode(answer_sessions(store.snapshot(engine), SessionsQuestion(**asked)))["sessions"][0]
    assert " ".join(session) == (
        "session_id user_id start end traces calls errors input_tokens output_tokens cost_usd models"
    )


@pytest.mark.parametrize("listed", [1, 1000])
def test_one_session(store: StoreDirectory, engine: Engine, listed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_rows, "LISTED", listed)
    monkeypatch.setattr(summaries, "LISTED", listed)
    by_trace = oracle.by_field(store.rows, "trace_id", "default")
    for session_id, rows in [*oracle.sessions_of(store.rows, "default").items()][:4]:
        found = decode(
            answer_session(store.snapshot(engine), SessionQuestion(project="default", session_id=session_id))
        )
        engine.release()
        ids = {row["trace_id"] for row in rows}
        traces = [oracle.trace(by_trace[trace_id]) for trace_id in sorted(ids)]
        assert plain([found["session"]]) == plain([oracle.session(session_id, rows)])
        assert plain(found["traces"]) == plain(sorted(traces, key=lambda trace: oracle.number(trace["start"])))
        assert (found["truncated"], found["total"]) == (False, len(ids))


def test_the_session_of_a_root_is_that_of_its_trace(tmp_path: Path) -> None:
    store = StoreDirectory(tmp_path / "events")
    rows = [make_row(trace_id="t", span_id="root", session_id="s", timestamp=NOON)]
    rows += [make_row(trace_id="t", parent_span_id="root", timestamp=NOON + 1) for _ in range(3)]
    store.append(rows)
    engine = store.engine()
    found = decode(answer_session(store.snapshot(engine), SessionQuestion(project="default", session_id="s")))
    assert found["session"]["calls"] == 4
    # It is listed for a child that matches, too.
    question = SessionsQuestion(project="default", filters=EVERY, times=Times(NOON + 1, None))
    assert decode(answer_sessions(store.snapshot(engine), question))["sessions"] == [found["session"]]


def test_events_without_a_session_do_not_hide_the_latest_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million calls of another application lie above them: a page does not read everything for that."""
    store = StoreDirectory(tmp_path / "events")
    store.append(
        [
            make_row(trace_id=f"t{at}", session_id=f"s{at}", timestamp=NOON + at, received_at=NOON + part)
            for at in range(10)
            for part in range(3)
        ]
    )
    store.append([make_row(trace_id=f"lone-{at}", timestamp=NOON + 100 + at) for at in range(50)])
    store.append(
        [
            make_row(trace_id="t99", kind="span", session_id="of its root", timestamp=NOON + 50),
            make_row(trace_id="t99", timestamp=NOON + 60),
        ]
    )
    engine = store.engine()
    monkeypatch.setattr(sessions, "CANDIDATES", 5)
    monkeypatch.setattr(numbered_ids, "MOST_ROWS", 0)
    for module in (sessions, session_rows):
        monkeypatch.setattr(module, "everything", lambda *of: pytest.fail("everything is read"))
    question = SessionsQuestion(project="default", filters=Filters(kinds="call"), times=Times(), limit=3)
    found = decode(answer_sessions(store.snapshot(engine), question))
    assert [each["session_id"] for each in found["sessions"]] == ["of its root", "s9", "s8"]
    assert [each["calls"] for each in found["sessions"]] == [1, 3, 3]


def test_the_latest_traces_and_sessions_are_found_without_the_files_of_older_ones(tmp_path: Path) -> None:
    """However long the range is, and however much has been stored since."""
    store = StoreDirectory(tmp_path / "events")
    days = [
        [
            make_row(trace_id=f"t{day}-{at}", session_id=f"s{day}-{at // 20}", timestamp=NOON + 24 * day * HOUR + at)
            for at in range(100)
        ]
        for day in range(20)
    ]
    stored = [store.append(rows) for rows in days]
    store.append([make_row(trace_id=f"lone-{at}", timestamp=NOON + 1000 * HOUR + at) for at in range(60)])
    asked: dict[str, Any] = {"project": "default", "filters": EVERY, "limit": 3}
    for segment in stored[:-1]:
        (store.directory / f"{segment.id}.parquet").unlink()
    engine = store.engine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.explore.traces.FIRST_LOOK", 20)
        patch.setattr(sessions, "FIRST_LOOK", 90)
        lone = decode(answer_traces(store.snapshot(engine), TracesQuestion(**asked, times=Times(NOON, None))))
        before = Times(NOON, NOON + 1000 * HOUR)
        traces = decode(answer_traces(store.snapshot(engine), TracesQuestion(**asked, times=before)))
        found = decode(answer_sessions(store.snapshot(engine), SessionsQuestion(**asked, times=Times(NOON, None))))
    engine.close()
    assert [each["trace_id"] for each in lone["traces"]] == ["lone-59", "lone-58", "lone-57"]
    assert [each["trace_id"] for each in traces["traces"]] == ["t19-99", "t19-98", "t19-97"]
    assert [each["session_id"] for each in found["sessions"]] == ["s19-4", "s19-3", "s19-2"]


def test_sessions_that_were_added_up_are_not_read_again(tmp_path: Path) -> None:
    """New events that name one of them are, and so are those without a session in its traces."""
    store = StoreDirectory(tmp_path / "events")
    stored = [
        store.append([make_row(trace_id=f"t{day}-{at}", session_id=f"s{at % 4}", user_id=f"u{at}") for at in range(12)])
        for day in range(2)
    ]
    engine = store.engine()
    asked: dict[str, Any] = {"project": "default", "filters": EVERY, "times": Times(), "limit": 2}

    def listed() -> list[tuple[str, int, int]]:
        found = decode(answer_sessions(store.snapshot(engine), SessionsQuestion(**asked)))["sessions"]
        engine.release()
        assert plain(found) == plain(oracle.sessions(store.rows, "default", EVERY, Times(), "start")[:2])
        return [(each["session_id"], each["calls"], each["traces"]) for each in found]

    assert listed() == [(f"s{number}", 6, 6) for number in range(2)]
    for segment in stored:
        (store.directory / f"{segment.id}.parquet").unlink()
    assert listed() == [(f"s{number}", 6, 6) for number in range(2)]
    store.append([make_row(trace_id="new", session_id="s0"), make_row(trace_id="new"), make_row(trace_id="lone")])
    assert listed()[0] == ("s0", 8, 7)
    engine.close()


def test_sessions_with_the_longest_latencies(tmp_path: Path) -> None:
    """Their ends in nanoseconds do not fit into 64 bits: these sessions are left to the engine."""
    store = StoreDirectory(tmp_path / "events")
    store.append([make_row(trace_id="t", session_id="s", latency_ms=latency) for latency in (1e15, 0.0005, 2.5)])
    engine = store.engine()
    snapshot = store.snapshot(engine)
    assert session_sums.summed_sessions(snapshot, "default", ["s"]) is None
    question = SessionsQuestion(project="default", filters=EVERY, times=Times())
    (found,) = decode(answer_sessions(snapshot, question))["sessions"]
    assert (found["calls"], found["end"]) == (3, "9999-12-31T23:59:59.999999Z")
    engine.close()


@pytest.mark.parametrize("look", [10, 1_000_000])
def test_of_many_that_begin_at_once_no_more_than_a_page_is_valued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """Senders that write milliseconds have hundreds of calls at one time; the order among these is that of ids."""
    store = StoreDirectory(tmp_path / "events")
    store.append([make_row(trace_id=f"t{at:02}", session_id=f"s{at:02}", timestamp=NOON) for at in range(60)])
    store.append([make_row(trace_id=f"u{at:02}", timestamp=NOON) for at in range(60)])
    for module in ("traces", "sessions"):
        monkeypatch.setattr(f"server.explore.{module}.FIRST_LOOK", look)
        monkeypatch.setattr(f"server.explore.{module}.CANDIDATES", 12)
        monkeypatch.setattr(f"server.explore.{module}.everything", lambda *of: pytest.fail("everything is read"))
    engine = store.engine()
    asked: dict[str, Any] = {"project": "default", "filters": EVERY, "times": Times(), "limit": 5}
    traces = decode(answer_traces(store.snapshot(engine), TracesQuestion(**asked)))
    engine.release()
    found = decode(answer_sessions(store.snapshot(engine), SessionsQuestion(**asked)))
    engine.close()
    assert [each["trace_id"] for each in traces["traces"]] == [f"t{at:02}" for at in range(5)]
    assert [each["session_id"] for each in found["sessions"]] == [f"s{at:02}" for at in range(5)]


def test_unknown_ids_are_not_found(store: StoreDirectory, engine: Engine) -> None:
    with pytest.raises(Refused, match="no such trace"):
        answer_trace(store.snapshot(engine), TraceQuestion(project="default", trace_id="no"))
    with pytest.raises(Refused, match="no such session"):
        answer_session(store.snapshot(engine), SessionQuestion(project="default", session_id="no"))


def test_a_trace_of_another_project_is_not_found(store: StoreDirectory, engine: Engine) -> None:
    with pytest.raises(Refused) as raised:
        answer_trace(store.snapshot(engine), TraceQuestion(project="nobody", trace_id="trace-1"))
    assert raised.value.reason == "not_found"


def test_a_cursor_of_another_question_is_refused(store: StoreDirectory, engine: Engine) -> None:
    question = TracesQuestion(project="default", filters=EVERY, times=Times(), limit=1)
    cursor = decode(answer_traces(store.snapshot(engine), question))["nextCursor"]
    for other in (
        msgspec.structs.replace(question, project="other", cursor=cursor),
        msgspec.structs.replace(question, sort="errors", cursor=cursor),
        msgspec.structs.replace(question, times=Times(start=NOON), cursor=cursor),
        msgspec.structs.replace(question, cursor="x" + cursor[1:]),
    ):
        with pytest.raises(Refused) as raised:
            answer_traces(store.snapshot(engine), other)
        assert raised.value.reason == "bad_request"


def test_pages_are_of_the_first_ones_snapshot(tmp_path: Path) -> None:
    rng = random.Random(3)
    store = StoreDirectory(tmp_path / "events")
    store.append([random_span(rng) for _ in range(60)])
    engine = store.engine()
    wanted = oracle.traces(store.rows, "default", EVERY, Times(), "cost_usd")

    def ask(cursor: str | None) -> Any:
        question = TracesQuestion(
            project="default", filters=EVERY, times=Times(), sort="cost_usd", limit=3, cursor=cursor
        )
        found = decode(answer_traces(store.snapshot(engine), question))
        store.append([random_span(rng) for _ in range(20)], partition=rng.randrange(2))
        if len(store.catalog.live(0)) > 2:
            store.merge(0, 0, 2)
        return found

    assert plain(pages(ask, "traces")) == plain(wanted)


@pytest.mark.parametrize(
    ("sort", "bounds", "files"),
    [
        ("cost_usd", {}, 0),
        ("errors", {}, 0),
        ("cost_usd", {"numbered_ids.MOST_ROWS": 0}, 1),
        ("cost_usd", {"numbered_ids.MOST_BYTES": 0}, 1),
        ("duration_ms", {}, 1),
        ("cost_usd", {"snapshot.FAR_GROUPS": 0, "snapshot.FAR_PART": 0}, 6),
        ("duration_ms", {"snapshot.FAR_GROUPS": 0, "snapshot.FAR_PART": 0}, 6),
        ("duration_ms", {"snapshot.FAR_GROUPS": 0, "snapshot.FAR_PART": 1}, 1),
        ("errors", {"far_rows.MOST_ROWS": 0}, 6),
    ],
)
def test_traces_that_reach_beyond_the_range_are_valued_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sort: Any, bounds: dict[str, float], files: int
) -> None:
    """DuckDB scans the segments of the range at most; of the others what their indexes name is read."""
    monkeypatch.setattr("server.explore.traces.CANDIDATES", 3)
    for name, value in bounds.items():
        monkeypatch.setattr(f"server.explore.{name}", value)
    rng = random.Random(4)
    store, day = StoreDirectory(tmp_path / "events"), 86_400 * 10**6
    for number in range(6):
        spans = [{**random_span(rng), "timestamp": NOON + number * day + each} for each in range(40)]
        store.append(spans, partition=number % 2)
    times = Times(NOON + 2 * day, NOON + 3 * day)
    engine = store.engine()
    read: list[str] = []
    real = engine.rows

    def rows(sql: str, params: Sequence[Any] = ()) -> Any:
        if "GROUP BY trace_id)" in sql.replace("\n", " "):
            read.extend(path for each in params if isinstance(each, list) for path in each)
        return real(sql, params)

    monkeypatch.setattr(engine, "rows", rows)

    def ask(cursor: str | None) -> Any:
        question = TracesQuestion(project="default", filters=EVERY, times=times, sort=sort, limit=9, cursor=cursor)
        found = decode(answer_traces(store.snapshot(engine), question))
        engine.release()
        return found

    found = pages(ask, "traces")
    assert len(found) > 10
    assert plain(found) == plain(oracle.traces(store.rows, "default", EVERY, times, sort))
    assert len(set(read)) == files
    engine.close()


@needs_kernel
@pytest.mark.parametrize("kind", ["traces", "sessions"])
def test_rows_of_other_days_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What has come since is read; what was found beyond the day, or was not, is known."""
    monkeypatch.setattr(f"server.explore.{kind}.CANDIDATES", 1)
    rng, store, day = random.Random(8), StoreDirectory(tmp_path / "events"), 24 * HOUR

    def append(number: int) -> None:
        store.append(
            [
                make_row(
                    trace_id=f"t{rng.randrange(12)}",
                    session_id=rng.choice([None, f"s{rng.randrange(9)}"]),
                    timestamp=NOON + number * day + at,
                    cost_usd=rng.randrange(10**9),
                )
                for at in range(30)
            ]
        )

    for number in range(4):
        append(number)
    engine, found_in, keep = store.engine(), list[str](), KeptSummaries.keep

    def listing(kept: KeptSummaries, key: SummaryKey, summary: Any, size: int) -> None:
        if key.what[0] == "rows":
            found_in.append(key.segment)
        keep(kept, key, summary, size)

    monkeypatch.setattr(KeptSummaries, "keep", listing)
    times = Times(NOON + 2 * day, NOON + 3 * day)

    def right() -> None:
        if kind == "sessions":
            found, wanted = all_sessions(store, engine, "cost_usd", times, 50), oracle.sessions
        else:
            question = TracesQuestion(project="default", filters=EVERY, times=times, sort="cost_usd", limit=50)
            found, wanted = decode(answer_traces(store.snapshot(engine), question))["traces"], oracle.traces
            engine.release()
        assert plain(found) == plain(wanted(store.rows, "default", EVERY, times, "cost_usd"))

    right()
    assert len({*found_in}) == 3
    found_in.clear()
    right()
    assert found_in == []
    append(4)
    right()
    assert len({*found_in}) == 1
    engine.close()


@needs_kernel
def test_a_question_that_takes_too_long_goes_on_when_it_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.explore.traces.CANDIDATES", 1)
    store, day = StoreDirectory(tmp_path / "events"), 24 * HOUR
    for number in range(4):
        rows = [make_row(trace_id=f"t{at}", timestamp=NOON + number * day + at, cost_usd=at) for at in range(5)]
        store.append(rows)
    engine, found_in, keep = store.engine(), list[str](), KeptSummaries.keep

    def keeping(kept: KeptSummaries, key: SummaryKey, summary: Any, size: int) -> None:
        keep(kept, key, summary, size)
        if key.what[0] == "rows":
            found_in.append(key.segment)
            if len(found_in) == 2:
                engine.stop(Refused("query_too_heavy", "its time is over"))

    monkeypatch.setattr(KeptSummaries, "keep", keeping)
    times = Times(NOON + 3 * day, None)
    question = TracesQuestion(project="default", filters=EVERY, times=times, sort="cost_usd")
    with pytest.raises(Refused, match="its time is over"):
        answer_traces(store.snapshot(engine), question)
    assert engine.goes_on
    assert len(found_in) == 2
    engine.close()
    again = store.engine()
    found = decode(answer_traces(store.snapshot(again), question))["traces"]
    again.close()
    assert len({*found_in}) == len(found_in) == 3  # of three other days
    assert plain(found) == plain(oracle.traces(store.rows, "default", EVERY, times, "cost_usd"))


# --- one trace -------------------------------------------------------------------------------------------------------


def read(store: StoreDirectory, engine: Engine, trace_id: str, **asked: Any) -> Any:
    """Return the answer about one trace."""
    found = decode(answer_trace(store.snapshot(engine), TraceQuestion(project="default", trace_id=trace_id, **asked)))
    engine.release()
    return found


@pytest.fixture(scope="module")
def flat(store: StoreDirectory, engine: Engine) -> dict[str, Any]:
    """The answer about every trace of the project."""
    return {trace_id: read(store, engine, trace_id) for trace_id in oracle.by_field(store.rows, "trace_id", "default")}


@pytest.mark.slow
def test_all_events_of_a_trace_stand_in_its_tree_once(store: StoreDirectory, flat: dict[str, Any]) -> None:
    for trace_id, unordered in oracle.by_field(store.rows, "trace_id", "default").items():
        rows, found = sorted(unordered, key=oracle.by_start), flat[trace_id]
        places = arrange(
            [TreeSpan(row["span_id"], row["parent_span_id"], row["timestamp"], oracle.arrival(row)) for row in rows]
        )
        shown = [
            (span["event_id"], span["parent"], span["depth"], *(flaw for flaw in ("orphan", "cycle") if flaw in span))
            for span in found["spans"]
        ]
        assert shown == [
            (rows[place.span]["event_id"], place.parent, place.depth, *([place.flaw] if place.flaw else []))
            for place in places
        ]
        assert plain([found["trace"]]) == plain([oracle.trace(rows)])
        assert (found["truncated"], found["total"]) == (False, len(rows))


@pytest.mark.slow
def test_the_nested_form_is_the_same_tree(store: StoreDirectory, engine: Engine, flat: dict[str, Any]) -> None:
    assert len(flat) > 20
    for trace_id, found in flat.items():
        nested = read(store, engine, trace_id, format="tree")
        unfolded: list[Any] = []
        stack: list[tuple[Any, int | None]] = [(root, None) for root in reversed(nested["roots"])]
        while stack:
            span, parent = stack.pop()
            stack += [(child, len(unfolded)) for child in reversed(span.pop("children"))]
            unfolded.append({**span, "parent": parent})
        assert unfolded == found["spans"]
        assert nested["trace"] == found["trace"]


def test_events_are_whole_and_extra_can_be_left_out(store: StoreDirectory, engine: Engine) -> None:
    (row, *_) = [row for row in store.rows if row["project"] == "default" and row["extra"] is not None]
    for extra in (True, False):
        found = read(store, engine, row["trace_id"], extra=extra)["spans"]
        (span,) = [span for span in found if span["event_id"] == row["event_id"]]
        assert [name for name in span if name in MEMBERS] == [name for name in MEMBERS if name in span]
        assert ("extra" in span) == extra
        assert span["model"] == row["model"]


def chain(length: int) -> list[Row]:
    """The spans of a trace that is as deep as it has spans."""
    return [
        make_row(trace_id="deep", span_id=f"{number}", parent_span_id=f"{number - 1}" if number else None)
        for number in range(length)
    ]


def test_a_deep_trace_is_flat_only(tmp_path: Path) -> None:
    store = StoreDirectory(tmp_path / "events", group_rows=4096)
    store.append(chain(3000))
    engine = store.engine()
    found = read(store, engine, "deep")
    assert [span["depth"] for span in found["spans"]] == list(range(3000))
    with pytest.raises(Refused, match="format=flat") as raised:
        read(store, engine, "deep", format="tree")
    assert raised.value.reason == "too_deep"


def test_a_trace_of_depth_100_is_nested(tmp_path: Path) -> None:
    store = StoreDirectory(tmp_path / "events", group_rows=4096)
    store.append(chain(101))
    assert len(read(store, store.engine(), "deep", format="tree")["roots"]) == 1


def test_a_longer_trace_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_detail, "MOST_SPANS", 5)
    store = StoreDirectory(tmp_path / "events")
    store.append([make_row(trace_id="t", span_id=str(number), timestamp=NOON - number) for number in range(8)])
    found = read(store, store.engine(), "t")
    assert [span["span_id"] for span in found["spans"]] == ["7", "6", "5", "4", "3"]
    assert (found["truncated"], found["total"], found["trace"]["spans"]) == (True, 8, 8)


def test_pieces_of_a_trace_are_the_whole(store: StoreDirectory, engine: Engine) -> None:
    question = TraceQuestion(project="default", trace_id="trace-1")
    whole = read(store, engine, "trace-1")
    pieces = list(trace_chunks(store.snapshot(engine), question, 1000))
    assert len(pieces) > 3
    decoded = [DECODER.decode(piece) for piece in pieces]
    assert all(len(piece) < 1100 or len(spans["spans"]) == 1 for piece, spans in zip(pieces, decoded, strict=True))
    assert [span for piece in decoded for span in piece["spans"]] == whole["spans"]
    assert (decoded[0]["trace"], decoded[0]["total"]) == (whole["trace"], whole["total"])


def test_too_large_a_trace_is_refused(store: StoreDirectory, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_detail, "MOST_BYTES", 100)
    with pytest.raises(Refused, match="extra=none"):
        read(store, engine, "trace-1")


def test_too_many_models_are_refused(store: StoreDirectory, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "MOST_MODELS", 1)
    with pytest.raises(Refused, match="models"):
        answer_traces(store.snapshot(engine), TracesQuestion(project="default", filters=EVERY, times=Times()))


def test_candidates_are_bounded() -> None:
    assert ranked.CANDIDATES <= summaries.LISTED


def test_a_trace_of_very_many_events_is_not_held_in_memory(
    store: StoreDirectory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(store, engine, "trace-1")
    monkeypatch.setattr(snapshot, "GATHERED", 1)
    found = store.snapshot(engine).relation("default", Filters(equal={"trace_id": ("trace-1",)}, kinds="all"), Times())
    assert "read_parquet" in found.sql
    assert read(store, engine, "trace-1") == whole
