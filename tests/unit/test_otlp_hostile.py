"""Spans that nobody would send on purpose: what is too large is cut and says so, and nothing costs its neighbours."""

import time
from typing import Any, Final

import msgspec
import pytest

from processor.core.events import codec
from server.otlp import json_spans, protobuf_spans
from server.otlp.extra import MAX_LINE
from server.otlp.json_spans import shallow
from server.otlp.span_parents import Node, Tree
from server.otlp.spans import MAX_ATTRIBUTES
from server.otlp.values import MAX_VALUE, TOO_DEEP
from tests.support.otlp import CHAT, make_span, request, to_json, to_protobuf
from tests.support.otlp_events import events_of

LATEST: Final = 2**60


def both(sent: dict[str, Any]) -> dict[str, Any]:
    """The one span of a request, from both encodings alike; intake takes it."""
    (event,) = events_of(sent)
    opened = protobuf_spans.open_request(to_protobuf(sent))
    from_json = json_spans.open_request(to_json(sent))
    ((raw,), (line,)) = opened.groups[0].spans, from_json.groups[0].spans
    assert opened.read(raw) == from_json.read(line)
    encoded = msgspec.json.encode(event)
    assert len(encoded) <= MAX_LINE
    decoded = codec.decode("json", [encoded], "lenient", LATEST)
    assert decoded.faults == []
    return event


def test_a_value_of_ten_megabytes() -> None:
    event = both(request(make_span(attributes=CHAT | {"big": "ä" * 5_000_000})))
    assert event["attributes"]["big"] == "ä" * (MAX_VALUE // 2) + "… [cut: 10000000 bytes]"


def test_bytes_of_a_megabyte() -> None:
    event = both(request(make_span(attributes=CHAT | {"big": bytes(1_000_000)})))
    assert event["attributes"]["big"] == "A" * MAX_VALUE + "… [cut: 1000000 bytes]"


@pytest.mark.slow
def test_a_list_of_a_hundred_thousand_numbers() -> None:
    event = both(request(make_span(attributes=CHAT | {"big": list(range(100_000))})))
    found = event["attributes"]["big"]
    assert found[:3] == [0, 1, 2]
    assert found[-1] == "[cut: 100000 items]"
    assert len(found) == MAX_VALUE // 8 + 1


@pytest.mark.slow
def test_an_object_of_a_hundred_thousand_members() -> None:
    event = both(request(make_span(attributes=CHAT | {"big": {f"k{n}": n for n in range(100_000)}})))
    assert event["attributes"]["big"]["[cut]"] == "100000 members"


@pytest.mark.slow
def test_a_hundred_thousand_attributes() -> None:
    event = both(request(make_span(attributes=CHAT | {f"key{n}": n for n in range(100_000)})))
    assert event["model"] == "gpt-4o"
    assert len(event["cut"]) == 65
    assert event["attributes"].pop("[cut]") == f"{100_000 + len(CHAT)} attributes"
    dropped = 64 + int(event["cut"][-1].removeprefix("and ").removesuffix(" more"))
    fields = len(CHAT) - len({"gen_ai.operation.name"})
    assert dropped + len(event["attributes"]) == MAX_ATTRIBUTES - fields


def test_the_largest_attributes_go_first_and_are_named() -> None:
    sizes = {f"a{n}": "x" * (4000 + n) for n in range(60)}
    event = both(request(make_span(attributes=CHAT | sizes)))
    assert event["cut"] == [f"a{n}" for n in range(59, 59 - len(event["cut"]), -1)]
    assert set(sizes) - set(event["cut"]) <= set(event["attributes"])
    assert len(msgspec.json.encode(event)) > MAX_LINE - 8_000


def test_lists_in_lists() -> None:
    deep: Any = "x"
    for _ in range(40):
        deep = [deep]
    found = both(request(make_span(attributes=CHAT | {"deep": deep})))["attributes"]["deep"]
    depth = 0
    while isinstance(found, list):
        (found,) = found
        depth += 1
    assert (depth, found) == (32, TOO_DEEP)


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_lists_deeper_than_decoders_go_cost_no_neighbour(depth: int) -> None:
    value = b'{"arrayValue":{"values":[' * depth + b"]}}" * depth
    body = to_json(request(make_span(1), make_span(2, attributes=CHAT | {"deep": "HERE"})))
    body = body.replace(b'{"stringValue":"HERE"}', value)
    opened = json_spans.open_request(body)
    first, second = (opened.read(raw) for raw in opened.groups[0].spans)
    assert "deep" not in first.attributes
    assert TOO_DEEP in str(second.attributes["deep"])


def test_lists_deeper_than_decoders_go_in_protobuf() -> None:
    value = b""
    while len(value) < 100_000:  # an AnyValue with an ArrayValue with an AnyValue
        inner = b"\x0a" + varint(len(value)) + value
        value = b"\x2a" + varint(len(inner)) + inner
    attribute = b"\x0a\x04deep\x12" + varint(len(value)) + value
    assert TOO_DEEP in str(protobuf_spans.attributes_of([attribute])["deep"])


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'[[1],[[2]],"[[[",{"a":[3]}]', b'[[1],[null],"[[[",{"a":null}]'),
        (b'["\\"[[[",[[[4]]]]', b'["\\"[[[",[null]]'),
        (b'["\\\\",[[[4]]]]', b'["\\\\",[null]]'),
        (b"[[[[", b"[[[["),
        (b"]]]", b"]]]"),
        (b"", b""),
    ],
)
def test_what_is_nested_too_deep_becomes_null(text: bytes, expected: bytes) -> None:
    assert shallow(text, 2) == expected


@pytest.mark.parametrize(
    ("sent", "faults"),
    [("1e9999999", ["cost_usd"]), ("-1e9999999", ["cost_usd"]), ("1e-9999999", []), ("0e9999999", [])],
)
def test_a_cost_of_millions_of_digits_is_written_in_few(sent: str, faults: list[str]) -> None:
    (event,) = events_of(request(make_span(attributes=CHAT | {"gen_ai.usage.cost": sent})))
    line = msgspec.json.encode(event)
    assert len(line) < 1000
    decoded = codec.decode("json", [line], "lenient", LATEST)
    assert [fault.field for _, fault in decoded.faults] == faults
    assert decoded.columns.rows["cost"].tolist() == [0] * (1 - len(faults))


def test_bytes_that_are_no_text_are_replaced() -> None:
    good = to_protobuf(request(make_span(attributes={"gen_ai.operation.name": "chat", "x": "AAAA"})))
    opened = protobuf_spans.open_request(good.replace(b"AAAA", b"A\xff\xfeA"))
    assert opened.read(opened.groups[0].spans[0]).attributes["x"] == "A\ufffd\ufffdA"


def test_a_damaged_attribute_costs_only_itself() -> None:
    found = protobuf_spans.attributes_of([b"\x0a\x01a\x12\x03\x0a\x01x", b"\x0a\xff", b"\x0a\x01b\x12\x02\x18\x05"])
    assert found == {"a": "x", "[unreadable]": "[unreadable]", "b": 5}


def test_a_resource_of_megabytes_is_not_repeated_for_every_span() -> None:
    resource = {f"r{n}": "x" * 1000 for n in range(1000)}
    events = events_of(request(*(make_span(n) for n in range(1, 501)), resource=resource))
    assert len(events) == 500
    assert sum(len(msgspec.json.encode(event)) for event in events) < 16 * 1024 * 1024
    assert "cut" in events[0]["resource"]


def test_texts_longer_than_fields_are_cut_and_taken() -> None:
    long = "x" * 5000
    names = ("gen_ai.provider.name", "gen_ai.request.model", "user.id", "session.id", "error.type", "prompt.version")
    event = both(request(make_span(attributes=CHAT | dict.fromkeys(names, long), name=long)))
    assert {len(event[name]) for name in ("model", "user_id", "session_id", "error_code", "name")} == {256}
    assert event["attributes"]["user.id"] == long


# --- trees -----------------------------------------------------------------------------------------------------------


def chain(role: Any, count: int, *, is_kept: bool) -> list[Node]:
    return [
        Node(n.to_bytes(24), (n - 1).to_bytes(24) if n > 1 else b"", role, is_kept, 0, 1, 1)
        for n in range(1, count + 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("role", "is_kept"), [("call", True), ("other", False), ("step", True)])
def test_chains_of_a_hundred_thousand_spans_take_a_second(role: Any, is_kept: bool) -> None:
    nodes = chain(role, 100_000, is_kept=is_kept)[::-1]
    nodes.append(Node(b"last" * 6, nodes[0].key, "call", is_kept=True, flags=0))
    began = time.process_time()
    tree = Tree(nodes)
    parents, wrappers = tree.parents(), tree.wrappers()
    assert time.process_time() - began < 10
    assert parents[-1] == (nodes[0].key if is_kept else b"")
    assert len(wrappers) == (100_000 if role == "call" else 0)


def test_cycles_and_twins_end() -> None:
    nodes = [
        Node(b"a" * 24, b"b" * 24, "call", True, 0, 1, 1),
        Node(b"b" * 24, b"a" * 24, "call", True, 0, 1, 1),
        Node(b"c" * 24, b"c" * 24, "other", False, 0),
        Node(b"d" * 24, b"c" * 24, "call", True, 0, 1, 1),
        Node(b"d" * 24, b"a" * 24, "call", True, 0, 1, 1),
        Node(b"e" * 24, b"f" * 24, "other", False, 0),
        Node(b"f" * 24, b"e" * 24, "other", False, 0),
        Node(b"g" * 24, b"f" * 24, "call", True, 0, 1, 1),
    ]
    tree = Tree(nodes)
    assert tree.parents()[3] == b""
    assert tree.parents()[7] == b""
    assert tree.wrappers() <= {0, 1}
