"""The table of fields is what the checks go by, in both payload formats, and what is written by hand agrees with it."""

from typing import Any

import msgspec
import pytest
from google.protobuf.descriptor import FieldDescriptor

from processor.core.clock import parse_timestamp
from processor.core.events import codec, message
from processor.core.events.codec import PayloadFormat
from processor.core.events.columns import SPAN_FLAG
from processor.core.events.event import Event, HotFields, JsonEvent, OldEvent
from processor.core.events.fields import FIELDS, NAMES, PROTOBUF, RECENT, RULES, Field, fields_of, reference
from protos.spendstream.v1 import ingest_pb2 as pb
from tests.support.events import Num, make_event, to_json_line, to_proto

NOW = parse_timestamp("2026-04-20T10:00:00Z")
COPIES = (1, 20)
"""One by one, and all at once."""


def of(field: Field) -> tuple[list[Any], list[Any]]:
    """Values that are at the limits of a field, and values just beyond them."""
    if field.is_lax:
        values = [*field.values] or ["x", "x" * int(field.most or 0)]
        return [value for value in values if value != "span"], []
    match field.kind:
        case "uuid":
            return ["0F8FAD5B-D9CB-469F-A165-70867728950E"], ["0f8fad5b-d9cb-169f-a165-70867728950e", "x"]
        case "timestamp":
            return ["2026-04-21T10:00:00Z", "1900-01-01T00:00:00+02:00"], ["2026-04-21T10:00:00.000001Z", "2026-04-20"]
        case "choice":
            return list(field.values), ["", "other"]
        case "count" | "millis" if field.most is not None:
            most = str(field.most)
            return [Num("0"), Num(most)], [Num("-1"), Num("1e400" if field.kind == "millis" else f"{most}0")]
        case "cost":
            return [Num("0"), Num(str(field.most))], [Num("-0.1"), Num(f"{field.most}.01")]
        case "text" if field.most is None or field.is_cut:
            return ["", "x" * 1000], []
        case "text":
            bad = ["x" * (int(field.most or 0) + 1)]
            return ["x" * field.least, "x" * int(field.most or 0)], bad if not field.least else [*bad, ""]
        case "tags":
            entries = int(field.most or 0)
            return [{}, {str(n): "" for n in range(entries)}], [{str(n): "" for n in range(entries + 1)}]
        case "flag":
            return [True, False], []
        case "strings":
            return [[], ["x"]], []
        case _:
            return [{}, {"x": 1.5}], []


def decoded(payload: PayloadFormat, event: dict[str, Any], copies: int, handling: Any = "partial") -> codec.Decoded:
    record = to_json_line(event) if payload == "json" else to_proto(event).SerializeToString()
    return codec.decode(payload, [record] * copies, handling, NOW)


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_what_is_at_a_limit_is_taken_and_what_is_beyond_it_is_not(
    field: Field, payload: PayloadFormat, copies: int
) -> None:
    good, bad = of(field)
    for value in good:
        assert decoded(payload, make_event(**{field.name: value}), copies).faults == []
    for value in bad:
        if payload == "protobuf" and isinstance(value, Num) and "e400" in value:
            continue  # a double has no such value
        faults = decoded(payload, make_event(**{field.name: value}), copies).faults
        assert [fault.field for _, fault in faults] == [field.name] * copies
        assert {fault.code for _, fault in faults} <= {"invalid", "out_of_range", "unknown_value"}


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_field_is_required_or_may_be_missing(field: Field, payload: PayloadFormat, copies: int) -> None:
    event = make_event()
    event.pop(field.name, None)
    faults = decoded(payload, event, copies).faults
    assert [(fault.code, fault.field) for _, fault in faults] == [("missing", field.name)] * copies * field.required
    lenient = decoded(payload, event, copies, "lenient").faults
    assert len(lenient) == copies * (field.required and field.lenient is None)


def test_the_event_has_the_fields_of_the_table() -> None:
    parts = {"cost_usd": ["cost", "priced"]}
    expected = [name for field in FIELDS for name in parts.get(field.name, [field.name])]
    assert list(Event.__struct_fields__) == [*expected, "extra", "cost_source"]


def test_what_a_fast_way_reads_has_the_fields_of_the_table() -> None:
    assert list(JsonEvent.__struct_fields__) == [field.name for field in FIELDS]
    assert set(HotFields.__annotations__) <= NAMES
    optional = {field.name for field in FIELDS if not field.required}
    kinds = {each.name: each.required for each in msgspec.structs.fields(JsonEvent)}
    assert {name for name, required in kinds.items() if not required} == optional


def test_the_protobuf_message_has_the_fields_of_the_table() -> None:
    types = {
        FieldDescriptor.TYPE_STRING: "string",
        FieldDescriptor.TYPE_INT64: "int64",
        FieldDescriptor.TYPE_DOUBLE: "double",
        FieldDescriptor.TYPE_BOOL: "bool",
    }
    declared = {}
    for each in pb.Event.DESCRIPTOR.fields:
        if each.message_type is not None:
            key, value = (types[part.type] for part in each.message_type.fields)
            declared[each.name] = f"map<{key}, {value}>", each.number
        else:
            declared[each.name] = f"{'repeated' if each.is_repeated else 'optional'} {types[each.type]}", each.number
    assert declared.pop("extra_json") == ("map<string, string>", 100)
    assert declared == {field.name: (PROTOBUF[field.kind], field.number) for field in FIELDS}


def test_no_field_is_newer_than_the_message() -> None:
    assert max(field.since for field in FIELDS) == RULES == message.VERSION
    assert {field.name for field in FIELDS if field.since > 4} == RECENT
    assert [field.name for field in fields_of(4)] == list(OldEvent.__struct_fields__)
    assert [field.name for field in fields_of(5)] == [field.name for field in FIELDS]


CALL = make_event()
SPAN: dict[str, Any] = {
    **{name: CALL[name] for name in ("event_id", "trace_id", "span_id", "timestamp", "latency_ms", "status")},
    **{name: CALL[name] for name in ("environment", "sdk_version")},
    "kind": "span",
    "name": "plan",
}
"""With all that a span needs."""


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_span_needs_less_than_a_call_and_a_name(field: Field, payload: PayloadFormat, copies: int) -> None:
    needed = field.name in SPAN and field.name != "kind"
    assert needed == ((field.required and field.span is None) or field.span == "required")
    event = {name: value for name, value in SPAN.items() if name != field.name}
    if field.name == "kind":
        return
    found = decoded(payload, event, copies)
    assert [(fault.code, fault.field) for _, fault in found.faults] == [("missing", field.name)] * copies * needed
    if not needed:
        rows = found.columns.rows
        assert rows["flags"].tolist() == [SPAN_FLAG] * copies
        assert not rows["cost_source"].any()
        assert {dim[1:] for dim in found.columns.dims} == {("custom", "plan", "production", "custom", "success")}
        record = found.columns.records[0]
        stored = codec.decode_event(payload, record, "partial", NOW)
        assert (stored.kind, stored.name, stored.model, stored.operation) == ("span", "plan", "plan", "custom")
        assert (stored.input_tokens, stored.output_tokens, stored.cost, stored.stream) == (None, None, 0, False)


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize(
    ("cost", "code"), [(0, None), (Num("0.0"), None), (Num("0.1"), "out_of_range"), (Num("1e-13"), "out_of_range")]
)
def test_a_span_costs_nothing(payload: PayloadFormat, copies: int, cost: Any, code: str | None) -> None:
    for handling in ("partial", "lenient"):
        faults = decoded(payload, {**SPAN, "cost_usd": cost}, copies, handling).faults
        assert [(fault.field, fault.code) for _, fault in faults] == [("cost_usd", code)] * copies * (code is not None)


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_a_span_keeps_what_it_says_beside(payload: PayloadFormat, copies: int) -> None:
    said = {"provider": "google", "model": "m", "operation": "tts", "stream": True, "input_tokens": 3}
    said |= {"output_tokens": 4, "cached_tokens": 5, "cache_write_tokens": 6, "reasoning_tokens": 7}
    for handling in ("partial", "lenient"):  # which adds no cached tokens to those of a span
        found = decoded(payload, {**SPAN, **said}, copies, handling)
        assert not found.faults
        assert {dim[1:] for dim in found.columns.dims} == {("google", "m", "production", "tts", "success")}
        assert set(found.columns.rows["input"].tolist()) == {3}
        stored = codec.decode_event(payload, found.columns.records[0], handling, NOW)
        assert {name: getattr(stored, name) for name in said} == said
    bad = decoded(payload, {**SPAN, "input_tokens": -1}, copies).faults
    assert [(fault.field, fault.code) for _, fault in bad] == [("input_tokens", "out_of_range")] * copies


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_lenient_calls_a_span_unknown_that_has_no_name(payload: PayloadFormat, copies: int) -> None:
    found = decoded(payload, {name: value for name, value in SPAN.items() if name != "name"}, copies, "lenient")
    assert not found.faults
    assert {dim[2] for dim in found.columns.dims} == {"unknown"}
    stored = codec.decode_event(payload, found.columns.records[0], "lenient", NOW)
    assert (stored.kind, stored.name, stored.model) == ("span", "unknown", "unknown")


OTHER_FORMS = [
    {"kind": "tool"},
    {"kind": ""},
    {"kind": "SPAN"},
    {"name": ""},
    {"name": "x" * 257},
    {"kind": "x", "name": ""},
]
OTHER_TYPES = [
    {"kind": 1},
    {"kind": True},
    {"kind": ["span"]},
    {"kind": {"a": "span"}},
    {"name": 1},
    {"name": {"first": "x"}},
    {"kind": 5, "name": [None]},
]


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize(
    ("payload", "said"), [("json", each) for each in OTHER_FORMS + OTHER_TYPES] + [("protobuf", e) for e in OTHER_FORMS]
)
def test_other_uses_of_kind_and_name_are_unknown_fields_of_a_call(
    payload: PayloadFormat, said: dict[str, Any], copies: int
) -> None:
    event = make_event(**said)
    for handling in ("partial", "strict", "lenient"):
        found = decoded(payload, event, copies, handling)
        assert not found.faults
        plain = {name: value for name, value in event.items() if name not in said}
        assert found.columns.rows.tobytes() == decoded(payload, plain, copies).columns.rows.tobytes()
        stored = codec.decode_event(payload, found.columns.records[0], handling, NOW)
        assert (stored.kind, stored.name) == ("call", None)
        assert {name: msgspec.json.decode(value) for name, value in stored.extra.items()} == said


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_null_is_the_same_as_absent(payload: PayloadFormat, copies: int) -> None:
    event = make_event(**dict.fromkeys(RECENT))
    found = decoded(payload, event, copies)
    assert not found.faults
    stored = codec.decode_event(payload, found.columns.records[0], "partial", NOW)
    assert (stored.kind, stored.name, stored.cache_write_tokens, stored.reasoning_tokens) == ("call", None, None, None)
    assert stored.extra == {}


def test_unknown_fields_of_protobuf_may_have_the_names_that_are_new() -> None:
    event = to_proto(make_event())
    event.extra_json.update({"kind": '"span"', "name": "7"})
    stored = codec.decode_event("protobuf", event.SerializeToString(), "partial", NOW)
    assert (stored.kind, stored.name, set(stored.extra)) == ("call", None, {"kind", "name"})
    event.kind = "call"  # a field goes before it
    assert set(codec.decode_event("protobuf", event.SerializeToString(), "partial", NOW).extra) == {"name"}


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_by_the_rules_of_version_4_they_are_unknown_fields(payload: PayloadFormat, copies: int) -> None:
    said = {"kind": "span", "name": "plan", "cache_write_tokens": -1, "reasoning_tokens": "many"}
    if payload == "protobuf":
        message_of = to_proto(make_event())
        message_of.extra_json.update({name: to_json_line({"": value})[4:-1].decode() for name, value in said.items()})
        record, plain = message_of.SerializeToString(), to_proto(make_event(event_id=message_of.event_id))
        without = plain.SerializeToString()
    else:
        event = make_event()
        record, without = to_json_line({**event, **said}), to_json_line(event)
    found = codec.decode(payload, [record] * copies, "partial", NOW, rules=4)
    assert not found.faults
    plainly = codec.decode(payload, [without] * copies, "partial", NOW, rules=4).columns.rows
    assert found.columns.rows.tobytes() == plainly.tobytes()
    assert plainly.tobytes() == codec.decode(payload, [without] * copies, "partial", NOW).columns.rows.tobytes()
    stored = codec.decode_event(payload, record, "partial", NOW, rules=4)
    assert (stored.kind, stored.name, stored.cache_write_tokens, stored.reasoning_tokens) == ("call", None, None, None)
    assert {name: msgspec.json.decode(value) for name, value in stored.extra.items()} == said


@pytest.mark.parametrize("copies", COPIES)
def test_by_the_rules_of_version_4_fields_of_a_newer_protobuf_were_passed_over(copies: int) -> None:
    event = make_event()
    plain = to_proto(event).SerializeToString()
    for said in ({"kind": "span"}, {"name": "x"}, {"cache_write_tokens": 1}, {"reasoning_tokens": -1}):
        record = to_proto({**event, **said}).SerializeToString()
        found = codec.decode("protobuf", [record] * copies, "partial", NOW, rules=4)
        assert found.columns.rows.tobytes() == decoded_rows(plain, copies)
        stored = codec.decode_event("protobuf", record, "partial", NOW, rules=4)
        assert stored == codec.decode_event("protobuf", plain, "partial", NOW)


def decoded_rows(record: bytes, copies: int) -> bytes:
    return codec.decode("protobuf", [record] * copies, "partial", NOW).columns.rows.tobytes()


def test_the_reference_has_a_row_for_each_field_that_fits_into_a_table() -> None:
    rows = list(reference())
    assert [row.name for row in rows] == [field.name for field in FIELDS]
    assert not [cell for row in rows for cell in row if "|" in cell or "\n" in cell]
    said = {row.name: row for row in rows}
    assert (said["model"].rule, said["model"].required) == ("1 to 256 characters", "yes")
    assert said["provider"].rule == "openai, anthropic, google, custom"
    assert said["operation"].lenient.endswith("in the tag `operation.raw`")
    assert (said["cost_usd"].type, said["cost_usd"].protobuf) == ("number", "optional string = 14")
    assert (said["user_id"].rule, said["user_id"].required) == (
        "at most 256 characters; empty is the same as absent",
        "",
    )
