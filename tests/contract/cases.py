"""What a batch may be and what becomes of it: one table for both APIs.

A case with `events` runs over both; `body` is an HTTP body and `message` an `IngestRequest` that the other wire has no
form for. Expected of each: what was accepted, which lines were not, and what the first accepted event was stored as.
"""

import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import zstandard

from processor.core.clock import parse_timestamp
from processor.core.events.event import Code
from protos.spendstream.v1 import ingest_pb2 as pb
from server.errors import Reason
from tests.support.events import ABSENT, Num, make_event, to_json_line, to_ndjson, to_proto

MIB: Final = 1024 * 1024
BIG: Final = 2**53

Bad = tuple[int, str | None, Code]
"""line, field, code."""


@dataclass(frozen=True)
class Case:
    """One batch and its fate; bodies and messages are made when they are needed."""

    name: str
    events: Sequence[Mapping[str, Any]] | None = None
    body: Callable[[], bytes] | None = None
    message: Callable[[], bytes] | None = None
    encoding: str | None = None
    prefer: str | None = None
    accepted: int = 0
    rejected: Sequence[Bad] = ()
    refused: Reason | None = None
    stored: Mapping[str, Any] = field(default_factory=dict)


SPAN: Final[dict[str, Any]] = {"kind": "span", "name": "plan", "cost_usd": 0}
OF_CALLS: Final = ("provider", "model", "operation", "stream", "input_tokens", "output_tokens", "cost_usd")
"""What a span may lack."""


# --- how cases are made ----------------------------------------------------------------------------------------------


def bad(name: str, fault: tuple[str | None, Code], /, **overrides: Any) -> Case:
    """An event that is not valid between two that are: only its own line is reported, and they are taken."""
    return Case(name, [make_event(), make_event(**overrides), make_event()], accepted=2, rejected=[(2, *fault)])


def bad_json(name: str, fault: tuple[str | None, Code], /, **overrides: Any) -> Case:
    """The same for values that only JSON can have."""
    return line(name, to_json_line(make_event(**overrides)), fault)


def good(name: str, stored: Mapping[str, Any], /, **overrides: Any) -> Case:
    """One event that is taken, and what of it is stored."""
    return Case(name, [make_event(**overrides)], accepted=1, stored=stored)


def line(name: str, text: bytes, fault: tuple[str | None, Code]) -> Case:
    """A line that no event has the form of, between two good ones."""
    body = b"\n".join([to_json_line(make_event()), text, to_json_line(make_event())])
    return Case(name, body=lambda: body, accepted=2, rejected=[(2, *fault)])


def whole(name: str, body: Callable[[], bytes], encoding: str | None = None, **expected: Any) -> Case:
    """An HTTP body as it is."""
    return Case(name, body=body, encoding=encoding, **expected)


def two() -> bytes:
    return to_ndjson([make_event(), make_event()])


def proto_event(**values: Any) -> bytes:
    """A valid message with some of its fields set as only this wire can."""
    message = to_proto(make_event())
    message.MergeFrom(pb.Event(**values))
    return message.SerializeToString()


def framed(*events: bytes) -> bytes:
    """An `IngestRequest` of raw events: each with the tag of field 2, of bytes, before it."""
    return b"".join(b"\x12" + _varint(len(event)) + event for event in events)


def _varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


# --- the fields ------------------------------------------------------------------------------------------------------

REQUIRED: Final = (
    *("event_id", "trace_id", "span_id", "timestamp", "provider", "model", "operation", "latency_ms"),
    *("input_tokens", "output_tokens", "cost_usd", "status", "stream", "environment", "sdk_version"),
)
OPTIONAL: Final = (
    *("parent_span_id", "ttft_ms", "cached_tokens", "error_code", "error_message", "finish_reason"),
    *("user_id", "session_id", "tags", "tools_used", "eval_scores", "prompt_hash"),
)
NOT_NAMES: Final = ("trace_id", "span_id", "model", "environment")
SHORT_TEXTS: Final = ("error_code", "finish_reason", "user_id", "session_id", "prompt_hash", "sdk_version")
WRONG_TYPES: Final[dict[str, list[Any]]] = {
    **{key: [5, {}] for key in (*NOT_NAMES, *SHORT_TEXTS, "event_id", "parent_span_id", "timestamp", "error_message")},
    **{key: [True, ["openai"]] for key in ("provider", "operation", "status")},
    **{key: ["5", True, {}] for key in ("latency_ms", "ttft_ms", "cost_usd")},
    **{key: ["5", [], False] for key in ("input_tokens", "output_tokens", "cached_tokens")},
    "stream": [0, "true"],
    "tags": ["a", ["a"], {"a": 1}, {"a": None}],
    "tools_used": ["a", [1], {"a": "b"}],
    "eval_scores": [1, [1], {"a": "1"}, {"a": True}],
}


def field_cases() -> Iterator[Case]:
    for name in REQUIRED:
        yield bad(f"{name} missing", (name, "missing"), **{name: ABSENT})
        yield bad(f"{name} null", (name, "missing"), **{name: None})
    for name, values in WRONG_TYPES.items():
        for value in values:
            yield bad_json(f"{name} is {value!r}", (name, "invalid"), **{name: value})
    for name in NOT_NAMES:
        yield bad(f"{name} empty", (name, "out_of_range"), **{name: ""})
    for name in (*NOT_NAMES, *SHORT_TEXTS):
        yield bad(f"{name} of 257 characters", (name, "out_of_range"), **{name: "é" * 257})
        yield good(f"{name} of 256 characters", {name: "\U0001f600" * 256}, **{name: "\U0001f600" * 256})
    for name in ("latency_ms", "ttft_ms", "input_tokens", "output_tokens", "cached_tokens"):
        yield bad(f"{name} negative", (name, "out_of_range"), **{name: -1})
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        yield good(f"{name} 2^53 - 1", {name: BIG - 1}, **{name: BIG - 1})
        yield bad(f"{name} 2^53", (name, "out_of_range"), **{name: BIG})
        yield bad_json(f"{name} 5.5", (name, "invalid"), **{name: Num("5.5")})
        yield bad_json(f"{name} 1e400", (name, "out_of_range"), **{name: Num("1e400")})
        yield good(f"{name} 5.0", {name: 5}, **{name: Num("5.0")})
        yield good(f"{name} 1e2", {name: 100}, **{name: Num("1e2")})
        yield good(f"{name} -0", {name: 0}, **{name: Num("-0")})
    for name in ("provider", "operation", "status"):
        yield bad(f"{name} unknown", (name, "unknown_value"), **{name: "mistral"})
        yield bad(f"{name} in capitals", (name, "unknown_value"), **{name: "OpenAI" if name == "provider" else "CHAT"})
    nothing: dict[str, Any] = dict.fromkeys(OPTIONAL)
    emptied: dict[str, Any] = {**nothing, "tags": {}, "tools_used": [], "eval_scores": {}}
    yield good("all optional fields null", emptied, **nothing)
    yield good("no optional field", emptied, **dict.fromkeys(OPTIONAL, ABSENT))
    yield good("every field", EVERY, **EVERY)


EVERY: Final[dict[str, Any]] = {
    "parent_span_id": "p" * 1000,
    "ttft_ms": 12.5,
    "cached_tokens": 3,
    "error_code": "context_length_exceeded",
    "error_message": "too long",
    "finish_reason": "length",
    "user_id": "ü@example.org/1",
    "session_id": "s",
    "tags": {"feature": "summarizer", "": "x"},
    "tools_used": ["a", "b", "a"],
    "eval_scores": {"faithfulness": 0.94, "n": -1.0},
    "prompt_hash": "abc",
    "status": "error",
}

VALUES: Final = (
    bad("event_id no UUID", ("event_id", "invalid"), event_id="abc"),
    bad("event_id empty", ("event_id", "invalid"), event_id=""),
    bad("event_id of version 1", ("event_id", "invalid"), event_id="550e8400-e29b-11d4-a716-446655440001"),
    bad("event_id without dashes", ("event_id", "invalid"), event_id="550e8400e29b41d4a716446655440001"),
    bad("event_id too long to repeat", ("event_id", "invalid"), event_id="x" * 300),
    good(
        "event_id in capitals",
        {"event_id": "550e8400-e29b-41d4-a716-44665544000a"},
        event_id="550E8400-E29B-41D4-A716-44665544000A",
    ),
    *(
        bad(f"timestamp {text!r}", ("timestamp", "invalid"), timestamp=text)
        for text in ("", "yesterday", "2026-04-20", "2026-04-20T10:00:00", "2026-13-01T00:00:00Z", "1776679200")
    ),
    *(
        bad(f"timestamp {text!r}, no leap second", ("timestamp", "invalid"), timestamp=text)
        for text in ("2026-04-20T10:00:60Z", "2026-03-31T23:59:60Z", "2016-12-31T23:59:61Z")
    ),
    bad("timestamp 24 h and 1 ms ahead", ("timestamp", "out_of_range"), timestamp="2026-04-21T12:00:00.001Z"),
    *(
        good(f"timestamp {text}", {"timestamp": parse_timestamp(same)}, timestamp=text)
        for text, same in {
            "2026-04-21T12:00:00Z": "2026-04-21T12:00:00Z",
            "2026-04-20T12:00:00+02:00": "2026-04-20T10:00:00Z",
            "2026-04-20T10:00:00.123456789Z": "2026-04-20T10:00:00.123456Z",
            "1970-01-01T00:00:00Z": "1970-01-01T00:00:00Z",
            "1903-02-03T04:05:06-08:00": "1903-02-03T12:05:06Z",
            "2016-12-31T23:59:60Z": "2016-12-31T23:59:59.999999Z",
            "1990-12-31T15:59:60.5-08:00": "1990-12-31T23:59:59.999999Z",
        }.items()
    ),
    bad("cost negative", ("cost_usd", "out_of_range"), cost_usd=Decimal("-0.000000000001")),
    bad("cost over a million", ("cost_usd", "out_of_range"), cost_usd=Decimal("1000000.0000000000001")),
    bad("cost beyond any decimal", ("cost_usd", "out_of_range"), cost_usd=Num("1e99999999999999999999")),
    bad("cost 1e400", ("cost_usd", "out_of_range"), cost_usd=Num("1e400")),
    *(
        good(f"cost {text}", {"cost": pico, "priced": True}, cost_usd=Num(text))
        for text, pico in {
            "0": 0,
            "-0": 0,
            "-0.0": 0,
            "0.1": 10**11,
            "0.30000000000000004": 300_000_000_000,
            "1e-12": 1,
            "5e-13": 0,
            "1.5e-12": 2,
            "2.5E-12": 2,
            "1e-400": 0,
            "1000000": 10**18,
            "1E6": 10**18,
            "123456.123456789012": 123_456_123_456_789_012,
        }.items()
    ),
    good("latency -0", {"latency_ms": 0.0}, latency_ms=Num("-0")),
    good("latency with a fraction", {"latency_ms": 0.25}, latency_ms=0.25),
    good("latency 1e308", {"latency_ms": 1e308}, latency_ms=Num("1e308")),
    good("error_message is cut", {"error_message": "é" * 500}, error_message="é" * 501, status="error"),
    good("empty user and session", {"user_id": None, "session_id": None}, user_id="", session_id=""),
    good("empty sdk_version", {"sdk_version": ""}, sdk_version=""),
    good("64 tags", {"tags": {str(n): "v" for n in range(64)}}, tags={str(n): "v" for n in range(64)}),
    bad("65 tags", ("tags", "out_of_range"), tags={str(n): "v" for n in range(65)}),
    good("project_id is ignored", {"extra": {}}, project_id="somebody-else"),
    good(
        "unknown fields are kept",
        {"extra": {"region": "eu", "deep": {"a": [1, None, 2.5]}, "n": 5}},
        region="eu",
        deep={"a": [1, None, 2.5]},
        n=5,
    ),
    good("an unknown number that no float holds", {}, huge=Num("1e400")),
    good("an unknown field nested 63 deep", {}, deep=Num("[" * 63 + "]" * 63)),
    bad("an unknown field nested 64 deep", (None, "out_of_range"), deep=Num("[" * 64 + "]" * 64)),
    bad(
        "an unknown field nested 64 deep, and a bad one",
        (None, "out_of_range"),
        deep=Num("[" * 64 + "]" * 64),
        model="",
    ),
    bad("first fault in the order of the table", ("trace_id", "missing"), trace_id=None, cost_usd=None, model=""),
    bad("an event over 256 KiB", (None, "out_of_range"), parent_span_id="x" * (256 * 1024)),
    good("an event under 256 KiB", {"parent_span_id": "x" * 260_000}, parent_span_id="x" * 260_000),
)

HANDLING: Final = (
    Case("strict takes a good batch", [make_event()] * 2, prefer="handling=strict", accepted=2),
    Case(
        "strict refuses all for one",
        [make_event(), make_event(model=None), make_event()],
        prefer="handling=strict",
        rejected=[(2, "model", "missing")],
        refused="bad_batch",
    ),
    Case(
        "partial refuses when none is valid",
        [make_event(provider="mistral"), make_event(cost_usd=None)],
        rejected=[(1, "provider", "unknown_value"), (2, "cost_usd", "missing")],
        refused="bad_batch",
    ),
    Case(
        "lenient maps what is unknown",
        [make_event(provider="mistral", operation="rerank", tags={"a": "b"})],
        prefer="handling=lenient",
        accepted=1,
        stored={
            "provider": "custom",
            "operation": "custom",
            "tags": {"a": "b", "provider.raw": "mistral", "operation.raw": "rerank"},
        },
    ),
    Case(
        "lenient fills in what is missing",
        [make_event(**dict.fromkeys(REQUIRED[1:3] + REQUIRED[4:]))],
        prefer="handling=lenient",
        accepted=1,
        stored={
            **dict.fromkeys(("trace_id", "span_id", "model", "environment", "sdk_version"), "unknown"),
            **dict.fromkeys(("provider", "operation"), "custom"),
            **dict.fromkeys(("latency_ms", "input_tokens", "output_tokens", "cost"), 0),
            "status": "success",
            "stream": False,
            "priced": False,
        },
    ),
    Case(
        "lenient: an error code makes an error",
        [make_event(status=None, error_code="overloaded")],
        prefer="respond-async, handling=lenient",
        accepted=1,
        stored={"status": "error"},
    ),
    Case(
        "lenient keeps its limits",
        [
            make_event(event_id=None),
            make_event(timestamp=None),
            make_event(cost_usd=-1),
            make_event(model="x" * 257),
            make_event(status="great"),
            make_event(input_tokens=1, cached_tokens=BIG - 1),
            make_event(event_id=""),
            make_event(),
        ],
        prefer="handling=lenient",
        accepted=1,
        rejected=[
            (1, "event_id", "missing"),
            (2, "timestamp", "missing"),
            (3, "cost_usd", "out_of_range"),
            (4, "model", "out_of_range"),
            (5, "status", "unknown_value"),
            (6, "cached_tokens", "out_of_range"),
            (7, "event_id", "invalid"),
        ],
    ),
    Case(
        "lenient takes empty texts as missing",
        [make_event(**dict.fromkeys((*NOT_NAMES, "sdk_version", "status"), ""))],
        prefer="handling=lenient",
        accepted=1,
        stored={**dict.fromkeys((*NOT_NAMES, "sdk_version"), "unknown"), "status": "success"},
    ),
    Case(
        "lenient adds cached tokens beside the input tokens",
        [make_event(input_tokens=3, cached_tokens=20_000)],
        prefer="handling=lenient",
        accepted=1,
        stored={"input_tokens": 20_003, "cached_tokens": 20_000},
    ),
    Case(
        "lenient leaves cached tokens within the input tokens",
        [make_event(input_tokens=20_000, cached_tokens=20_000)],
        prefer="handling=lenient",
        accepted=1,
        stored={"input_tokens": 20_000, "cached_tokens": 20_000},
    ),
    good(
        "a call with all that is new",
        {"kind": "call", "name": "n" * 256, "cache_write_tokens": BIG - 1, "reasoning_tokens": 0, "extra": {}},
        kind="call",
        name="n" * 256,
        cache_write_tokens=BIG - 1,
        reasoning_tokens=0,
    ),
    bad("cache_write_tokens below 0", ("cache_write_tokens", "out_of_range"), cache_write_tokens=-1),
    bad("reasoning_tokens above 2^53 - 1", ("reasoning_tokens", "out_of_range"), reasoning_tokens=BIG),
    bad_json("reasoning_tokens as a string", ("reasoning_tokens", "invalid"), reasoning_tokens="1"),
    good(
        "a kind and a name of another form are unknown fields",
        {"kind": "call", "name": None, "extra": {"kind": "agent", "name": "n" * 257}},
        kind="agent",
        name="n" * 257,
    ),
    good("a span with the fields of a call", {"kind": "span", "model": "gpt-4o", "input_tokens": 512}, **SPAN),
    good(
        "a span with what it needs",
        {
            "kind": "span",
            "name": "plan",
            "provider": "custom",
            "model": "plan",
            "operation": "custom",
            "stream": False,
            "input_tokens": None,
            "output_tokens": None,
            "cost": 0,
            "priced": False,
        },
        **{**SPAN, **dict.fromkeys(OF_CALLS)},
    ),
    bad("a span that costs something", ("cost_usd", "out_of_range"), **{**SPAN, "cost_usd": Num("0.000001")}),
    bad("a span without a name", ("name", "missing"), **{**SPAN, "name": None}),
    bad("a span without an environment", ("environment", "missing"), **{**SPAN, "environment": None}),
    bad("a span of another provider", ("provider", "unknown_value"), **{**SPAN, "provider": "acme"}),
    Case(
        "a lenient span without names",
        [make_event(**{**SPAN, **dict.fromkeys((*OF_CALLS, "name", "trace_id", "status"))})],
        prefer="handling=lenient",
        accepted=1,
        stored={"kind": "span", "name": "unknown", "model": "unknown", "trace_id": "unknown", "status": "success"},
    ),
    Case(
        "partial leaves cached tokens beside the input tokens",
        [make_event(input_tokens=3, cached_tokens=20_000)],
        accepted=1,
        stored={"input_tokens": 3, "cached_tokens": 20_000},
    ),
)

SAME: Final = make_event()

BATCHES: Final = (
    Case("no event", [], refused="bad_batch"),
    Case("one event", [make_event()], accepted=1),
    Case("100 events", [make_event(latency_ms=n) for n in range(100)], accepted=100),
    Case("101 events", [make_event() for _ in range(101)], refused="bad_batch"),
    Case("a duplicate counts as accepted", [SAME, SAME, {**SAME, "model": "other"}], accepted=3),
    Case(
        "bad ones count to the 100",
        [make_event(model=None) for _ in range(60)] + [make_event() for _ in range(41)],
        refused="bad_batch",
    ),
    Case(
        "99 bad, one good",
        [make_event(stream=None) for _ in range(99)] + [make_event()],
        accepted=1,
        rejected=[(number, "stream", "missing") for number in range(1, 100)],
    ),
    Case("many users and models", [make_event(user_id=f"u{n}", model=f"m{n % 7}") for n in range(100)], accepted=100),
)

# --- only HTTP -------------------------------------------------------------------------------------------------------

EVENT: Final = to_json_line(make_event(event_id="0d5b1c9e-77aa-4f0e-9b1d-5a6c7d8e9f01"))
"""Its id does not hold the digits that cases replace."""


def nested(depth: int) -> bytes:
    return EVENT[:-1] + b',"deep":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


LINES: Final = (
    line("not JSON", b"event_id=1", (None, "syntax")),
    line("a cut line", EVENT[:-10], (None, "syntax")),
    line("a list that does not end", b"[{},", (None, "syntax")),
    line("two objects in a line", EVENT + EVENT, (None, "syntax")),
    line("broken UTF-8", EVENT.replace(b"gpt-4o", b"gpt-\xff"), ("model", "syntax")),
    line("half a character", EVENT[:-1] + b',"error_message":"cut \\ud83d"}', ("error_message", "syntax")),
    line("broken UTF-8 in an unknown field", EVENT[:-1] + b',"x":"\xc3"}', (None, "syntax")),
    line("NaN", EVENT.replace(b"843", b"NaN"), ("latency_ms", "syntax")),
    line("NaN in an unknown field", EVENT[:-1] + b',"x":[NaN]}', (None, "syntax")),
    line("Infinity", EVENT.replace(b"843", b"Infinity"), ("latency_ms", "syntax")),
    line("a number with a leading zero", EVENT.replace(b"843", b"0843"), ("latency_ms", "syntax")),
    line("a comment", EVENT[:-1] + b"/**/}", ("sdk_version", "syntax")),
    line("latency 1e400", EVENT.replace(b"843", b"1e400"), ("latency_ms", "out_of_range")),
    line("a score of 1e400", EVENT[:-1] + b',"eval_scores":{"a":1e400}}', ("eval_scores", "out_of_range")),
    line("a list", b"[1,2]", (None, "invalid")),
    line("null", b"null", (None, "invalid")),
    line("a number", b"5", (None, "invalid")),
    line("an empty object", b"{}", ("event_id", "missing")),
    line("nested 65 deep", nested(65), (None, "out_of_range")),
    line("nested 100,000 deep", nested(100_000), (None, "out_of_range")),
    line("a BOM in the middle", b"\xef\xbb\xbf" + EVENT, (None, "syntax")),
)

BODIES: Final = (
    whole("nested 64 deep", lambda: nested(64), accepted=1),
    whole("brackets in a string are no nesting", lambda: EVENT[:-1] + b',"x":"' + b"[{" * 99 + b'"}', accepted=1),
    whole(
        "the last of duplicate keys wins",
        lambda: EVENT[:-1] + b',"model":"last","cost_usd":1,"cost_usd":2}',
        accepted=1,
        stored={"model": "last", "cost": 2 * 10**12},
    ),
    line("a duplicate key of another type", EVENT[:-1] + b',"model":5}', ("model", "invalid")),
    whole("escapes", lambda: EVENT.replace(b"gpt-4o", b"gpt\\u002d4o\\u00e9"), accepted=1, stored={"model": "gpt-4oé"}),
    whole("white space inside", lambda: b" " + EVENT.replace(b",", b" ,\t") + b" ", accepted=1),
    whole("CRLF", lambda: two().replace(b"\n", b"\r\n"), accepted=2),
    whole("no newline at the end", lambda: two().rstrip(), accepted=2),
    whole("a BOM", lambda: b"\xef\xbb\xbf" + two(), accepted=2),
    whole("a BOM and blank lines before", lambda: b"\xef\xbb\xbf\r\n \n" + two(), accepted=2),
    whole(
        "blank lines count in the numbering",
        lambda: b"\n\n" + two() + b"  \n\r\n{}\n\n",
        accepted=2,
        rejected=[(7, "event_id", "missing")],
    ),
    whole("100 events and 200 blank lines", lambda: hundred().replace(b"\n", b"\n\n\n"), accepted=100),
    whole("an empty body", lambda: b"", refused="bad_batch"),
    whole("only blank lines", lambda: b"\n \r\n\t\n", refused="bad_batch"),
    whole("only a BOM", lambda: b"\xef\xbb\xbf", refused="bad_batch"),
    whole(
        "an event spread over lines",
        lambda: EVENT.replace(b",", b",\n"),
        refused="bad_batch",
        rejected=[(number, None, "syntax") for number in range(1, 16)],
    ),
    whole("a million lines", lambda: b"{}\n" * 1_000_000, refused="bad_batch"),
    whole("21 MiB", lambda: b" " * (21 * MIB), refused="too_large"),
    whole("20 MiB of blank lines and an event", lambda: b"\n" * (20 * MIB - len(EVENT)) + EVENT, accepted=1),
    whole("UTF-16", lambda: EVENT.decode().encode("utf-16"), refused="bad_batch", rejected=[(1, None, "syntax")]),
)


def hundred(**overrides: Any) -> bytes:
    return to_ndjson([make_event(**overrides) for _ in range(100)])


def packed(name: str, encoding: str, pack: Callable[[bytes], bytes]) -> Iterator[Case]:
    """What a packed body may be, for one encoding."""
    yield whole(name, lambda: pack(two()), encoding, accepted=2)
    yield whole(f"{name}, truncated", lambda: pack(two())[:-1], encoding, refused="bad_batch")
    yield whole(f"{name}, garbage behind", lambda: pack(two()) + b"garbage", encoding, refused="bad_batch")
    yield whole(f"{name} that is none", two, encoding, refused="bad_batch")
    yield whole(f"{name} of nothing", lambda: pack(b""), encoding, refused="bad_batch")
    yield whole(f"{name} bomb", lambda: pack(b"\0" * (64 * MIB)), encoding, refused="too_large")
    yield whole(f"{name} bomb of events", lambda: pack((EVENT + b"\n") * 70_000), encoding, refused="too_large")
    yield whole(f"{name} of 2 MiB", lambda: pack(b"\n" * (2 * MIB) + two()), encoding, accepted=2)
    yield whole(f"{name} that stays large", lambda: pack(hundred(x=os.urandom(9000).hex())), encoding, accepted=100)


ENCODINGS: Final = (
    *packed("gzip", "gzip", gzip.compress),
    *packed("zlib", "deflate", zlib.compress),
    *packed("raw deflate", "deflate", lambda body: zlib.compress(body, wbits=-15)),
    *packed("zstd", "zstd", zstandard.compress),
    whole("gzip of two members", lambda: gzip.compress(two()) + gzip.compress(two()), "gzip", accepted=4),
    whole("a member ends in a line", lambda: gzip.compress(EVENT[:50]) + gzip.compress(EVENT[50:]), "gzip", accepted=1),
    whole("zstd of two frames", lambda: zstandard.compress(two()) + zstandard.compress(two()), "zstd", accepted=4),
    whole("identity", two, "identity", accepted=2),
    whole("gzip that is not named", lambda: gzip.compress(two()), refused="bad_batch"),
    whole("zstd that is not named", lambda: zstandard.compress(two()), "identity", refused="bad_batch"),
    whole("gzip twice", lambda: gzip.compress(gzip.compress(two())), "gzip", refused="bad_batch"),
    whole("bytes behind gzip", lambda: gzip.compress(two()) + b"rubbish", "gzip", refused="bad_batch"),
    whole("an unknown encoding", two, "br", refused="unsupported_encoding"),
    whole("one encoding upon another", two, "gzip, gzip", refused="unsupported_encoding"),
)

# --- only gRPC -------------------------------------------------------------------------------------------------------


def odd(name: str, event: bytes, fault: tuple[str | None, Code]) -> Case:
    """An event as only this wire can have it, between two good ones."""
    return Case(name, message=lambda: framed(proto_event(), event, proto_event()), accepted=2, rejected=[(2, *fault)])


NAN: Final = float("nan")

MESSAGES: Final = (
    odd("an event that is no message", b"\x0a\xff", (None, "syntax")),
    odd("broken UTF-8 (proto)", b"\x3a\x01\xff", (None, "syntax")),
    odd("an empty event", b"", ("event_id", "missing")),
    odd("latency NaN", proto_event(latency_ms=NAN), ("latency_ms", "invalid")),
    odd("latency infinite", proto_event(latency_ms=float("inf")), ("latency_ms", "out_of_range")),
    odd("a score of NaN", proto_event(eval_scores={"a": NAN}), ("eval_scores", "invalid")),
    odd("cost that is no number", proto_event(cost_usd="free"), ("cost_usd", "invalid")),
    odd("cost NaN", proto_event(cost_usd="NaN"), ("cost_usd", "invalid")),
    odd("cost empty", proto_event(cost_usd=""), ("cost_usd", "invalid")),
    odd("extra_json that is no JSON", proto_event(extra_json={"a": "{"}), ("extra_json", "syntax")),
    Case("a field of a later version", message=lambda: framed(proto_event() + b"\xc2\x3e\x03abc"), accepted=1),
    Case("100,000 empty events", message=lambda: framed(b"") * 100_000, refused="bad_batch"),
    Case("no IngestRequest", message=lambda: b"\xff\xff", refused="bad_batch"),
    Case(
        "a message of over 20 MiB",
        message=lambda: framed(b"\x3a" + _varint(20 * MIB) + b"m" * (20 * MIB)),
        refused="too_large",
    ),
)

CASES: Final = (*field_cases(), *VALUES, *HANDLING, *BATCHES, *LINES, *BODIES, *ENCODINGS, *MESSAGES)
