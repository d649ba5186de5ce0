"""Versions of prompts, against plain Python."""

import random
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import Refused
from server.explore import aggregation, prompts, version_sums
from server.explore.aggregation import aggregate
from server.explore.engine import Engine
from server.explore.measures import Quantile
from server.explore.prompts import answer_prompts
from server.explore.questions import Filters, PromptsQuestion, Times
from server.explore.row_scan import RowScan
from tests.support import explore_oracle as oracle
from tests.support.event_store import NOON, StoreDirectory, make_row, random_row
from tests.support.examples import examples

DECODER: Final = msgspec.json.Decoder(float_hook=Decimal)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreDirectory:
    """A store of two partitions and two projects."""
    rng = random.Random(17)
    made = StoreDirectory(tmp_path_factory.mktemp("store") / "events")
    for number in range(6):
        rows = [random_row(rng, prompt_hash=rng.choice([None, *(f"h{each}" for each in range(9))])) for _ in range(30)]
        made.append(rows, partition=number % 2)
    return made


@pytest.fixture(scope="module")
def engine(store: StoreDirectory) -> Iterator[Engine]:
    """An engine over it."""
    made = store.engine(timeout=60)
    yield made
    made.close()


def pages(store: StoreDirectory, engine: Engine, **asked: Any) -> list[dict[str, Any]]:
    """Return what all pages list."""
    found, cursor = [], None
    while True:
        question = PromptsQuestion(**{"project": "default", "cursor": cursor, **asked})
        answer = DECODER.decode(answer_prompts(store.snapshot(engine), question))
        engine.release()
        found += answer["prompts"]
        cursor = answer["nextCursor"]
        if cursor is None:
            return found


def assert_same(found: Any, wanted: Any, place: str = "") -> None:
    """Compare all numbers exactly but deviations and means of scores, which the engine adds up as doubles."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted), place
        for name in wanted:
            assert_same(found[name], wanted[name], f"{place}.{name}")
    elif isinstance(wanted, float | Fraction):
        if place.endswith("sd") or "scores" in place:
            assert float(found) == pytest.approx(float(wanted), rel=1e-12, abs=1e-12), place
        else:
            assert (Fraction(found) if isinstance(wanted, Fraction) else float(found)) == wanted, place
    else:
        assert found == wanted, place


@pytest.mark.slow
@examples(30)
@given(
    st.sampled_from(prompts.SORTS),
    st.integers(1, 12),
    st.sampled_from(
        [
            Filters(),
            Filters(kinds="all"),
            Filters(kinds="span"),
            Filters(kinds="all", equal={"model": ("gpt-4o",)}),
            Filters(kinds="all", unequal={"status": ("error",)}, tags=(("team", "search"),)),
            Filters(kinds="all", equal={"user_id": ("u1", "u2")}),
        ]
    ),
    st.sampled_from([Times(), Times(NOON, None), Times(NOON - 1_000_000, NOON + 1)]),
    st.sampled_from([version_sums.MOST_VERSIONS, 3]),
    st.sampled_from([1, 16]),
)
def test_equals_plain_python(
    store: StoreDirectory,
    engine: Engine,
    sort: str,
    limit: int,
    filters: Filters,
    times: Times,
    most: int,
    together: int,
) -> None:
    """With and without the engine, with sums that are kept and for the first time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(version_sums, "MOST_VERSIONS", most)
        patch.setattr(version_sums, "TOGETHER", together)
        found = pages(store, engine, filters=filters, times=times, sort=sort, limit=limit)
    wanted = oracle.prompts(store.rows, "default", filters, times, sort)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)


def test_an_answer_is_the_same_for_any_segments_and_whatever_is_kept(tmp_path: Path) -> None:
    rng = random.Random(29)
    rows = [
        random_row(rng, latency_ms=rng.uniform(0.01, 90_000), eval_scores={"s": rng.gauss(0, 1)}) for _ in range(90)
    ]
    rows.append(random_row(rng, prompt_hash="h1", kind="call", cost_usd=3, eval_scores={"none": None}))
    question = PromptsQuestion(project="default", filters=Filters(), times=Times())
    answers = []
    for number, size in enumerate((91, 40, 7)):
        store = StoreDirectory(tmp_path / str(number) / "events")
        for start in range(0, 91, size):
            store.append(rows[start : start + size])
        engine = store.engine()
        answers += [answer_prompts(store.snapshot(engine), question) for _ in range(2)]
        engine.close()
    assert len(set(answers)) == 1
    rows[-1] |= {"eval_scores": None}
    wanted = oracle.prompts(rows, "default", Filters(), Times(), "first_seen")
    for each in DECODER.decode(answers[0])["prompts"]:
        (same,) = [one for one in wanted if one["prompt_hash"] == each["prompt_hash"]]
        for field in ("latency_ms", "ttft_ms"):
            assert float(each[field]["sd"]) == pytest.approx(same[field]["sd"], rel=1e-15, abs=1e-12)
        if each["prompt_hash"] == "h1":
            assert each["scores"]["none"] == {"avg": None, "sd": None, "count": 0}


def test_events_that_come_later_are_added(tmp_path: Path) -> None:
    made = StoreDirectory(tmp_path / "events")
    made.append([make_row(prompt_hash="h1") for _ in range(3)])
    engine = made.engine()
    asked: dict[str, Any] = {"filters": Filters(), "times": Times()}
    assert [each["requests"] for each in pages(made, engine, **asked)] == [3]
    made.append([make_row(prompt_hash=each) for each in ("h1", "h2")])
    assert {each["prompt_hash"]: each["requests"] for each in pages(made, engine, **asked)} == {"h1": 4, "h2": 1}
    engine.close()


def test_what_was_added_up_is_not_read_again(tmp_path: Path) -> None:
    store = StoreDirectory(tmp_path / "events")
    old = store.append([make_row(prompt_hash="h1", timestamp=NOON + at) for at in range(20)])
    engine = store.engine()
    asked: dict[str, Any] = {"filters": Filters(), "times": Times(NOON + 5, None)}
    first = pages(store, engine, **asked)
    assert [each["requests"] for each in first] == [15]
    (store.directory / f"{old.id}.parquet").unlink()
    assert pages(store, engine, **asked) == first
    engine.close()


@pytest.mark.parametrize("last", [3, 9])
def test_row_groups_of_too_many_versions_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """In one row group, or in all together: DuckDB alone answers the next question."""
    monkeypatch.setattr(version_sums, "MOST_VERSIONS", 4)
    store = StoreDirectory(tmp_path / "events", group_rows=20)
    for number in range(3):
        names = range(2) if number < 2 else range(5, 5 + last)
        store.append([make_row(prompt_hash=f"h{name}", timestamp=NOON + number) for name in names])
    engine = store.engine()
    asked: dict[str, Any] = {"filters": Filters(), "times": Times()}
    first = pages(store, engine, **asked)
    assert len(first) == 2 + last
    with monkeypatch.context() as patch:
        patch.setattr(RowScan, "opened_coded", lambda *of: pytest.fail("a row group is read again"))
        assert pages(store, engine, **asked) == first
    two = pages(store, engine, filters=Filters(), times=Times(None, NOON + 2))
    assert [each["prompt_hash"] for each in two] == ["h0", "h1"]
    engine.close()


def test_quantiles_of_very_many_events_are_within_one_percent(
    store: StoreDirectory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"filters": Filters(), "times": Times()}
    exact = pages(store, engine, **asked)
    monkeypatch.setattr(aggregation, "EXACT", 1)
    for one, two in zip(exact, pages(store, engine, **asked), strict=True):
        assert float(two["latency_ms"]["p95"]) == pytest.approx(float(one["latency_ms"]["p95"]), rel=0.01)
        assert two["requests"] == one["requests"]


def test_too_many_scores_are_refused(store: StoreDirectory, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MOST_SCORES", 1)
    with pytest.raises(Refused, match="scores"):
        pages(store, engine, filters=Filters(), times=Times())


def test_quantiles_of_one_column_are_one_aggregate() -> None:
    parts = [*(Quantile("latency_ms", None, percent) for percent in (50, 95, 99)), Quantile("ttft_ms", None, 50)]
    sql = aggregate("events", ["model"], parts, exact=True)
    assert re.findall(r"quantile_disc\((\w+, [^)]*)\)\)\[(\d)\]", sql) == [
        *(("latency_ms, [0.5, 0.95, 0.99]", number) for number in "123"),
        ("ttft_ms, [0.5]", "1"),
    ]
