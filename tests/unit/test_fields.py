"""The table of fields is what the checks go by, in both payload formats, and what is written by hand agrees with it."""

from typing import Any

import msgspec
import pytest
from google.protobuf.descriptor import FieldDescriptor

from processor.core.clock import parse_timestamp
from processor.core.events import codec, message
from processor.core.events.codec import PayloadFormat
from processor.core.events.event import Event, HotFields, JsonEvent
from processor.core.events.fields import FIELDS, NAMES, PROTOBUF, Field, reference
from protos.spendstream.v1 import ingest_pb2 as pb
from tests.support.events import Num, make_event, to_json_line, to_proto

NOW = parse_timestamp("2026-04-20T10:00:00Z")
COPIES = (1, 20)
"""One by one, and all at once."""


def of(field: Field) -> tuple[list[Any], list[Any]]:
    """Values that are at the limits of a field, and values just beyond them."""
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
    assert max(field.since for field in FIELDS) <= message.VERSION


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
