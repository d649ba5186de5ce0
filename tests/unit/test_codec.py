"""The fast way and the slow way agree, and the two wires agree (the table of cases is in tests/contract)."""

import math
import re
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import format_timestamp, parse_timestamp
from processor.core.events import codec
from processor.core.events.codec import decode, decode_event
from processor.core.events.columns import SPAN_FLAG, UNPRICED_FLAG, Columns
from processor.core.events.event import MAX_EVENT_BYTES
from processor.core.events.fields import RULES
from processor.core.events.latency import bucket_of
from tests.support import slow_way
from tests.support.events import ABSENT, Num, make_event, to_json_line, to_proto
from tests.support.examples import examples

NOW = 1_790_000_000_000_000

texts = st.text(max_size=12)
odd: dict[str, st.SearchStrategy[Any]] = {
    "user_id": st.one_of(st.none(), texts, st.just("x" * 257), st.integers()),
    "model": st.one_of(st.none(), texts, st.just(ABSENT)),
    "latency_ms": st.one_of(
        st.integers(-1, 5), st.floats(0, 10), st.sampled_from([Num("1e400"), Num("-0"), "7", True])
    ),
    "input_tokens": st.one_of(
        st.integers(-1, 3), st.sampled_from([Num("5.0"), Num("1e2"), Num("5.5"), 2**53 - 1, 2**53, None])
    ),
    "cost_usd": st.one_of(
        st.decimals(0, 10, places=6), st.sampled_from([None, Num("1e-13"), Num("1000000.1"), Num("-0"), "0.1", ABSENT])
    ),
    "cached_tokens": st.sampled_from([ABSENT, None, 0, 1, 20_000, 2**53 - 1, 2**53, Num("5e2"), "7"]),
    "trace_id": st.sampled_from(["", "t", ABSENT]),
    "environment": st.sampled_from(["", "production", None]),
    "sdk_version": st.sampled_from(["", "1", ABSENT]),
    "status": st.sampled_from(["success", "error", "unknown", "", None, ABSENT, 3]),
    "provider": st.sampled_from(["openai", "acme", None]),
    "stream": st.sampled_from([True, False, None, 1, "true"]),
    "tags": st.one_of(st.none(), st.dictionaries(texts, texts, max_size=3), st.just({"a": 1}), st.just([])),
    "eval_scores": st.sampled_from([None, {}, {"a": 0.5}, {"a": "x"}, {"a": None}, {"a": Num("1e999")}]),
    "tools_used": st.sampled_from([None, [], ["a"], [1], "a"]),
    "timestamp": st.sampled_from(
        [
            "2026-04-20T10:00:00Z",
            "2026-04-20T10:00:00.1234567Z",
            "2016-12-31T23:59:60Z",
            "2016-12-31T23:59:60.000Z",
            "2026-04-20",
            "2999-01-01T00:00:00Z",
            5,
            None,
        ]
    ),
    "event_id": st.sampled_from(["nope", "550E8400-E29B-41D4-A716-446655440001", None, 1]),
    "kind": st.sampled_from(["call", "span", "span", "span", "agent", "", None, 1, ["span"]]),
    "name": st.sampled_from(["plan", "plan", "\u00fc", "", "x" * 256, "x" * 257, None, 7, {"a": 1}]),
    "cache_write_tokens": st.sampled_from([ABSENT, None, 0, 1, -1, 2**53 - 1, 2**53, Num("5e2"), "7"]),
    "reasoning_tokens": st.sampled_from([ABSENT, None, 0, 3, -1, 2**53, Num("5.0"), True]),
    "operation": st.sampled_from(["chat", "tts", "dance", "", ABSENT, None]),
    "output_tokens": st.sampled_from([0, 7, -1, ABSENT, None]),
    "surprise": st.recursive(
        st.none() | st.integers() | texts, lambda inner: st.lists(inner, max_size=3), max_leaves=5
    ),
}


steps: dict[str, st.SearchStrategy[Any]] = {
    "provider": st.sampled_from([ABSENT, None, "openai", "", "acme"]),
    "model": st.sampled_from([ABSENT, None, "m", "", "x" * 257]),
    "operation": st.sampled_from([ABSENT, None, "tts", "", "dance"]),
    "stream": st.sampled_from([ABSENT, None, True]),
    "input_tokens": st.sampled_from([ABSENT, None, 0, 5, -1]),
    "output_tokens": st.sampled_from([ABSENT, None, 0, 5]),
    "cached_tokens": st.sampled_from([ABSENT, None, 0, 9]),
    "cost_usd": st.sampled_from([ABSENT, None, 0, Num("0.0"), Num("0e5"), Num("-0"), Num("0.1"), Num("1e-400")]),
    "cache_write_tokens": odd["cache_write_tokens"],
    "name": odd["name"],
    "latency_ms": st.sampled_from([0, 1.5, ABSENT]),
    "surprise": st.sampled_from([ABSENT, {"a": [1]}]),
}
"""What may be odd about a span."""


def a_step(overrides: dict[str, Any]) -> dict[str, Any]:
    return make_event(**{"kind": "span", "name": "plan", "cost_usd": ABSENT, **overrides})


@examples(150)
@given(
    st.sampled_from(["json", "protobuf"]),
    st.lists(st.fixed_dictionaries({}, optional=steps), min_size=1, max_size=3),
    st.integers(0, 2 * codec.FEW),
    st.integers(0, 2 * codec.FEW),
    st.sampled_from(["partial", "strict", "lenient"]),
    st.randoms(use_true_random=True),
)
def test_spans_among_calls_are_what_each_is_alone(
    payload: codec.PayloadFormat, odd_ones: list[Any], spans: int, usual: int, handling: Any, random: Any
) -> None:
    events = [a_step(overrides) for overrides in odd_ones]
    events += [a_step({"model": random.choice([ABSENT, "m"]), "stream": ABSENT}) for _ in range(spans)]
    events += [usual_event(random) for _ in range(usual)]
    random.shuffle(events)
    if payload == "protobuf":
        events = [
            {name: value for name, value in event.items() if not (name == "name" and not isinstance(value, str))}
            for event in events
        ]
        for event in events:
            if isinstance(event.get("cache_write_tokens"), str):
                event["cache_write_tokens"] = 7
            if event.get("cache_write_tokens") == 2**53 or event.get("name") is None:
                event.pop("cache_write_tokens", None)
    encoded = [to_json_line(e) if payload == "json" else to_proto(e).SerializeToString() for e in events]
    agrees_with_the_slow_way(payload, encoded, handling)
    agrees_with_the_slow_way(payload, encoded, handling, rules=4)


@given(st.fixed_dictionaries({}, optional=odd), st.sampled_from(["partial", "strict", "lenient"]))
def test_the_fast_way_takes_what_the_slow_way_takes(overrides: dict[str, Any], handling: Any) -> None:
    agrees_with_the_slow_way("json", [to_json_line(make_event(**overrides))], handling)
    agrees_with_the_slow_way("json", [to_json_line(make_event(**overrides))], handling, rules=4)


def agrees_with_the_slow_way(
    payload: codec.PayloadFormat, records: list[bytes], handling: Any, rules: int = RULES
) -> None:
    decoded = decode(payload, records, handling, NOW, rules=rules)
    assert slow_way.plain(decoded) == slow_way.plain(slow_way.decode(payload, records, handling, NOW, rules))


def plain(columns: Columns) -> tuple[Any, ...]:
    """As values that can be compared; the order of the two dictionaries counts too."""
    return columns.rows.tobytes(), columns.users, columns.dims, columns.records


@examples(150)
@given(
    st.lists(st.fixed_dictionaries({}, optional=odd), max_size=2),
    st.integers(0, 2 * codec.FEW),
    st.sampled_from(["partial", "strict", "lenient"]),
    st.randoms(use_true_random=True),
)
def test_many_at_a_time_are_what_each_is_alone(odd_ones: list[Any], usual: int, handling: Any, random: Any) -> None:
    events = [make_event(**overrides) for overrides in odd_ones]
    events += [usual_event(random) for _ in range(usual)]
    random.shuffle(events)
    agrees_with_the_slow_way("json", [to_json_line(event) for event in events], handling)


LACKING: dict[str, Any] = {
    "cost_usd": [ABSENT, None],
    "input_tokens": [ABSENT, None, 0, 5],
    "output_tokens": [ABSENT, None, 0, 5],
    "provider": [ABSENT, None, "custom", "google"],
    "operation": [ABSENT, None, "embed"],
    "model": [ABSENT, None, "m"],
    "stream": [ABSENT, None, True],
    "cached_tokens": [ABSENT, 9],
    "surprise": [ABSENT, 1],
}


@examples(100)
@given(
    st.sampled_from(["json", "protobuf"]),
    st.booleans(),
    st.lists(st.fixed_dictionaries({}, optional=steps), max_size=1),
    st.randoms(use_true_random=True),
)
def test_calls_that_lack_a_cost_are_what_each_is_alone(
    payload: codec.PayloadFormat, plain_calls: bool, odd_ones: list[Any], random: Any
) -> None:
    events = [] if plain_calls else [a_step(overrides) for overrides in odd_ones]
    names = ["cost_usd"] if payload == "protobuf" or random.random() < 0.3 else list(LACKING)
    for _ in range(2 * codec.FEW):
        lacks = {name: random.choice(LACKING[name]) for name in names if random.random() < 0.7}
        events.append({**usual_event(random), **lacks})
    events = [{name: value for name, value in event.items() if value is not ABSENT} for event in events]
    random.shuffle(events)
    if payload == "protobuf":
        events = [event for event in events if is_of_the_schema(event)]
    encoded = [to_json_line(e) if payload == "json" else to_proto(e).SerializeToString() for e in events]
    for handling in ("lenient", "partial"):
        agrees_with_the_slow_way(payload, encoded, handling)
        agrees_with_the_slow_way(payload, encoded[: codec.FEW], handling)
    agrees_with_the_slow_way(payload, encoded, "lenient", rules=4)


def is_of_the_schema(event: dict[str, Any]) -> bool:
    try:
        to_proto(event)
    except (AttributeError, TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_calls_without_a_cost_are_decoded_at_once(
    payload: codec.PayloadFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [make_event(cost_usd=ABSENT if number % 3 else None) for number in range(20)]
    events += [make_event(), make_event(kind="span", name="plan", cost_usd=ABSENT)]
    encoded = [to_json_line(e) if payload == "json" else to_proto(e).SerializeToString() for e in events]
    monkeypatch.setattr(codec, "_one_by_one", None)
    flags = decode(payload, encoded, "lenient", NOW).columns.rows["flags"].tolist()
    assert flags == [UNPRICED_FLAG] * 20 + [0, SPAN_FLAG]
    columns = codec.decode_together(payload, [encoded], "lenient", NOW)
    assert columns is not None
    assert columns.rows["flags"].tolist() == flags
    monkeypatch.undo()
    monkeypatch.setattr(codec, "check", None)
    assert decode(payload, encoded[:2], "lenient", NOW).columns.rows["flags"].tolist() == [UNPRICED_FLAG] * 2


def usual_event(random: Any) -> dict[str, Any]:
    """One of those that are decoded many at a time."""
    return make_event(
        user_id=random.choice([None, ABSENT, "", "u1", "u2", "ü"]),
        model=random.choice(["a", "b"]),
        environment=random.choice(["production", "\U0001f600"]),
        operation=random.choice(["chat", "tts"]),
        status=random.choice(["success", "error"]),
        timestamp=f"2026-04-20T{random.randrange(24):02d}:00:00.{random.randrange(1000):03d}Z",
        input_tokens=random.choice([0, 1, 2**53 - 1]),
        cached_tokens=random.choice([ABSENT, None, 0, 7, 20_000]),
        cost_usd=random.choice([0, Decimal("0.0034"), Decimal("0.0000000000015"), 1_000_000, Num("3e-05")]),
        project_id=random.choice([ABSENT, None, "other"]),
        **random.choice([{}, {}, {}, {"name": "n", "cache_write_tokens": 3}, {"kind": "call", "reasoning_tokens": 1}]),
        event_id=random.choice([str, lambda text: str(text).upper()])(make_event()["event_id"]),
    )


BREAKS: list[bytes] = [
    b"",
    b"{",
    b"null",
    b'{"a":"\xff"}',
    b"{} {}",
    b'{"unknown":' + b"[" * 64 + b"]" * 64 + b"}",
    to_json_line(make_event())[:-1] + b',"unknown":"\xff"}',
    to_json_line(make_event())[:-1] + b',"unknown":"\\ud800"}',
    to_json_line(make_event())[:-1] + b',"unknown":' + b"[" * 63 + b"]" * 63 + b"}",
    to_json_line(make_event())[:-1] + b',"unknown":' + b"[" * 64 + b"]" * 64 + b"}",
    to_json_line(make_event())[:-1] + b',"unknown":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    to_json_line(make_event())[:-1] + b',"project_id":' + b"[" * 64 + b"]" * 64 + b"}",
    to_json_line(make_event())[:-1] + b',"project_id":5}',
    to_json_line(make_event())[:-1] + b',"kind":"\\ud800"}',
    to_json_line(make_event())[:-1] + b',"name":"\xff"}',
    to_json_line(make_event())[:-1] + b',"name":' + b"[" * 63 + b"]" * 63 + b"}",
    to_json_line(make_event())[:-1] + b',"name":' + b"[" * 64 + b"]" * 64 + b"}",
    to_json_line(make_event())[:-1] + b',"kind":"s\\u0070an","name":"\\u00fc"}',
    to_json_line(make_event(kind="span", name="x", cost_usd=ABSENT))[:-1] + b',"cost_usd":[0,\n0]}',
    to_json_line(make_event(error_message="x" * MAX_EVENT_BYTES)),
    to_json_line(make_event(cost_usd=ABSENT))[:-1] + b',"cost_usd":' + b"[" * 64 + b"]" * 64 + b"}",
    to_json_line(make_event(cost_usd=ABSENT))[:-1] + b',"cost_usd":[1,\n2]}',
    to_json_line(make_event()) + to_json_line(make_event()),
    to_json_line(make_event()) + b"," + to_json_line(make_event()),
]


@pytest.mark.parametrize("line", BREAKS, ids=range(len(BREAKS)))
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("place", [0, 10, 20])
def test_a_bad_line_among_good_ones(line: bytes, known: bool, place: int) -> None:
    lines = [to_json_line(make_event(**({} if known else {"unknown": 1}))) for _ in range(20)]
    agrees_with_the_slow_way("json", [*lines[:place], line, *lines[place:]], "partial")


def test_events_that_share_lines_are_not_taken() -> None:
    """Two events on one line and none on another, or one on two lines, are as many events as lines."""
    lines = [to_json_line(make_event()) for _ in range(20)]
    middle = lines[7].index(b",")
    for broken in (
        [*lines[:5], lines[5] + lines[6], b"", *lines[7:]],
        [*lines[:7], lines[7][:middle], lines[7][middle:], *lines[8:]],
        [lines[0] + lines[1], lines[7][:middle], lines[7][middle:], *lines[8:]],
    ):
        agrees_with_the_slow_way("json", broken, "partial")


@pytest.mark.parametrize(
    ("line", "code", "field"),
    [
        (b"", "syntax", None),
        (b"{", "syntax", None),
        (b"[]", "invalid", None),
        (b"null", "invalid", None),
        (b'{"event_id": NaN}', "syntax", "event_id"),
        (b'{"a":"\xff"}', "syntax", None),
        (b'{"a":"\\ud800"}', "syntax", None),
        (b'{"a":01}', "syntax", None),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "out_of_range", None),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "out_of_range", None),
        (b'{"a":"' + b"x" * MAX_EVENT_BYTES + b'"}', "out_of_range", None),
        (b"{}", "missing", "event_id"),
    ],
)
def test_what_is_no_event_at_all(line: bytes, code: str, field: str | None) -> None:
    [(index, fault)] = decode("json", [line], "partial", NOW).faults
    assert (index, fault.code, fault.field) == (0, code, field)


ID = "550e8400-e29b-41d4-a716-446655440001"
LINE = to_json_line(make_event(event_id=ID))
HALF = LINE[:-1] + b',"error_message":"cut here \\ud83d"}'


@pytest.mark.parametrize(
    ("line", "field", "says"),
    [
        (HALF, "error_message", r"half a character \(\\ud83d without its pair\)"),
        (HALF.replace(b'ud83d"', b'ud83d."'), "error_message", r"half a character \(\\ud83d"),
        (HALF.replace(b"ud83d", b"ude00"), "error_message", r"half a character \(\\ude00"),
        (HALF.replace(b"error_message", b"note"), None, r"half a character .* \(in 'note'\)"),
        (LINE.replace(b"843", b"NaN"), "latency_ms", "NaN is not a number of JSON"),
        (LINE.replace(b"0.0034", b"-Infinity"), "cost_usd", "-Infinity is not a number of JSON"),
        (LINE[:-1] + b',"eval_scores":{"a":NaN}}', "eval_scores", "NaN is not a number of JSON"),
        (LINE.replace(b"843", b"0843"), "latency_ms", "Expecting ',' or '}' at character"),
        (LINE.replace(b"false", b"False"), "stream", "Expecting value at character"),
        (LINE.replace(b"gpt-4o", b"gpt\x01"), "model", "Invalid control character"),
        (LINE.replace(b"gpt-4o", b"gpt\xf0\x9f"), "model", r"not valid UTF-8 at byte \d+ \(in 'model'\)"),
        (LINE[:-1], "sdk_version", "the line ends too early"),
        (LINE[:-3], "sdk_version", "the line ends inside of the string that begins at character"),
        (LINE + b"x", None, f"something follows the object, at character {len(LINE) + 1}"),
        (LINE + LINE, None, f"something follows the object, at character {len(LINE) + 1}"),
    ],
)
def test_a_line_that_is_no_json_is_told_why_and_where(line: bytes, field: str | None, says: str) -> None:
    [(_, fault)] = decode("json", [line], "partial", NOW).faults
    assert (fault.code, fault.field, fault.event_id) == ("syntax", field, ID)
    assert re.search(says, str(fault))
    assert "truncated" not in str(fault)
    assert msgspec.json.decode(msgspec.json.encode([fault.event_id, fault.field, str(fault)]))


def test_a_line_of_utf_16_is_told_so() -> None:
    [(_, fault)] = decode("json", [LINE.decode().encode("utf-16")], "partial", NOW).faults
    assert (fault.code, str(fault)) == ("syntax", "not valid UTF-8 but UTF-16: send UTF-8")


def test_an_id_that_is_no_text_is_not_repeated() -> None:
    for event_id in (b'"\\ud83d"', b'"' + b"x" * 257 + b'"', b"7", b'"\xff"'):
        [(_, fault)] = decode("json", [b'{"event_id":%b,"model":NaN}' % event_id], "partial", NOW).faults
        assert (fault.code, fault.event_id) == ("syntax", None)


def test_only_the_first_bad_lines_of_a_request_are_looked_into() -> None:
    bad, encoded = LINE[:-1] + b',"note":NaN}', LINE[:-1] + b',"note":"\xff"}'
    lines = [bad if number % 2 else encoded for number in range(100)]
    lines[3] = LINE  # a good one costs nothing of what there is for the bad ones
    lines[5] = HALF.replace(b"cut here", b"x" * 5_000)  # nor does one that is too long to be looked into
    lines[7] = b'{"event_id":7}'  # nor one that is JSON
    faults = dict(decode("json", lines, "partial", NOW).faults)
    known = [number for number, fault in faults.items() if fault.code == "syntax" and fault.event_id == ID]
    assert known == [0, 1, 2, 4, 6, *range(8, 19)]
    assert str(faults[18]).startswith("not valid UTF-8 at byte")
    assert "(in 'note')" in str(faults[18])
    assert str(faults[20]) == str(faults[18]).removesuffix(" (in 'note')")
    assert "NaN is not a number" in str(faults[17])
    assert str(faults[19]).startswith("not valid JSON: ")
    assert "NaN" not in str(faults[19])
    assert len(faults) == 99
    again = dict(decode("json", lines, "partial", NOW).faults)
    assert [(str(fault), fault.event_id) for fault in again.values()] == [
        (str(fault), fault.event_id) for fault in faults.values()
    ]


def test_a_long_line_that_is_no_json_is_not_called_truncated_and_costs_little() -> None:
    line = HALF.replace(b"cut here", b"x" * 200_000)
    many = b'{"event_id":"x",' + b'"a":1,' * 5_000 + b'"b":NaN}'
    for record in (line, many):
        [(_, fault)] = decode("json", [record], "partial", NOW).faults
        assert (fault.code, fault.field) == ("syntax", None)
        assert "truncated" not in str(fault)


@given(st.binary(max_size=40), st.integers(0, len(LINE)), st.booleans())
def test_whatever_a_line_holds_its_fault_can_be_sent(noise: bytes, at: int, cut: bool) -> None:
    line = LINE[:at] + noise + (b"" if cut else LINE[at:])
    for _, fault in decode("json", [line], "partial", NOW).faults:
        msgspec.json.encode([fault.event_id, fault.field, str(fault)])


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("tags", {"team": "x", "tenant": 42}, "tags['tenant'] must be a string, not a number"),
        ("tags", {"ref": None}, "tags['ref'] must be a string, not null"),
        ("tags", {"a" * 100: True}, f"tags['{'a' * 64}'] must be a string, not true"),
        ("tags", ["x"], "tags must be an object of strings, not a list"),
        ("tools_used", ["a", None], "tools_used[1] must be a string, not null"),
        ("tools_used", "a", "tools_used must be a list of strings, not a string"),
        ("eval_scores", {"ok": 1, "f": "0.9"}, "eval_scores['f'] must be a number, not a string"),
        ("eval_scores", {"f": Num("1e999")}, "eval_scores['f'] is out of range"),
        ("eval_scores", 7, "eval_scores must be an object of numbers, not a number"),
    ],
)
def test_what_is_wrong_in_a_collection_is_named_by_its_key(field: str, value: Any, says: str) -> None:
    [(_, fault)] = decode("json", [to_json_line(make_event(**{field: value}))], "partial", NOW).faults
    assert (fault.field, str(fault)) == (field, says)


def test_the_other_wire_names_keys_and_ids_too() -> None:
    message = to_proto(make_event(event_id=ID, eval_scores={"f": math.nan}))
    [(_, fault)] = decode("protobuf", [message.SerializeToString()], "partial", NOW).faults
    assert (fault.field, fault.event_id) == ("eval_scores", ID)
    assert str(fault) == "eval_scores['f'] must be a number, not NaN"
    message = to_proto(make_event(event_id=ID))
    message.extra_json["note"] = "NaN"
    [(_, fault)] = decode("protobuf", [message.SerializeToString()], "partial", NOW).faults
    assert (fault.code, fault.field, fault.event_id) == ("syntax", "extra_json", ID)


def test_brackets_in_strings_are_no_nesting() -> None:
    line = to_json_line(make_event(tags={"a": "[{" * 500 + '\\"'}, deep=[[[[1]]]]))
    assert len(decode("json", [line], "partial", NOW).columns) == 1
    assert len(decode("json", [line] * 20, "partial", NOW).columns) == 20


def test_the_first_fault_in_the_order_of_the_table_is_the_one_named() -> None:
    line = to_json_line(make_event(sdk_version=ABSENT, trace_id="", input_tokens=-1))
    [(_, fault)] = decode("json", [line], "partial", NOW).faults
    assert (fault.field, fault.code) == ("trace_id", "out_of_range")
    assert fault.event_id


def test_the_last_of_duplicate_keys_wins() -> None:
    line = to_json_line(make_event())[:-1] + b',"user_id":"a","input_tokens":"x","user_id":"b","input_tokens":7}'
    columns = decode("json", [line], "partial", NOW).columns
    assert (columns.users, columns.rows["input"].tolist()) == (["b"], [7])


def test_lenient_fills_in_what_real_clients_leave_out() -> None:
    sent = make_event(
        provider="acme",
        operation=None,
        model=ABSENT,
        cost_usd=None,
        input_tokens=ABSENT,
        status=ABSENT,
        error_code="boom",
        stream=ABSENT,
        tags={"team": "x"},
    )
    for payload, record in (("json", to_json_line(sent)), ("protobuf", to_proto(sent).SerializeToString())):
        event = decode_event(payload, record, "lenient", NOW)  # type: ignore[arg-type]
        assert (event.provider, event.operation, event.model) == ("custom", "custom", "unknown")
        assert event.tags == {"team": "x", "provider.raw": "acme"}
        assert (event.cost, event.priced, event.input_tokens) == (0, False, 0)
        assert (event.status, event.stream) == ("error", False)


REQUIRED_TEXTS = ("trace_id", "span_id", "model", "environment", "sdk_version")


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("copies", [1, 2 * codec.FEW])
def test_lenient_takes_empty_texts_as_missing_ones(payload: codec.PayloadFormat, copies: int) -> None:
    sent = make_event(**dict.fromkeys(REQUIRED_TEXTS, ""), status="", error_code="boom")
    record = to_json_line(sent) if payload == "json" else to_proto(sent).SerializeToString()
    event = decode_event(payload, record, "lenient", NOW)
    assert {getattr(event, name) for name in REQUIRED_TEXTS} == {"unknown"}
    assert event.status == "error"
    columns = decode(payload, [record] * copies, "lenient", NOW).columns
    assert len(columns) == copies
    assert {dim[2:4] + dim[5:] for dim in columns.dims} == {("unknown", "unknown", "error")}
    [(_, fault)] = decode(payload, [record], "partial", NOW).faults
    assert (fault.field, fault.code) == ("trace_id", "out_of_range")


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("copies", [1, 2 * codec.FEW])
@pytest.mark.parametrize("status", ["", ABSENT])
@pytest.mark.parametrize(("error_code", "found"), [("", "success"), (ABSENT, "success"), ("boom", "error")])
def test_lenient_takes_an_empty_error_code_as_none(
    payload: codec.PayloadFormat, copies: int, status: Any, error_code: Any, found: str
) -> None:
    sent = make_event(status=status, error_code=error_code)
    record = to_json_line(sent) if payload == "json" else to_proto(sent).SerializeToString()
    assert decode_event(payload, record, "lenient", NOW).status == found
    assert {dim[5] for dim in decode(payload, [record] * copies, "lenient", NOW).columns.dims} == {found}


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("copies", [1, 2 * codec.FEW])
@pytest.mark.parametrize(
    ("inputs", "cached", "counted"),
    [(3, 20_000, 20_003), (0, 1, 1), (5, 5, 5), (6, 5, 6), (0, 0, 0), (1, 2**53 - 2, 2**53 - 1)],
)
def test_lenient_adds_cached_tokens_that_stand_beside_the_input_tokens(
    payload: codec.PayloadFormat, copies: int, inputs: int, cached: int, counted: int
) -> None:
    sent = make_event(input_tokens=inputs, cached_tokens=cached)
    record = to_json_line(sent) if payload == "json" else to_proto(sent).SerializeToString()
    assert decode_event(payload, record, "lenient", NOW).input_tokens == counted
    found = decode(payload, [record] * copies, "lenient", NOW).columns.rows
    assert set(found["input"].tolist()) == {counted}
    assert set(found["cached"].tolist()) == {cached}
    assert int(found["digest"][0]) == digest({**sent, "input_tokens": counted})  # a copy that says the sum is no other
    as_counted = decode(payload, [record] * copies, "lenient", NOW, as_counted=True).columns.rows
    for kept in (as_counted, decode(payload, [record] * copies, "partial", NOW).columns.rows):
        assert set(kept["input"].tolist()) == {inputs}


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("copies", [1, 2 * codec.FEW])
def test_a_sum_of_tokens_beyond_the_range_is_refused(payload: codec.PayloadFormat, copies: int) -> None:
    sent = make_event(input_tokens=2, cached_tokens=2**53 - 2)
    record = to_json_line(sent) if payload == "json" else to_proto(sent).SerializeToString()
    faults = decode(payload, [record] * copies, "lenient", NOW).faults
    assert [(fault.field, fault.code) for _, fault in faults] == [("cached_tokens", "out_of_range")] * copies
    assert decode(payload, [record] * copies, "lenient", NOW, as_counted=True).faults == []


def test_lenient_counts_tokens_that_were_not_sent_by_what_was_cached() -> None:
    record = to_json_line(make_event(input_tokens=ABSENT, cached_tokens=7))
    assert decode("json", [record], "lenient", NOW).columns.rows["input"].tolist() == [7]


@pytest.mark.parametrize(
    "overrides",
    [
        {"timestamp": None},
        {"timestamp": ""},
        {"event_id": None},
        {"event_id": ""},
        {"input_tokens": -1},
        {"status": "odd"},
    ],
)
def test_lenient_does_not_invent_ids_and_times_nor_bend_ranges(overrides: dict[str, Any]) -> None:
    assert decode("json", [to_json_line(make_event(**overrides))], "lenient", NOW).faults


def test_doubles_that_are_no_numbers_are_refused_on_the_other_wire() -> None:
    for name, value, code in (("latency_ms", math.nan, "invalid"), ("ttft_ms", math.inf, "out_of_range")):
        message = to_proto(make_event())
        setattr(message, name, value)
        [(_, fault)] = decode("protobuf", [message.SerializeToString()], "partial", NOW).faults
        assert (fault.field, fault.code) == (name, code)
    for text in ("", "NaN", "1,5", "1e", "0x1"):
        message = to_proto(make_event())
        message.cost_usd = text
        [(_, fault)] = decode("protobuf", [message.SerializeToString()], "partial", NOW).faults
        assert (fault.field, fault.code) == ("cost_usd", "invalid")
    [(_, fault)] = decode("protobuf", [b"\xff\xff"], "partial", NOW).faults
    assert (fault.field, fault.code) == (None, "syntax")


@given(st.decimals(min_value=0, max_value=1_000_000, allow_nan=False, allow_infinity=False, places=15))
def test_a_cost_is_the_same_over_both_wires(cost: Decimal) -> None:
    event = make_event(cost_usd=cost)
    for copies in (1, 2 * codec.FEW):
        over_json = decode("json", [to_json_line(event)] * copies, "partial", NOW).columns
        over_proto = decode("protobuf", [to_proto(event).SerializeToString()] * copies, "partial", NOW).columns
        assert plain(over_json)[:-1] == plain(over_proto)[:-1]


def test_a_copy_that_differs_has_another_digest() -> None:
    base = make_event(user_id="u", cached_tokens=1)
    kept = digest(base)
    for name, value in {
        "timestamp": "2026-04-20T10:00:00.001Z",
        "provider": "google",
        "model": "other",
        "operation": "embed",
        "user_id": "v",
        "environment": "staging",
        "status": "cancelled",
        "input_tokens": 1,
        "output_tokens": 1,
        "cached_tokens": 2,
        "cost_usd": 1,
    }.items():
        assert digest({**base, name: value}) != kept, name
    recent: list[dict[str, Any]] = [
        {"name": "a"},
        {"name": "b"},
        {"cache_write_tokens": 1},
        {"reasoning_tokens": 1},
        {"name": "a", **SPAN},
    ]
    assert len({kept, *(digest({**base, **each}) for each in recent)}) == 6
    assert digest({**base, "kind": "call", "cache_write_tokens": 0, "reasoning_tokens": 0}) == kept
    assert digest({**base, "name": "a", **SPAN, "cost_usd": None}) == digest({**base, "name": "a", **SPAN})
    same = {**base, "trace_id": "other", "event_id": base["event_id"].upper(), "timestamp": "2026-04-20T12:00:00+02:00"}
    assert digest(same) == kept


def test_the_digest_of_an_event_never_changes() -> None:
    assert digest(make_event(user_id="u", cached_tokens=1)) == 17526840914195277495
    assert digest(make_event(user_id="u", cached_tokens=1, kind="call")) == 17526840914195277495
    assert digest(make_event(user_id="u", kind="agent", name="")) == digest(make_event(user_id="u"))
    assert digest(make_event(name="n", cache_write_tokens=3, reasoning_tokens=4)) == 2444155396158550968
    assert digest(make_event(name="plan", **SPAN)) == 828516256567663540


SPAN: dict[str, Any] = {"kind": "span", "cost_usd": 0}


def digest(event: dict[str, Any]) -> int:
    """The same alone and among others."""
    line = to_json_line(event)
    alone, *others = (decode("json", [line] * copies, "partial", NOW).columns.rows["digest"] for copies in (1, 20))
    assert set(others[0].tolist()) == set(alone.tolist())
    return int(alone[0])


edges = st.sampled_from(["", "x" * 257, ABSENT, "é"])
counts = st.sampled_from([0, -1, 2**53, 2**53 - 1, ABSENT])
proto_odd: dict[str, st.SearchStrategy[Any]] = {
    "event_id": st.sampled_from(["nope", "550E8400-E29B-41D4-A716-446655440001", ABSENT]),
    **dict.fromkeys(("trace_id", "span_id", "environment", "sdk_version"), edges),
    **dict.fromkeys(("user_id", "session_id", "prompt_hash", "error_code"), edges),
    "kind": st.sampled_from(["call", "span", "span", "agent", "", ABSENT]),
    "name": st.sampled_from(["plan", "", "x" * 257, ABSENT]),
    **dict.fromkeys(("cache_write_tokens", "reasoning_tokens"), counts),
    **dict.fromkeys(
        ("input_tokens", "output_tokens", "cached_tokens"), st.sampled_from([0, -1, 7, 2**53, 2**53 - 1, ABSENT])
    ),
    **dict.fromkeys(("latency_ms", "ttft_ms"), st.sampled_from([0.0, -0.0, -1.0, math.nan, math.inf, 0.5, ABSENT])),
    "cost_usd": st.sampled_from(["", "0", "-0", "1e-13", "1000000.1", "x", "NaN", ABSENT]),
    "provider": st.sampled_from(["openai", "acme", "", ABSENT]),
    "operation": st.sampled_from(["tts", "dance", "", ABSENT]),
    "status": st.sampled_from(["error", "odd", "", ABSENT]),
    "stream": st.sampled_from([True, False, ABSENT]),
    "tags": st.sampled_from([{}, {"a": "b"}, {str(number): "" for number in range(65)}]),
    "eval_scores": st.sampled_from([{}, {"a": 0.5}, {"a": math.nan}, {"a": math.inf}]),
    "surprise": st.sampled_from([ABSENT, {"a": [1]}]),
}


@given(st.fixed_dictionaries({}, optional=proto_odd), st.sampled_from(["partial", "strict", "lenient"]))
def test_the_fast_way_of_the_other_wire_takes_what_its_slow_way_takes(overrides: dict[str, Any], handling: Any) -> None:
    agrees_with_the_slow_way("protobuf", [to_proto(make_event(**overrides)).SerializeToString()], handling)
    agrees_with_the_slow_way("protobuf", [to_proto(make_event(**overrides)).SerializeToString()], handling, rules=4)


@examples(150)
@given(
    st.lists(st.fixed_dictionaries({}, optional=proto_odd), max_size=2),
    st.integers(0, 2 * codec.FEW),
    st.sampled_from(["partial", "strict", "lenient"]),
    st.randoms(use_true_random=True),
)
def test_many_of_the_other_wire_are_what_each_is_alone(
    odd_ones: list[Any], usual: int, handling: Any, random: Any
) -> None:
    events = [make_event(**overrides) for overrides in odd_ones] + [usual_event(random) for _ in range(usual)]
    random.shuffle(events)
    agrees_with_the_slow_way("protobuf", [to_proto(event).SerializeToString() for event in events], handling)


@given(st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31)))  # noqa: DTZ001
def test_a_time_is_the_same_the_second_time(moment: datetime) -> None:
    text = moment.isoformat(timespec="milliseconds") + "Z"
    first = parse_timestamp(text)
    assert parse_timestamp(text) == first
    assert format_timestamp(first) == text
    at_a_leap = text[5:17] in ("06-30T23:59:", "12-31T23:59:")
    for wrong in (
        text[:17] + ("61.000Z" if at_a_leap else "60.000Z"),
        text[:17] + " 1.000Z",
        text[:17] + "01.+00Z",
        text[:17] + "01.00xZ",
    ):
        with pytest.raises(ValueError, match="RFC 3339"):
            parse_timestamp(wrong)


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("size", [1, 2 * codec.FEW])
def test_the_latency_is_kept_as_its_bucket(payload: codec.PayloadFormat, size: int) -> None:
    latencies = [float(843 * number) for number in range(size)]
    events = [make_event(latency_ms=latency) for latency in latencies]
    records = [to_json_line(event) if payload == "json" else to_proto(event).SerializeToString() for event in events]
    found = decode(payload, records, "partial", NOW).columns.rows
    assert found["latency"].tolist() == [bucket_of(latency) for latency in latencies]
    assert not found["spare"].any()
