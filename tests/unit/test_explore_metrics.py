"""Metrics of events, against plain Python."""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.core.clock import EPOCH, HOUR
from server.errors import Refused
from server.explore import aggregation, cell_reader, cells, kept_cells, metrics
from server.explore.engine import AGAIN, Engine
from server.explore.metric_params import GROUPS, PLAIN_MEASURES, SCORES, STATISTICS
from server.explore.metrics import answer_metrics
from server.explore.questions import Filters, Interval, MetricsQuestion, Times
from tests.support import explore_oracle
from tests.support.event_store import NOON, StoreDirectory, make_row, random_row

DECODER = msgspec.json.Decoder(float_hook=Decimal)
DAY = 86_400_000_000

MEASURES = (
    *PLAIN_MEASURES,
    *(f"{field}:{statistic}" for field, statistics in STATISTICS.items() for statistic in statistics),
    *(f"score:good:{statistic}" for statistic in SCORES),
    "score:bad:avg",
    "score:no ' such:p50",
)
FIELDS = (*GROUPS, "tag:team", "tag:a:b", "tag:' OR 1=1 --")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreDirectory:
    """A store of two partitions and two projects over several days."""
    rng = random.Random(11)
    made = StoreDirectory(tmp_path_factory.mktemp("store") / "events")
    for number in range(10):
        rows = [random_row(rng, timestamp=NOON + rng.randrange(-20, 20) * 7_201_000_001) for _ in range(40)]
        made.append(rows, partition=number % 2)
    made.merge(0, 0, 3)
    return made


@pytest.fixture(scope="module")
def engine(store: StoreDirectory) -> Iterator[Engine]:
    """An engine over it."""
    made = store.engine(timeout=60)
    yield made
    made.close()


def ask(store: StoreDirectory, engine: Engine, **asked: Any) -> Any:
    """Return the answer with all numbers exact."""
    asked = {"project": "default", "filters": Filters(), "times": Times(), **asked}
    answer = answer_metrics(store.snapshot(engine), MetricsQuestion(**asked))
    engine.release()
    return DECODER.decode(answer)


def assert_same(found: Any, wanted: Any, place: str = "") -> None:
    """Compare numbers exactly where they are exact: a deviation is not."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted), place
        for name in wanted:
            assert_same(found[name], wanted[name], f"{place}.{name}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), place
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_same(one, other, f"{place}[{number}]")
    elif isinstance(wanted, float | Fraction):
        assert found is not None, place
        if place.endswith(":sd") or (place.endswith(":avg") and "score" in place):
            assert float(found) == pytest.approx(float(wanted), rel=1e-12, abs=1e-12), place
        else:
            exact = Fraction(found) if isinstance(wanted, Fraction) else float(found)
            assert exact == wanted, place
    else:
        assert found == wanted, place


def check(store: StoreDirectory, engine: Engine, **asked: Any) -> Any:
    """Compare the answer with the oracle's."""
    asked = {"project": "default", "filters": Filters(), "times": Times(), **asked}
    found = ask(store, engine, **asked)
    wanted = explore_oracle.metrics(store.rows, MetricsQuestion(**asked))
    assert found.pop("asOf")
    assert found.pop("lagSeconds") == 1
    assert_same(found, wanted)
    return found


WAYS = ("cells", "together", "apart")


def take(patch: pytest.MonkeyPatch, way: str) -> None:
    """Have metrics computed in one of the ways, where it is made for the question."""
    patch.setattr(cell_reader, "MOST_GROUPS", 1000 if way == "cells" else -1)
    patch.setattr(metrics, "FEW_GROUPS", -1 if way == "apart" else 200)


@pytest.mark.parametrize("names", [MEASURES[start::9] for start in range(9)], ids=" ".join)
@pytest.mark.parametrize("way", WAYS)
def test_each_measure_by_group_and_day(
    store: StoreDirectory, engine: Engine, names: tuple[str, ...], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(monkeypatch, way)
    check(store, engine, measures=names, group_by=("model",), interval="day", tz="Asia/Kolkata", limit=2)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kinds", ["call", "span", "all"])
def test_each_group(store: StoreDirectory, engine: Engine, field: str, kinds: Any) -> None:
    check(store, engine, measures=("requests", "cost_usd"), group_by=(field,), filters=Filters(kinds=kinds), limit=2)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(MEASURES), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from(FIELDS), max_size=3, unique=True),
    st.sampled_from(get_args(Interval)),
    st.sampled_from(["UTC", "America/New_York", "Pacific/Chatham"]),
    st.integers(1, 30),
    st.sampled_from(
        [
            Filters(),
            Filters(kinds="all"),
            Filters(kinds="all", tools=("grep",)),
            Filters(equal={"user_id": ("u1", None)}, tags=(("team", "ads"),)),
            Filters(equal={"trace_id": ("trace-1",)}, kinds="all"),
            Filters(equal={"model": ("no such",)}),
            Filters(equal={"model": ("gpt-4o", "ünï"), "error_code": (None,)}, unequal={"status": ("timeout",)}),
            Filters(kinds="span", no_tags=(("team", "ads"), ("x", None)), unequal={"name": (None, "tool")}),
        ]
    ),
    st.sampled_from([Times(), Times(NOON - DAY, NOON + DAY), Times(NOON, None), Times(None, NOON)]),
    st.sampled_from(WAYS),
)
def test_equals_plain_python(
    store: StoreDirectory,
    engine: Engine,
    names: list[str],
    fields: list[str],
    interval: Interval,
    tz: str,
    limit: int,
    filters: Filters,
    times: Times,
    way: str,
) -> None:
    asked = {"measures": tuple(names), "group_by": tuple(fields), "interval": interval, "tz": tz, "limit": limit}
    with pytest.MonkeyPatch.context() as patch:
        take(patch, way)
        check(store, engine, **asked, filters=filters, times=times)


@pytest.mark.parametrize("way", WAYS)
def test_groups_and_other_add_up_to_the_total(
    store: StoreDirectory, engine: Engine, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(monkeypatch, way)
    names = ("requests", "errors", "input_tokens", "output_tokens", "cost_usd", "unpriced")
    found = check(store, engine, measures=names, group_by=("model", "tag:team"), limit=3, interval="day")
    for name in names:
        values = [group["values"][name] for group in found["groups"]]
        assert sum(map(Fraction, [*values, found["other"][name]])) == Fraction(found["total"][name])
        assert sum(Fraction(point[name]) for point in found["total"]["series"]) == Fraction(found["total"][name])
        for group in found["groups"]:
            assert sum(Fraction(point[name]) for point in group["series"]) == Fraction(group["values"][name])


def test_an_event_with_two_tools_is_in_both_groups_and_once_in_the_total(tmp_path: Path) -> None:
    store = StoreDirectory(tmp_path / "events")
    store.append([make_row(tools_used=tools) for tools in (["a", "b", "a"], ["a"], None, ["b", "c"])])
    engine = store.engine()
    found = check(store, engine, group_by=("tool",), measures=("requests",), limit=1)
    assert found["groups"][0]["values"] == {"requests": 2}
    assert (found["other"], found["total"], found["multi"]) == ({"requests": 3}, {"requests": 4}, ["tool"])


def test_a_store_without_a_matching_event(store: StoreDirectory, engine: Engine) -> None:
    found = check(store, engine, project="nobody", measures=MEASURES, group_by=("model",), interval="day")
    assert found["groups"] == []
    assert found["total"]["requests"] == 0
    assert found["total"]["latency_ms:p95"] is None


def test_too_many_intervals_name_the_longer_one(tmp_path: Path) -> None:
    store = StoreDirectory(tmp_path / "events", group_rows=4096)
    store.append([make_row(timestamp=NOON + number * 60_000_000) for number in range(2001)])
    engine = store.engine()
    with pytest.raises(Refused, match="interval=hour") as raised:
        ask(store, engine, interval="minute")
    assert (raised.value.reason, raised.value.details) == ("range_too_wide", {"interval": "hour"})
    assert len(ask(store, engine, interval="hour")["groups"][0]["series"]) == 34
    times = Times(NOON, NOON + 2000 * 60_000_000)
    assert len(ask(store, engine, interval="minute", times=times)["groups"][0]["series"]) == 2000


def test_too_many_points_name_the_longer_interval(
    store: StoreDirectory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_POINTS", 5)
    with pytest.raises(Refused, match="interval=week"):
        ask(store, engine, interval="day", group_by=("model",))


def test_too_many_values_are_refused(store: StoreDirectory, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_VALUES", 5)
    with pytest.raises(Refused, match="fewer measures"):
        ask(store, engine, interval="day", group_by=("model",))


def test_days_of_events_thousands_of_years_apart(tmp_path: Path) -> None:
    store = StoreDirectory(tmp_path / "events")
    first = -62_135_596_800_000_000
    store.append([make_row(timestamp=at) for at in (first, 0, -1, NOON)])
    engine = store.engine()
    for interval in ("minute", "hour", "day", "week", "month"):
        check(store, engine, interval=interval, tz="America/New_York")


def test_rows_behind_the_snapshot_are_not_counted(store: StoreDirectory, engine: Engine) -> None:
    now = store.snapshot(engine)
    bounds = {partition: bound - 4 for partition, bound in now.bounds.items()}
    asked: dict[str, Any] = {"measures": ("requests", "cost_usd", "latency_ms:p95"), "group_by": ("tag:team",)}
    question = MetricsQuestion(project="default", filters=Filters(), times=Times(), **asked)
    found = DECODER.decode(answer_metrics(now.frozen(bounds, 0), question))
    rows = [row for row in store.rows if row["log_offset"] < bounds[row["log_partition"]]]
    assert 0 < len(rows) < len(store.rows)
    wanted = explore_oracle.metrics(rows, question)
    assert_same({name: found[name] for name in wanted}, wanted)


@pytest.mark.slow
def test_so_many_different_texts_that_the_file_has_no_dictionary_of_them(tmp_path: Path) -> None:
    store = StoreDirectory(tmp_path / "events", group_rows=16_384)
    rng = random.Random(1)
    tags = [
        {"team": rng.choice(["a", "b"]), **{f"k{at}": rng.randbytes(40).hex() for at in range(3)}} for _ in range(6000)
    ]
    store.append([make_row(rng, tags=each, name=rng.randbytes(90).hex()) for each in tags])
    names = tuple(row["name"] for row in store.rows[::3])
    asked: dict[str, Any] = {"measures": ("requests", "latency_ms:p50"), "interval": "day", "group_by": ("tag:team",)}
    found = check(store, store.engine(), **asked, filters=Filters(unequal={"name": names}))
    assert {group["key"]["tag:team"] for group in found["groups"]} == {"a", "b"}


def test_what_the_manifest_knows_is_not_read(store: StoreDirectory, engine: Engine, tmp_path: Path) -> None:
    made = StoreDirectory(tmp_path / "events")
    names = (
        "requests",
        "errors",
        "error_rate",
        "input_tokens",
        "output_tokens",
        "cost_usd",
        "cost_usd:avg",
        "unpriced",
    )
    for number in range(3):
        made.append([random_row(random.Random(number), timestamp=NOON + number * DAY) for _ in range(50)])
    check(made, made.engine(), measures=names, interval="day")
    for path in made.directory.glob("*.parquet"):
        path.write_bytes(b"")
    known = tuple(name for name in names if name != "cost_usd:avg")
    check(made, made.engine(), measures=known, interval="day")


@pytest.mark.parametrize("way", WAYS)
def test_costs_and_latencies_of_any_size(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch, way)
    store = StoreDirectory(tmp_path / "events")
    widest = 1.7976931348623157e308
    rows = [
        make_row(cost_usd=10**18, latency_ms=widest, ttft_ms=widest, eval_scores={"s": -widest}, input_tokens=2**53 - 1)
        for _ in range(3)
    ]
    store.append(rows)
    engine = store.engine()
    names = (
        "cost_usd",
        "cost_usd:avg",
        "cost_usd:sd",
        "input_tokens",
        "latency_ms:p99",
        "latency_ms:sd",
        "score:s:p50",
    )
    found = check(store, engine, measures=names)
    assert found["total"]["cost_usd"] == 3_000_000
    check(store, engine, measures=("cost_usd", "cost_usd:avg", "input_tokens", "latency_ms:p99"), group_by=("model",))
    ask(store, engine, measures=MEASURES)


RANKED = ("latency_ms:p50", "latency_ms:p99", "ttft_ms:p90")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "fields", "limit"),
    [((*RANKED, "score:good:p50", "score:bad:p95", "users"), ("model", "tool"), 3), (RANKED, ("model", "tag:team"), 8)],
    ids=["by the engine", "in cells"],
)
def test_quantiles_of_very_many_events_are_within_one_percent(
    names: tuple[str, ...],
    fields: tuple[str, ...],
    limit: int,
    store: StoreDirectory,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {"measures": (*names, "requests"), "group_by": fields, "interval": "day", "limit": limit}
    exact = ask(store, engine, **asked)
    monkeypatch.setattr(aggregation, "EXACT", 1)
    near = ask(store, engine, **asked)
    compared = 0
    pairs = [(exact["total"], near["total"]), (exact["other"], near["other"])]
    pairs += zip(exact["total"]["series"], near["total"]["series"], strict=True)
    for one, two in zip(exact["groups"], near["groups"], strict=True):
        assert one["key"] == two["key"]
        pairs += [(one["values"], two["values"]), *zip(one["series"], two["series"], strict=True)]
    for one, two in pairs:
        assert one["requests"] == two["requests"]
        for name in names:
            if one[name] is None:
                assert two[name] is None
            else:
                assert float(two[name]) == pytest.approx(float(one[name]), rel=0.01)
                compared += 1
    assert compared > 100


def test_two_exact_quantiles_take_the_room_that_they_need(
    store: StoreDirectory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB, which would be asked else, takes more: it refused two of ten million events."""
    monkeypatch.setattr(cells, "MOST_BYTES", 1)
    monkeypatch.setattr(metrics._Answer, "together", None)  # noqa: SLF001 - the other ways must not be gone
    monkeypatch.setattr(metrics._Answer, "apart", None)  # noqa: SLF001
    check(store, engine, measures=RANKED, group_by=("model",), interval="day")


@pytest.mark.parametrize("many", [True, False], ids=["many", "few"])
def test_events_that_manifests_count_are_not_counted_again(
    store: StoreDirectory, engine: Engine, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"measures": ("latency_ms:p50",), "filters": Filters(kinds="all")}
    known = store.snapshot(engine).rows_for_certain("default", Filters(kinds="all"), Times())
    assert known == sum(row["project"] == "default" for row in store.rows)
    monkeypatch.setattr(aggregation, "EXACT", known - 1 if many else known)
    taken: list[bool] = []

    def read(*given: Any, exact: bool) -> Any:
        taken.append(exact)
        return cell_reader.read_cells(*given, exact=exact)

    monkeypatch.setattr(metrics, "read_cells", read)
    ask(store, engine, **asked)
    assert taken == [not many]


def pieces_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the segments whose rows metrics read from now on."""
    found: list[str] = []
    add = cell_reader._Reader._add_piece  # noqa: SLF001 - the place where they are read

    def add_piece(reader: Any, scan: Any, piece: Any) -> None:
        found.append(piece.segment.id)
        add(reader, scan, piece)

    monkeypatch.setattr(cell_reader._Reader, "_add_piece", add_piece)  # noqa: SLF001
    return found


@pytest.fixture
def fresh(tmp_path: Path) -> StoreDirectory:
    """A store of six segments in four days, of which nothing is kept."""
    rng, made = random.Random(5), StoreDirectory(tmp_path / "events")
    for number in range(6):
        at = NOON + number * DAY // 2
        made.append([random_row(rng, timestamp=at + rng.randrange(DAY)) for _ in range(60)], partition=number % 2)
    return made


@pytest.mark.parametrize(
    "asked",
    [
        {"measures": ("cost_usd", "requests", "latency_ms:p95", "ttft_ms:p50"), "group_by": ("model", "tag:team")},
        {"measures": ("input_tokens", "errors"), "group_by": ("status",), "limit": 1},
        {"measures": ("cost_usd:avg", "unpriced"), "filters": Filters(equal={"model": ("gpt-4o", None)}, kinds="all")},
        {"measures": ("latency_ms:p50", "requests"), "filters": Filters(tags=(("team", "search"),))},
    ],
    ids=["two keys", "other", "a filter", "a tag"],
)
@pytest.mark.parametrize("interval", ["none", "hour", "day", "month"])
def test_whole_segments_are_added_up_once(
    asked: dict[str, Any], interval: str, fresh: StoreDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregation, "EXACT", 1)
    engine, asked = fresh.engine(), {**asked, "interval": interval, "tz": "Asia/Kolkata"}
    first = ask(fresh, engine, **asked)
    read = pieces_of(monkeypatch)
    assert ask(fresh, engine, **asked) == first
    assert read == []
    within = {**asked, "times": Times(NOON + 7 * HOUR, None)}  # cuts some of the segments
    found = ask(fresh, engine, **within)
    assert 0 < len({*read}) < 6
    monkeypatch.setattr(cell_reader, "CellKeeper", lambda *given: None)
    assert found == ask(fresh, engine, **within)
    assert first == ask(fresh, engine, **asked)
    engine.close()


def test_another_question_has_cells_of_its_own(fresh: StoreDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, read = fresh.engine(), pieces_of(monkeypatch)
    plain: dict[str, Any] = {"measures": ("requests", "cost_usd"), "group_by": ("model",), "interval": "day"}
    others: list[dict[str, Any]] = [
        {"tz": "Asia/Kolkata"},
        {"filters": Filters(kinds="span")},
        {"filters": Filters(unequal={"model": ("gpt-4o",)})},
        {"group_by": ("status",)},
        {"measures": ("requests",)},
        {"project": "other"},
    ]
    for other in ({}, *others, {"interval": "hour"}):
        del read[:]
        check(fresh, engine, **plain | other)
        assert len(read) == 6 or other.get("project") == "other"
    del read[:]
    check(fresh, engine, **plain, sort="cost_usd", limit=1)
    assert read == []
    engine.close()


def test_exact_quantiles_are_not_kept(fresh: StoreDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, read = fresh.engine(), pieces_of(monkeypatch)
    for _ in range(2):
        check(fresh, engine, measures=("latency_ms:p95",), group_by=("model",))
    assert len(read) == 12
    assert fresh.files.summaries.bytes == 0
    engine.close()


@pytest.mark.parametrize("share", [0.5, 0.0001], ids=["room", "room for some"])
def test_a_question_that_took_too_long_goes_on_where_it_was(
    share: float, fresh: StoreDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_cells, "SHARE", share)
    asked: dict[str, Any] = {"measures": ("requests", "cost_usd"), "group_by": ("model",)}
    engine, read, check_time = fresh.engine(), pieces_of(monkeypatch), Engine.check

    def check_one(engine: Engine) -> None:
        if len(read) > 4:
            engine._deadline = 0.0  # noqa: SLF001 - its time is over
        check_time(engine)

    monkeypatch.setattr(Engine, "check", check_one)
    with pytest.raises(Refused) as raised:
        ask(fresh, engine, **asked)
    assert raised.value.reason == "query_too_heavy"
    assert (AGAIN in str(raised.value)) == (share > 0.1)
    engine.close()
    monkeypatch.setattr(Engine, "check", check_time)
    engine = fresh.engine()
    del read[:]
    check(fresh, engine, **asked)
    assert len(read) == 2 if share > 0.1 else 2 < len(read) < 6
    first = [*read]
    check(fresh, engine, **asked)  # what is kept is not driven out by what is not
    assert read == first if share > 0.1 else read == 2 * first
    engine.close()


@pytest.mark.parametrize("tz", ["UTC", "Asia/Kolkata", "America/New_York", "Pacific/Chatham", "Australia/Lord_Howe"])
@pytest.mark.parametrize("month", [3, 4, 10, 11])
def test_days_add_up_to_the_range_over_changes_of_the_clocks(tmp_path: Path, tz: str, month: int) -> None:
    zone, rng = ZoneInfo(tz), random.Random(month)
    midnights = [datetime(2026, month, day, tzinfo=zone) for day in range(1, 29)]
    edges = [(moment - EPOCH) // timedelta(microseconds=1) for moment in midnights]
    store = StoreDirectory(tmp_path / "events", group_rows=512)
    store.append(
        [make_row(rng, timestamp=edge + rng.choice([-1, -1000, 0, 1, HOUR])) for edge in edges for _ in range(5)]
    )
    engine = store.engine()
    found = check(store, engine, interval="day", tz=tz, measures=("requests", "cost_usd"))
    (group,) = found["groups"]
    for name in ("requests", "cost_usd"):
        assert sum(Fraction(point[name]) for point in group["series"]) == Fraction(found["total"][name])
    for at in (edges[3], edges[3] - 1):
        day = ask(store, engine, interval="day", tz=tz, times=Times(at, at + 1))
        assert day["total"]["requests"] == sum(row["timestamp"] == at for row in store.rows)


def test_a_question_has_an_end(store: StoreDirectory) -> None:
    engine = store.engine(timeout=0.0)
    engine.start()
    with pytest.raises(Refused) as raised:
        ask(store, engine, group_by=("user_id",))
    assert raised.value.reason == "query_too_heavy"
