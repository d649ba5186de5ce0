"""Bodies of OTLP over every wire: as nobody would make them on purpose, and as tools make them by other rules."""

import gzip
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
import pytest
from google.protobuf import json_format
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from processor.core.events.event import Event
from server.grpc_api.otlp_servicer import TRACES
from server.otlp.extra import MAX_LINE
from server.otlp.values import MAX_VALUE, TOO_DEEP
from tests.contract.doors import SECRET, Doors, open_doors
from tests.contract.test_otlp import JSON, PROTOBUF, WIRES, WITH_KEY, Wire, export, field_of, post, stored
from tests.support.otlp import CHAT, make_span, request, span_id, to_json, to_message, to_protobuf

MIB: Final = 1024 * 1024
DEEP: Final = 50_000
"""More lists in each other than any decoder goes."""


@pytest.fixture(params=WIRES, name="wire")
def _wire(request: pytest.FixtureRequest) -> Wire:
    return WIRES[request.param]


# --- hostile spans ----------------------------------------------------------------------------------------------------


def _events(count: int) -> list[dict[str, Any]]:
    return [{"timeUnixNano": str(number + 1), "name": f"e{number}"} for number in range(count)]


def _attributes_of(event: Event) -> Any:
    return field_of(event, "extra.attributes")


def _says(name: str, mark: str) -> Callable[[Event], bool]:
    return lambda event: mark in str(_attributes_of(event)[name])


HOSTILE: Final[Mapping[str, tuple[Callable[[], dict[str, Any]], Callable[[Event], bool]]]] = {
    "text of 10 MB": (
        lambda: {"attributes": CHAT | {"big": "ä" * 5_000_000}},
        lambda event: _attributes_of(event)["big"] == "ä" * (MAX_VALUE // 2) + "… [cut: 10000000 bytes]",
    ),
    "bytes of 7 MB": (
        lambda: {"attributes": CHAT | {"big": bytes(7_000_000)}},
        _says("big", "… [cut: 7000000 bytes]"),
    ),
    "100,000 attributes": (
        lambda: {"attributes": CHAT | {f"key{number}": number for number in range(100_000)}},
        lambda event: (
            _attributes_of(event)["[cut]"] == f"{100_000 + len(CHAT)} attributes"
            and field_of(event, "extra.cut")[-1].startswith("and ")
        ),
    ),
    "100,000 items": (
        lambda: {"attributes": CHAT | {"big": list(range(100_000))}},
        lambda event: _attributes_of(event)["big"][-1] == "[cut: 100000 items]",
    ),
    "100,000 members": (
        lambda: {"attributes": CHAT | {"big": {f"k{number}": number for number in range(100_000)}}},
        lambda event: _attributes_of(event)["big"]["[cut]"] == "100000 members",
    ),
    "many large attributes": (
        lambda: {"attributes": CHAT | {f"a{number}": "x" * 8000 for number in range(1000)}},
        lambda event: len(field_of(event, "extra.cut")) == 65,
    ),
    "a name of 1 MB of an attribute": (
        lambda: {"attributes": CHAT | {"n" * MIB: 1}},
        lambda event: _attributes_of(event)["n" * 256] == 1,
    ),
    "lists in lists": (
        lambda: {"attributes": CHAT | {"deep": "HERE"}},
        _says("deep", TOO_DEEP),
    ),
    "10 MB of name, message and user": (
        lambda: {
            "name": "n" * 10_000_000,
            "status": {"code": 2, "message": "m" * 4_000_000},
            "attributes": CHAT | {"user.id": "u" * 4_000_000},
        },
        lambda event: (len(event.name or ""), event.status, len(event.user_id or "")) == (256, "error", 256),
    ),
    "100,000 events": (
        lambda: {"events": _events(100_000)},
        lambda event: [each["name"] for each in field_of(event, "extra.events")] == [f"e{n}" for n in range(128)],
    ),
}
"""What a span is changed by, and whether what is kept of it says so."""


def _deep_value() -> bytes:
    """An AnyValue with a list with an AnyValue, and so on."""
    value = b""
    for _ in range(DEEP // 10):
        value = _held(5, _held(1, value))
    return value


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def _in_json(body: Mapping[str, Any]) -> bytes:
    deep = b'{"arrayValue":{"values":[' * DEEP + b"]}}" * DEEP
    return to_json(body).replace(b'{"stringValue":"HERE"}', deep)


def _in_protobuf(body: Mapping[str, Any]) -> bytes:
    """With a list deeper than protobuf's own classes write one."""
    encoded = to_protobuf(body)
    here = b"\x12\x06\x0a\x04HERE"
    if here not in encoded:
        return encoded
    message = to_message(body)
    spans = [span.SerializeToString() for span in message.resource_spans[0].scope_spans[0].spans]
    name = _held(1, b"deep")
    spans = [span.replace(_held(9, name + here), _held(9, name + _held(2, _deep_value()))) for span in spans]
    (sent,) = message.resource_spans
    scope = _held(1, sent.scope_spans[0].scope.SerializeToString()) + b"".join(_held(2, span) for span in spans)
    return _held(1, _held(1, sent.resource.SerializeToString()) + _held(2, scope))


def _held(field: int, inner: bytes) -> bytes:
    """A field that is a message, or bytes."""
    return bytes([field << 3 | 2]) + _varint(len(inner)) + inner


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_span_is_cut_and_costs_no_neighbour(name: str) -> None:
    changes, is_cut = HOSTILE[name]
    sent = request(make_span(1), make_span(2, **changes()), make_span(3))
    bodies = {"json": _in_json(sent), "protobuf": _in_protobuf(sent)}
    first: list[Event] | None = None
    for wire_name, wire in WIRES.items():
        async with open_doors() as doors:
            await wire.send(doors, request(make_span(1), make_span(3)))
            alone = {event.span_id: event for event in stored(doors)}
            for values in doors.publisher.messages.values():
                values.clear()
            for _ in range(2):
                outcome = await wire.send(doors, bodies["json" if wire_name == "json" else "protobuf"])
                assert (outcome.reason, outcome.rejected) == ("", 0), (wire_name, outcome)
            found = stored(doors)
            assert [event.span_id for event in found] == [span_id(number) for number in (1, 1, 2, 2, 3, 3)]
            assert all(alone.get(event.span_id, event) == event for event in found), wire_name
            assert is_cut(found[2]), wire_name
            assert (found[2].input_tokens, found[2].model) == (100, "gpt-4o")
            if name != "lists in lists":  # written in two ways
                first = first or found
                assert found == first, wire_name
            records = [len(value) for values in doors.publisher.messages.values() for value in values]
            assert sum(records) < 4 * MAX_LINE


# --- packed ----------------------------------------------------------------------------------------------------------


async def test_grpc_takes_gzip(doors: Doors) -> None:
    call = export(doors, TRACES)
    await call(to_protobuf(request(make_span())), metadata=WITH_KEY, compression=grpc.Compression.Gzip)
    assert [event.span_id for event in stored(doors)] == [span_id(1)]


async def test_json_may_be_packed_and_its_type_may_have_parameters(doors: Doors) -> None:
    packed = gzip.compress(to_json(request(make_span())))
    kind = "application/json; charset=utf-8"
    answer = await post(doors, "/v1/traces", packed, Content_Type=kind, Content_Encoding="gzip")
    assert (answer.status, answer.body) == (200, b"{}")
    assert [event.span_id for event in stored(doors)] == [span_id(1)]


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (lambda: gzip.compress(b" " * (300 * MIB), 1), 413),
        (lambda: gzip.compress(b"\0" * MIB) * 300, 413),
        (lambda: gzip.compress(to_protobuf(request(make_span())))[:-6], 400),
        (lambda: b"no gzip", 400),
        (lambda: gzip.compress(gzip.compress(b"{}")), 400),
    ],
    ids=["a bomb", "a bomb of members", "truncated", "none", "twice"],
)
async def test_what_cannot_be_unpacked(doors: Doors, content_type: str, body: Callable[[], bytes], status: int) -> None:
    answer = await post(doors, "/v1/traces", body(), Content_Type=content_type, Content_Encoding="gzip")
    assert answer.status == status
    assert answer.headers["Content-Type"].partition(";")[0] == content_type
    assert stored(doors) == []


async def test_a_bomb_over_grpc(doors: Doors) -> None:
    """gRPC's own limit of a message's size holds for what comes out of it."""
    call = export(doors, TRACES)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\0" * (64 * MIB), metadata=WITH_KEY, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await WIRES["grpc"].send(doors, request(make_span()))).reason == ""


# --- JSON by other rules ---------------------------------------------------------------------------------------------

FAILED: Final = request(
    make_span(1, attributes=CHAT | {"whole": 2**62, "raw": b"\0\1", "half": 0.5, "yes": True}),
    make_span(2, 1, status={"code": 2, "message": "no"}, flags=0x301),
    make_span(3, status={"code": 1}),
)


@pytest.mark.parametrize("defaults", [False, True], ids=["", "with what is empty"])
async def test_json_as_protobufs_own_tools_write_it(doors: Doors, defaults: bool) -> None:
    """With ids in base64 and names of enums, which `MessageToJson` and its like make of the same messages."""
    await WIRES["protobuf"].send(doors, FAILED)
    wanted = stored(doors)
    for values in doors.publisher.messages.values():
        values.clear()
    text = json_format.MessageToJson(to_message(FAILED), always_print_fields_with_no_presence=defaults)
    assert "STATUS_CODE_ERROR" in text
    outcome = await WIRES["json"].send(doors, text.encode())
    assert (outcome.reason, outcome.rejected) == ("", 0)
    assert stored(doors) == wanted


@pytest.mark.parametrize(
    ("trace", "span", "rejected"),
    [
        ("W47/95gDgQPSabYzgT/GDA==", "AAAAAAAAAAE=", 0),
        ("W47/95gDgQPSabYzgT/GDA", "AAAAAAAAAAE", 1),  # without its padding it could be hex
        ("AAAAAAAAAAAAAAAAAAAAAA==", "AAAAAAAAAAE=", 1),
        ("W47/95gDgQPSabYzgT/GDA==", "AAAAAAAAAAA=", 1),
        ("W47/95gDgQPSabYzgT/G====", "AAAAAAAAAAE=", 1),
        ("W47/95gD*gQPSabYzgT/GDA==", "AAAAAAAAAAE=", 1),
        ("W47/95gDgQPSabYz\u00fcT/GDA==", "AAAAAAAAAAE=", 1),
        ("5b8efff798038103d269b633813fc60c", "AAAAAAAAAAE=", 0),
    ],
)
async def test_ids_in_base64(doors: Doors, trace: str, span: str, rejected: int) -> None:
    outcome = await WIRES["json"].send(doors, request(make_span(traceId=trace, spanId=span)))
    assert (outcome.reason, outcome.rejected) == ("", rejected)
    found = [(event.trace_id, event.span_id) for event in stored(doors)]
    assert found == [("5b8efff798038103d269b633813fc60c", span_id(1))] * (1 - rejected)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (2, "error"),
        ("STATUS_CODE_ERROR", "error"),
        (1, "success"),
        ("STATUS_CODE_OK", "success"),
        ("STATUS_CODE_UNSET", "success"),
        (0, "success"),
        (None, "success"),
        (7, "success"),
        ("something new", "success"),
    ],
)
async def test_a_status_by_name_or_number(doors: Doors, code: Any, status: str) -> None:
    outcome = await WIRES["json"].send(doors, request(make_span(status={"code": code}, kind="SPAN_KIND_CLIENT")))
    assert outcome.rejected == 0
    assert [event.status for event in stored(doors)] == [status]


async def test_members_that_are_not_known_are_ignored(doors: Doors) -> None:
    span = make_span(1) | {"newThing": {"a": [1]}, "links": [{"traceId": 7}], "droppedAttributesCount": 3}
    body = request(span) | {"surprise": [[1]]}
    body["resourceSpans"][0] |= {"schemaUrl": "https://x", "other": None}
    assert (await WIRES["json"].send(doors, body)).rejected == 0
    assert [event.model for event in stored(doors)] == ["gpt-4o"]


# --- what is in a message that is none of ours -----------------------------------------------------------------------


async def test_fields_of_a_later_protobuf_are_ignored(doors: Doors) -> None:
    (span,) = to_message(request(make_span())).resource_spans[0].scope_spans[0].spans
    span.attributes.add(key="later").value.CopyFrom(AnyValue())
    raw = span.SerializeToString() + b"\xfa\x01\x03abc"  # field 31
    body = _held(1, _held(2, _held(2, raw))) + b"\xfa\x01\x03abc"
    for name in ("protobuf", "packed", "grpc"):
        assert (await WIRES[name].send(doors, body)).rejected == 0
    assert [event.model for event in stored(doors)] == ["gpt-4o"] * 3
    assert SECRET not in repr(stored(doors))
