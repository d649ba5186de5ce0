import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.events import codec, export_line
from processor.core.events.codec import PayloadFormat
from processor.core.events.event import MAX_EVENT_BYTES, Fault, Handling
from processor.core.events.fields import RECENT, RULES
from processor.core.events.source import Api, Source
from tests.support.events import ABSENT, Num, make_event, to_json_line, to_proto
from tests.support.examples import examples

NOW = 1_790_000_000_000_001


def raw(event: dict[str, Any], payload: PayloadFormat) -> bytes:
    return to_json_line(event) if payload == "json" else to_proto(event).SerializeToString()


def there_and_back(
    event: dict[str, Any],
    payload: PayloadFormat = "json",
    handling: Handling = "partial",
    arrival: int = NOW,
    rules: int = RULES,
) -> dict[str, Any]:
    """Export an event, import it, and see that the log says the same; returns the line."""
    record = raw(event, payload)
    api: Api = "http" if payload == "json" else "grpc"
    source = Source("org", "project", "key", arrival, payload, handling, api=api, rules=rules)
    before = codec.decode_event(payload, record, handling, arrival, rules=rules)
    line = export_line.encode_line(source, before, lambda: record)
    assert b"\n" not in line
    opened_line = export_line.open_line(line)
    again, imported = opened_line.source, opened_line.record
    assert msgspec.structs.replace(again, payload=payload, rules=rules) == source
    after = codec.decode_event(again.payload, imported, again.handling, again.arrival, rules=again.rules)
    # In what white space an unknown field was written is all that may change.
    opened = [{name: parse(value) for name, value in event.extra.items()} for event in (before, after)]
    assert opened[0] == opened[1]
    assert msgspec.structs.replace(after, extra={}) == msgspec.structs.replace(before, extra={})
    first, copy = (
        codec.decode(from_.payload, [bytes_], from_.handling, from_.arrival, rules=from_.rules).columns
        for from_, bytes_ in ((source, record), (again, imported))
    )
    assert first.rows.tobytes() == copy.rows.tobytes(), "the columns and the digest of copies"
    assert (first.users, first.dims) == (copy.users, copy.dims)
    shown: dict[str, Any] = json.loads(line, parse_float=Decimal)
    return shown


def parse(text: msgspec.Raw) -> Any:
    return json.loads(bytes(text), parse_float=Decimal)


@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_a_line_has_the_published_fields_and_where_the_event_came_from(payload: PayloadFormat) -> None:
    event = make_event(
        event_id="550E8400-E29B-41D4-A716-446655440001",
        cost_usd=Num("0.0034000000000005"),
        user_id="ünï",
        tags={"a": "b"},
        tools_used=["x"],
        eval_scores={"good": 0.5},
        mystery={"deep": [1, None]},
    )
    assert there_and_back(event, payload) == {
        "event_id": "550e8400-e29b-41d4-a716-446655440001",
        "trace_id": "trace-abc",
        "span_id": "span-001",
        "timestamp": "2026-04-20T10:00:00.000Z",
        "provider": "openai",
        "model": "gpt-4o",
        "operation": "chat",
        "latency_ms": Decimal("843.0"),
        "input_tokens": 512,
        "output_tokens": 128,
        "cost_usd": Decimal("0.0034"),
        "status": "success",
        "stream": False,
        "environment": "production",
        "user_id": "ünï",
        "tags": {"a": "b"},
        "tools_used": ["x"],
        "eval_scores": {"good": Decimal("0.5")},
        "sdk_version": "1.4.2",
        "mystery": {"deep": [1, None]},
        "_spendstream": {
            "project": "project",
            "organization": "org",
            "key_id": "key",
            "arrival": "2026-09-21T14:13:20.000001Z",
            "handling": "partial",
            **({"api": "grpc"} if payload == "protobuf" else {}),
        },
    }


def test_a_cost_from_a_price_list_comes_back_as_one() -> None:
    """Its digest is that of an event without a cost, whatever the list says today."""
    record = to_json_line(make_event(cost_usd=None))
    source = Source("org", "project", "key", NOW, "json", "lenient", api="otlp")
    event = codec.decode_event("json", record, "lenient", NOW)
    event.cost, event.priced, event.cost_source = 1_500_000, True, "list:own@2026-11"
    line = export_line.encode_line(source, event, lambda: record)
    assert json.loads(line)["cost_usd"] == 0.0000015
    opened = export_line.open_line(line)
    assert opened.source == source
    assert opened.price == (1_500_000, "list:own@2026-11")
    assert "cost_usd" not in json.loads(opened.record)
    columns = codec.decode("json", [opened.record], "lenient", NOW).columns
    assert columns.rows["digest"] == codec.decode("json", [record], "lenient", NOW).columns.rows["digest"]


@pytest.mark.parametrize("digest", [0, 1, 2**64 - 1])
def test_a_digest_that_the_event_does_not_say_comes_back(digest: int) -> None:
    record = to_json_line(make_event())
    source = Source("org", "project", "key", NOW, "json", "lenient", api="otlp")
    event = codec.decode_event("json", record, "lenient", NOW)
    line = export_line.encode_line(source, event, lambda: record, digest)
    assert json.loads(line)["_spendstream"]["digest"] == f"{digest:016x}"
    assert export_line.open_line(line).digest == digest
    older = export_line.encode_line(source, event, lambda: record)
    assert export_line.open_line(older).digest is None


@pytest.mark.parametrize(
    "digest", [b'""', b'"1"', b'"000000000000000G"', b'"00000000000000001"', b"7", '"١234567890123456"'.encode()]
)
def test_what_is_no_digest_is_refused(digest: bytes) -> None:
    line = (
        b'{"_spendstream":{"project":"p","organization":"o","key_id":"k","arrival":"2026-04-20T10:00:00Z",'
        b'"handling":"lenient","digest":%b}}' % digest
    )
    with pytest.raises(Fault) as caught:
        export_line.open_line(line)
    assert caught.value.field in {"_spendstream", "_spendstream.digest"}


@pytest.mark.parametrize("cost", [b"", b'"cost_usd":null,', b'"cost_usd":"1",', b'"cost_usd":-1,'])
def test_a_price_without_its_cost_is_refused(cost: bytes) -> None:
    line = (
        b'{%b"_spendstream":{"project":"p","organization":"o","key_id":"k","arrival":"2026-04-20T10:00:00Z",'
        b'"handling":"lenient","cost_source":"list:own@1"}}' % cost
    )
    with pytest.raises(Fault) as caught:
        export_line.open_line(line)
    assert caught.value.field == "cost_usd"


LENIENT: list[dict[str, Any]] = [
    {"cost_usd": ABSENT},
    {"cost_usd": None, "status": None, "error_code": "E"},
    {"provider": "acme", "operation": "think", "tags": {"own": "tag"}},
    {"provider": "acme", "tags": {f"t{n}": "" for n in range(64)}},
    {"model": None, "trace_id": None, "sdk_version": ABSENT, "stream": ABSENT, "input_tokens": None},
]


@pytest.mark.parametrize("changes", LENIENT, ids=" ".join)
@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_what_lenient_handling_took_is_taken_back(payload: PayloadFormat, changes: dict[str, Any]) -> None:
    line = there_and_back(make_event(**changes), payload, "lenient")
    assert (line["cost_usd"] is None) is ("cost_usd" in changes)


def test_an_unknown_field_of_the_name_of_ours_comes_back() -> None:
    for value in ({"project": "theirs"}, None, 7):
        line = there_and_back(make_event(_spendstream=value, cost=3, priced="no", extra=[]))
        assert line["_spendstream"]["project"] == "project"
        assert (line["cost"], line["priced"], line["extra"]) == (3, "no", [])


@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_an_event_that_grows_too_long_as_json_comes_back(payload: PayloadFormat) -> None:
    control = "\x01" * (100_000 if payload == "protobuf" else 40_000)
    scores = (
        {f"s{n}": Num("1e9") for n in range(3)}
        if payload == "protobuf"
        else {f"{n}": Num("1e9") for n in range(18_000)}
    )
    event = make_event(parent_span_id=control if payload == "protobuf" else "x", eval_scores=scores, odd={"a": 1})
    assert len(raw(event, payload)) <= MAX_EVENT_BYTES
    line = there_and_back(event, payload)
    assert line["_spendstream"]["raw"]


def test_line_breaks_in_an_unknown_field_of_protobuf_do_not_end_the_line() -> None:
    message = to_proto(make_event())
    message.extra_json["odd"] = '{"a":\r\n [1,\n2]}'
    record = message.SerializeToString()
    source = Source("org", "project", "key", NOW, "protobuf", "partial")
    line = export_line.encode_line(source, codec.decode_event("protobuf", record, "partial", NOW), lambda: record)
    assert b"\n" not in line
    assert json.loads(line)["odd"] == {"a": [1, 2]}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)
)


@examples(30)
@given(
    st.sampled_from(["json", "protobuf"]),
    st.fixed_dictionaries(
        {},
        optional={
            "cost_usd": st.decimals(0, 1_000_000, allow_nan=False).map(lambda value: Num(str(value).lower())),
            "latency_ms": st.floats(0, allow_infinity=False),
            "ttft_ms": st.none() | st.floats(0, allow_infinity=False),
            "input_tokens": st.integers(0, 2**53 - 1),
            "cached_tokens": st.none() | st.integers(0, 2**53 - 1),
            "parent_span_id": st.none() | texts,
            "error_message": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=600),
            "user_id": st.none() | texts,
            "tags": st.dictionaries(texts, texts, max_size=5),
            "tools_used": st.lists(texts, max_size=5),
            "eval_scores": st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=5),
            "mystery": json_values,
            "_spendstream": json_values,
        },
    ),
)
def test_any_event_comes_back(payload: PayloadFormat, changes: dict[str, Any]) -> None:
    there_and_back(make_event(**changes), payload)


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        (b"", "syntax", None),
        (b"{", "syntax", None),
        (b"[]", "invalid", None),
        (b'{"event_id":"x"}', "missing", "_spendstream"),
        (b'{"_spendstream":7}', "invalid", "_spendstream"),
        (b'{"_spendstream":{"project":"p"}}', "invalid", "_spendstream"),
        (
            b'{"_spendstream":{"project":"p","organization":"o","key_id":"k","arrival":"now","handling":"partial"}}',
            "invalid",
            "_spendstream.arrival",
        ),
        (
            b'{"_spendstream":{"project":"","organization":"","key_id":"","arrival":"2026-01-01","handling":"partial"}}',
            "invalid",
            "_spendstream.arrival",
        ),
    ],
)
def test_what_is_no_line_is_named(change: bytes, code: str, field: str | None) -> None:
    with pytest.raises(Fault) as caught:
        export_line.open_line(change)
    assert (caught.value.code, caught.value.field) == (code, field)


recent: dict[str, st.SearchStrategy[Any]] = {
    "kind": st.sampled_from(["call", "span", "agent", "", None]),
    "name": st.sampled_from(["plan", "\u00fc", "", "x" * 257, None]),
    "cache_write_tokens": st.sampled_from([None, 0, 5]),
    "reasoning_tokens": st.sampled_from([None, 0, 7]),
    "tags": st.sampled_from([{}, {str(number): "" for number in range(64)}]),
    "provider": st.sampled_from(["openai", "acme"]),
}


@given(
    st.fixed_dictionaries({}, optional=recent),
    st.sampled_from(["json", "protobuf"]),
    st.sampled_from(["partial", "lenient"]),
    st.sampled_from([4, 5]),
)
def test_the_newest_fields_come_back_by_the_rules_they_were_read_by(
    said: dict[str, Any], payload: PayloadFormat, handling: Handling, rules: int
) -> None:
    if handling == "partial":
        said = {**said, "provider": "openai"}
    if (
        said.get("kind") == "span"
        and rules == 5
        and handling == "partial"
        and not 0 < len(said.get("name") or "") < 257
    ):
        said = {**said, "name": "plan"}
    there_and_back(make_event(**{"cost_usd": 0, **said}), payload, handling, rules=rules)


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("cost", [0, ABSENT])
def test_a_span_comes_back_with_what_it_has(payload: PayloadFormat, cost: Any) -> None:
    missing = dict.fromkeys(("provider", "model", "operation", "stream", "input_tokens", "output_tokens"), ABSENT)
    shown = there_and_back(make_event(kind="span", name="plan", cost_usd=cost, **missing), payload)
    assert (shown["kind"], shown["name"], shown["model"], shown["provider"]) == ("span", "plan", "plan", "custom")
    assert "input_tokens" not in shown
    assert shown["cost_usd"] == (0 if cost == 0 else None)
    assert shown["_spendstream"]["rules"] == 5


@pytest.mark.parametrize("value", [{"kind": "span", "name": "plan"}, {"cache_write_tokens": -1}, {"name": 7}])
def test_a_line_says_by_which_rules_it_is_read_where_that_matters(value: dict[str, Any]) -> None:
    line = there_and_back(make_event(**value), rules=4)
    assert "rules" not in line["_spendstream"], "as those wrote it that knew of one way only"
    assert {name: line[name] for name in value} == value
    assert "rules" not in there_and_back(make_event())["_spendstream"]
    opened = export_line.open_line(json.dumps(line, default=float).encode())
    assert opened.source.rules == 4
    assert export_line.open_line(json.dumps(there_and_back(make_event()), default=float).encode()).source.rules == 5


def test_unknown_fields_of_protobuf_with_recent_names_come_back() -> None:
    record = to_proto(make_event())
    record.extra_json.update({"kind": '"span"', "name": '"plan"', "reasoning_tokens": "[]"})
    bytes_ = record.SerializeToString()
    source = Source("org", "project", "key", NOW, "protobuf", "partial", api="grpc")
    before = codec.decode_event("protobuf", bytes_, "partial", NOW)
    assert RECENT - {"cache_write_tokens"} == set(before.extra)
    opened = export_line.open_line(export_line.encode_line(source, before, lambda: bytes_))
    assert (opened.record, opened.source) == (bytes_, source)


def test_rules_that_nobody_knows_are_refused() -> None:
    line = json.dumps(there_and_back(make_event(name="x")), default=float)
    with pytest.raises(Fault, match="rules"):
        export_line.open_line(line.replace('"rules": 5', '"rules": 6').encode())
