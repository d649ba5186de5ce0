"""Query parameters of the reads of events: what is taken, what is refused and by which name."""

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from processor.core.clock import DAY, HOUR, parse_timestamp
from processor.core.money import MAX_COST, PICO
from server import position
from server.errors import Refused
from server.explore import measures, metrics, prompts, question_params, sessions
from server.explore.filter_params import parse_tag, parse_tag_key
from server.explore.metric_params import DEFAULT_MEASURES, GROUPS, PLAIN_MEASURES, SCORES, STATISTICS, is_measure
from server.explore.question_params import Inquiry
from server.explore.questions import TEXT_FILTERS, Filters, Question, Times

NOW: Final = parse_timestamp("2026-04-20T12:00:00Z")
IDENTITY: Final = "fa4e"

LISTS: Final[dict[str, Callable[[Inquiry], Any]]] = {
    "events": question_params.parse_events,
    "traces": question_params.parse_traces,
    "sessions": question_params.parse_sessions,
    "metrics": question_params.parse_metrics,
    "prompts": question_params.parse_prompts,
    "export": question_params.parse_export,
}
"""Reads with filters and a range."""
ALL: Final[dict[str, Callable[[Inquiry], Any]]] = {
    **LISTS,
    "event": lambda inquiry: question_params.parse_event(inquiry, "e"),
    "new_events": lambda inquiry: question_params.parse_new_events(inquiry)[0],
    "trace": lambda inquiry: question_params.parse_trace(inquiry, "t"),
    "session": lambda inquiry: question_params.parse_session(inquiry, "s"),
}


def inquiry(*pairs: tuple[str, str]) -> Inquiry:
    return Inquiry("acme", pairs, NOW, IDENTITY)


def filters(*pairs: tuple[str, str]) -> Filters:
    return question_params.parse_events(inquiry(*pairs)).filters


def refused(parse: Callable[[Inquiry], Any], *pairs: tuple[str, str]) -> Refused:
    with pytest.raises(Refused) as caught:
        parse(inquiry(*pairs))
    return caught.value


# --- filters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXT_FILTERS)
def test_every_field_can_be_asked_for_and_excluded(name: str) -> None:
    value = {"provider": "openai", "operation": "chat", "status": "error"}.get(name, "a:b,c")
    found = filters((name, value), (name, ""), (name, value), (f"{name}!", value))
    assert found.equal == {name: (value, None)}
    assert found.unequal == {name: (value,)}


@pytest.mark.parametrize(
    ("alias", "name"), [("userId", "user_id"), ("sessionId", "session_id"), ("traceId", "trace_id")]
)
def test_names_of_other_services_are_taken(alias: str, name: str) -> None:
    found = filters((alias, "a"), (name, "b"), (f"{alias}!", "c"))
    assert found.equal == {name: ("a", "b")}
    assert found.unequal == {name: ("c",)}


def test_values_are_never_split() -> None:
    assert filters(("model", "a,b"), ("model", "c")).equal == {"model": ("a,b", "c")}


def test_tools_and_tags() -> None:
    found = filters(("tool", "search"), ("tool", ""), ("tool!", "x"), ("tag", "team:search:2"), ("tag!", "beta:"))
    assert found.tools == ("search", None)
    assert found.no_tools == ("x",)
    assert found.tags == (("team", "search:2"),)
    assert found.no_tags == (("beta", None),)


def test_event_ids_are_asked_for_as_they_are_stored() -> None:
    assert filters(("event_id", "ABC")).equal == {"event_id": ("abc",)}
    assert question_params.parse_event(inquiry(), "ABC").event_id == "abc"


@pytest.mark.parametrize(
    ("pairs", "kinds"),
    [
        ([], "call"),
        ([("kind", "span")], "span"),
        ([("kind", "all")], "all"),
        ([("kind", "call"), ("kind", "span")], "all"),
        ([("kind!", "call")], "span"),
        ([("kind", "all"), ("kind!", "span")], "call"),
    ],
)
def test_kinds(pairs: list[tuple[str, str]], kinds: str) -> None:
    assert filters(*pairs).kinds == kinds


def test_traces_and_sessions_are_of_all_kinds() -> None:
    assert {name: parse(inquiry()).filters.kinds for name, parse in LISTS.items()} == {
        "events": "call",
        "traces": "all",
        "sessions": "all",
        "metrics": "call",
        "prompts": "call",
        "export": "call",
    }


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("0", 0, 0),
        ("0.0034", 3_400_000_000, 3_400_000_000),
        ("1e-3", 10**9, 10**9),
        ("0.0000000000015", 2, 1),
        ("1000000", MAX_COST * PICO, MAX_COST * PICO),
        ("9" * 40, MAX_COST * PICO + 1, MAX_COST * PICO + 1),
        ("1e99", MAX_COST * PICO + 1, MAX_COST * PICO + 1),
    ],
)
def test_bounds_of_cost_are_exact(text: str, least: int, most: int) -> None:
    found = filters(("min_cost_usd", text), ("max_cost_usd", text))
    assert (found.min_cost, found.max_cost) == (least, most)


def test_bounds_of_latency() -> None:
    found = filters(("min_latency_ms", "0.5"), ("max_latency_ms", "1" + "0" * 30))
    assert (found.min_latency, found.max_latency) == (0.5, 1e30)


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "start", "end"),
    [
        ([], NOW - DAY, None),
        ([("start", "2026-04-19")], NOW - 36 * HOUR, NOW),
        ([("end", "2026-04-19")], NOW - 60 * HOUR, NOW - 36 * HOUR),
        ([("start", "2026-04-19T10:00:00+02:00"), ("end", "2026-04-18")], NOW - 28 * HOUR, NOW - 60 * HOUR),
        ([("start", "2025-03-16"), ("end", "2026-04-20")], NOW - 400 * DAY - 12 * HOUR, NOW - 12 * HOUR),
        ([("trace_id", "t")], None, None),
        ([("session_id", "s"), ("start", "2000-01-01")], NOW - 9606 * DAY - 12 * HOUR, None),
        ([("event_id", "e"), ("end", "2026-04-20")], None, NOW - 12 * HOUR),
        ([("trace_id!", "t")], NOW - DAY, None),
        ([("session_id", ""), ("session_id", "s")], NOW - DAY, None),
    ],
)
def test_ranges(pairs: list[tuple[str, str]], start: int | None, end: int | None) -> None:
    for name in ("events", "traces", "sessions", "metrics"):
        assert LISTS[name](inquiry(*pairs)).times == Times(start, end)


@pytest.mark.parametrize("name", LISTS)
def test_wide_ranges(name: str) -> None:
    for pairs in (
        [("start", "2025-03-15T23:59:59.999999Z"), ("end", "2026-04-20")],
        [("start", "2020-01-01")],
        [("start", "0001-01-01"), ("end", "9999-12-31")],
        [("start", "2020-01-01"), ("session_id", "")],
    ):
        assert refused(LISTS[name], *pairs).reason == "range_too_wide"


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "name", "value"),
    [
        *((read, "colour", "red") for read in ALL),
        *((read, "model", "m") for read in ("event", "trace", "session")),
        *((read, "start", "2026-04-20") for read in ("event", "trace", "session", "new_events")),
        *((read, "cursor", "x" * 2049) for read in ("events", "traces", "sessions", "prompts")),
        *((read, "cursor", "") for read in ("events", "traces", "sessions", "prompts")),
        *((read, "limit", value) for read in ("events", "traces") for value in ("0", "201", "-1", "1.0", "", "٣")),
        ("metrics", "limit", "1001"),
        ("metrics", "cursor", "x"),
        ("export", "limit", "10"),
        ("events", "order", "up"),
        ("events", "sort", "start"),
        ("events", "extra", "all"),
        ("event", "extra", "none"),
        ("traces", "sort", "calls"),
        ("trace", "format", "otlp"),
        ("sessions", "sort", "errors"),
        ("prompts", "sort", "name"),
        ("export", "format", "xlsx"),
        ("metrics", "measures", "median"),
        ("metrics", "measures", "latency_ms"),
        ("metrics", "measures", "cost_usd:p50"),
        ("metrics", "measures", "score:helpful:p90"),
        ("metrics", "group_by", "cost_usd"),
        ("metrics", "group_by", "tag:a:b"),
        ("metrics", "interval", "year"),
        ("metrics", "tz", "Mars/Base"),
        ("metrics", "tz", "../../etc/passwd"),
        ("metrics", "sort", "errors"),
        ("events", "provider", "acme"),
        ("events", "operation!", "sing"),
        ("events", "status", "ok"),
        ("events", "kind", "agent"),
        ("events", "kind", ""),
        ("events", "kind!", "all"),
        ("events", "tag", "team"),
        ("events", "tag", ""),
        ("events", "tag!", r"te\am:x"),
        ("events", "tag", "team\\"),
        ("events", "start", "yesterday"),
        ("events", "end", ""),
        ("events", "min_cost_usd", "-1"),
        ("events", "max_cost_usd", "NaN"),
        ("events", "min_cost_usd", "1e999999999"),
        ("events", "min_latency_ms", "inf"),
        ("events", "min_cost_usd!", "1"),
        ("events", "after", "nothing"),
        ("trace", "after", f"{IDENTITY}1_0-5"),
    ],
)
def test_what_is_wrong_is_named(read: str, name: str, value: str) -> None:
    found = refused(ALL[read], (name, value))
    assert found.reason == "bad_request"
    assert name in found.message


@pytest.mark.parametrize(
    "name", ["start", "end", "limit", "cursor", "order", "min_cost_usd", "projectId", "after", "extra"]
)
def test_what_is_no_filter_is_given_once(name: str) -> None:
    value = {"start": "2026-04-20", "end": "2026-04-20", "order": "asc", "projectId": "acme", "extra": "none"}
    found = refused(question_params.parse_events, *[(name, value.get(name, "1"))] * 2)
    assert found.message == f"{name} must be given once"


@pytest.mark.parametrize("read", ALL)
def test_another_project_is_forbidden(read: str) -> None:
    assert refused(ALL[read], ("projectId", "other")).reason == "forbidden"
    assert ALL[read](inquiry(("projectId", "acme"))).project == "acme"


def test_what_is_known_is_listed() -> None:
    assert refused(ALL["trace"], ("x", "")).message == (
        "unknown parameter 'x'; known are projectId, after, extra, format"
    )


# --- metrics, pages, positions ---------------------------------------------------------------------------------------


def test_metrics() -> None:
    found = question_params.parse_metrics(
        inquiry(
            ("group_by", "model"),
            ("group_by", r"tag:a\:b"),
            ("group_by", "model"),
            ("measures", "latency_ms:p95"),
            ("measures", "score:a:b:sd"),
            ("interval", "day"),
            ("tz", "Europe/Berlin"),
            ("sort", "score:a:b:sd"),
            ("limit", "1000"),
        )
    )
    assert found.group_by == ("model", "tag:a:b")
    assert found.measures == ("latency_ms:p95", "score:a:b:sd")
    assert (found.interval, found.tz, found.sort, found.limit) == ("day", "Europe/Berlin", "score:a:b:sd", 1000)
    usual = question_params.parse_metrics(inquiry())
    assert (usual.measures, usual.interval, usual.tz, usual.sort, usual.limit) == (
        DEFAULT_MEASURES,
        "none",
        "UTC",
        None,
        100,
    )


def test_groups_and_measures_are_bounded() -> None:
    assert "3 times" in refused(ALL["metrics"], *[("group_by", f"tag:{n}") for n in range(4)]).message
    assert "32 times" in refused(ALL["metrics"], *[("measures", f"score:{n}:avg") for n in range(33)]).message


def test_measures() -> None:
    assert all(map(is_measure, PLAIN_MEASURES))
    assert all(map(is_measure, ("ttft_ms:p99", "cost_usd:sd", "score::count", "score:a\nb:avg")))
    assert not any(map(is_measure, ("", "score", "score:x", "latency_ms:", "requests:avg", "tokens")))


def test_what_can_be_asked_for_is_answered() -> None:
    assert sorted(question_params.PROMPT_SORTS) == sorted(prompts.SORTS)
    assert set(question_params.SESSION_SORTS) == set(sessions.VALUES)
    assert metrics.MULTI in GROUPS
    names = [*PLAIN_MEASURES, *(f"{field}:{each}" for field, words in STATISTICS.items() for each in words)]
    found, _ = measures.measures([*names, *(f"score:x:{each}" for each in SCORES)])
    assert len(found) == len(names) + len(SCORES)


def test_pages() -> None:
    found = question_params.parse_events(
        inquiry(("limit", "200"), ("cursor", "abc_-"), ("order", "asc"), ("extra", "none"))
    )
    assert (found.limit, found.cursor, found.order, found.extra) == (200, "abc_-", "asc", False)
    usual = question_params.parse_events(inquiry())
    assert (usual.limit, usual.cursor, usual.order, usual.extra) == (50, None, "desc", True)


def test_positions() -> None:
    token = position.encode(IDENTITY, {0: 5, 3: 1})
    for parse in ALL.values():
        assert parse(inquiry(("after", token))).after == {0: 5, 3: 1}


def test_the_stream_resumes_by_a_parameter_too() -> None:
    question, token = question_params.parse_new_events(inquiry(("lastEventId", "x"), ("model", "m")))
    assert (question.position, question.filters.equal, token) == (None, {"model": ("m",)}, "x")


# --- whatever is sent ------------------------------------------------------------------------------------------------

NAMES: Final = (
    *TEXT_FILTERS,
    *("userId", "tool", "tag", "kind", "min_cost_usd", "max_latency_ms", "start", "end", "limit", "cursor", "order"),
    *("sort", "format", "extra", "group_by", "measures", "interval", "tz", "projectId", "after", "lastEventId", "x"),
)
VALUES: Final = st.one_of(
    st.text(),
    st.text(st.characters(codec=None, categories=None)),
    st.sampled_from(
        ["", "1", "acme", "2026-04-20", "2026-04-20T00:00:00Z", "tag:a", "score:a:avg", "day", "a:b", "none"]
    ),
    st.from_regex(r"[0-9.eE+-]{1,30}", fullmatch=True),
    st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9:.]{8,12}(Z|[+-][0-9:]{5}))?", fullmatch=True),
)


def _pairs() -> st.SearchStrategy[list[tuple[str, str]]]:
    names = st.one_of(st.sampled_from(NAMES), st.sampled_from([f"{name}!" for name in NAMES]), VALUES)
    return st.lists(st.tuples(names, VALUES), max_size=6)


@given(_pairs(), st.sampled_from(sorted(ALL)))
@example([("model", "\udcff")], "events")
@example([("\ud800", "")], "trace")
@example([("start", "0001-01-01T00:00:00+23:59")], "metrics")
@example([("min_latency_ms", "9e99")], "export")
def test_nothing_but_refusals(pairs: Iterable[tuple[str, str]], read: str) -> None:
    found = outcome(ALL[read], inquiry(*pairs))
    if isinstance(found, Refused):
        assert found.reason in {"bad_request", "forbidden", "range_too_wide"}
        assert found.message.encode()
    else:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Question) == found


def outcome(parse: Callable[[Inquiry], Question], sent: Inquiry) -> Question | Refused:
    try:
        return parse(sent)
    except Refused as refused:
        return refused


def escape_tag_key(key: str) -> str:
    """A key as it stands in `tag=KEY:VALUE` and `tag:KEY`."""
    return key.replace("\\", "\\\\").replace(":", "\\:")


@given(st.text(), st.text(min_size=1))
@example("a:b\\", ":")
def test_tags_survive_their_escapes(key: str, value: str) -> None:
    assert parse_tag("tag", f"{escape_tag_key(key)}:{value}") == (key, value)
    assert parse_tag("tag", f"{escape_tag_key(key)}:") == (key, None)
    assert parse_tag_key("group_by", escape_tag_key(key)) == key


@given(st.text(alphabet=":\\ab"))
def test_a_tag_that_is_read_is_written_the_same(text: str) -> None:
    try:
        key, value = parse_tag("tag", text)
    except Refused:
        return
    assert f"{escape_tag_key(key)}:{value or ''}" == text
