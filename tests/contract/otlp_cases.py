"""What spans become: one table for OTLP over HTTP in protobuf and in JSON, and over gRPC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.support.otlp import CHAT, START, TRACE, make_span, request, span_id

HOUR: Final = 3_600_000_000_000


@dataclass(frozen=True)
class Case:
    """A request and what becomes of its spans: those that are kept, by their number, with some of their fields; None
    says that a field is absent."""

    name: str
    sent: dict[str, Any]
    kept: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    rejected: int = 0
    fault: str = ""
    """Part of the first reason."""


def one(name: str, kept: Mapping[str, Any], /, **changes: Any) -> Case:
    """A single call."""
    return Case(name, request(make_span(**changes)), {1: kept})


def among(name: str, fault: str, bad: dict[str, Any]) -> Case:
    """A bad span between two good ones: they are taken."""
    return Case(name, request(make_span(1), bad, make_span(3)), {1: {}, 3: {}}, 1, fault)


INFRA: Final = {"http.request.method": "POST", "url.full": "https://api.openai.com/v1/chat/completions"}
AGENT: Final = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "planner"}
TOOL: Final = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}
CHAIN: Final = {"openinference.span.kind": "CHAIN"}
REMOTE: Final = 0x300
OUTER: Final = CHAT | {"gen_ai.usage.input_tokens": 150, "gen_ai.usage.output_tokens": 30}
FEWER: Final = CHAT | {"gen_ai.usage.input_tokens": 99}
NO_TOKENS: Final = {name: each for name, each in CHAT.items() if "usage" not in name}

CASES: Final = [
    Case("no resource", {}),
    Case("no span", request()),
    one(
        "a call",
        {
            "trace_id": TRACE,
            "span_id": span_id(1),
            "parent_span_id": None,
            "timestamp": START // 1000,
            "provider": "openai",
            "model": "gpt-4o",
            "operation": "chat",
            "latency_ms": 1500.0,
            "ttft_ms": None,
            "input_tokens": 100,
            "output_tokens": 20,
            "cached_tokens": None,
            "priced": False,
            "status": "success",
            "error_code": None,
            "stream": False,
            "environment": "production",
            "sdk_version": "1.45.2",
            "kind": "call",
            "name": "chat gpt-4o",
            "tags": {},
            "extra": {
                "attributes": {"gen_ai.operation.name": "chat"},
                "resource": {"service.name": "app"},
                "scope": {"name": "opentelemetry.instrumentation.openai_v2", "version": "2.4b0"},
            },
        },
    ),
    Case(
        "what is missing is unknown",
        request(make_span(1, attributes={"gen_ai.operation.name": "chat"}), resource={}),
        {1: {"environment": "unknown", "model": "unknown", "sdk_version": "unknown", "provider": "custom"}},
    ),
    one("it ends before it starts", {"latency_ms": 0.0}, endTimeUnixNano=str(START - 1)),
    one("it has not ended", {"latency_ms": 0.0}, endTimeUnixNano=None),
    one(
        "upper case in ids",
        {"trace_id": TRACE},
        traceId=TRACE.upper(),
    ),
    one("an error", {"status": "error", "error_message": "no"}, status={"code": 2, "message": "no"}),
    one("a type alone is an error", {"status": "error", "error_code": "X"}, attributes=CHAT | {"error.type": "X"}),
    one("429", {"status": "rate_limited", "error_code": "429"}, attributes=CHAT | {"error.type": "429"}),
    one("408", {"status": "timeout"}, attributes=CHAT | {"http.response.status_code": 408}, status={"code": 2}),
    one(
        "an exception",
        {"status": "timeout", "error_code": "openai.APITimeoutError", "error_message": "late"},
        status={"code": 2},
        events=[
            {
                "timeUnixNano": str(START),
                "name": "exception",
                "attributes": {"exception.type": "openai.APITimeoutError", "exception.message": "late"},
            }
        ],
    ),
    one("a cost", {"priced": True, "cost": 1_230_000_000}, attributes=CHAT | {"gen_ai.usage.cost": 0.00123}),
    one("a cost of OpenInference", {"cost": 20_000_000}, attributes=CHAT | {"llm.cost.total": 2e-05}),
    one(
        "more characters than a field has",
        {"model": "m" * 256, "extra.attributes": {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m" * 300}},
        attributes=CHAT | {"gen_ai.request.model": "m" * 300},
    ),
    one(
        "values of any kind",
        {
            "extra.attributes": {
                "gen_ai.operation.name": "chat",
                "b": True,
                "i": 2**62,
                "f": 0.5,
                "n": None,
                "l": ["a", [1, {"k": "v"}]],
                "o": {"a": {"b": ["c"]}},
                "y": "AAE=",
            }
        },
        attributes=CHAT
        | {
            "b": True,
            "i": 2**62,
            "f": 0.5,
            "n": None,
            "l": ["a", [1, {"k": "v"}]],
            "o": {"a": {"b": ["c"]}},
            "y": b"\0\1",
        },
    ),
    # --- which spans, and their parents ---
    Case("infrastructure is dropped", request(make_span(1, attributes=INFRA), make_span(2, attributes={}))),
    Case(
        "an agent, a tool, a chain",
        request(
            make_span(1, attributes=AGENT, name="invoke_agent planner"),
            make_span(2, 1, attributes=TOOL),
            make_span(3, 1, attributes=CHAIN),
            make_span(4, 3),
        ),
        {
            1: {
                "kind": "span",
                "name": "invoke_agent planner",
                "operation": "custom",
                "parent_span_id": None,
                "cost": 0,
            },
            2: {"kind": "span", "parent_span_id": span_id(1), "tools_used": ["search"]},
            3: {"kind": "span", "parent_span_id": span_id(1)},
            4: {"kind": "call", "parent_span_id": span_id(3)},
        },
    ),
    Case(
        "the nearest kept ancestor",
        request(
            make_span(1, attributes=AGENT),
            make_span(2, 1, attributes=INFRA),
            make_span(3, 2, attributes=INFRA),
            make_span(4, 3),
        ),
        {1: {}, 4: {"parent_span_id": span_id(1), "extra.sent_parent_span_id": span_id(3)}},
    ),
    Case(
        "all ancestors dropped up to a root",
        request(make_span(4, 3), make_span(3, 2, attributes=INFRA), make_span(2, attributes=INFRA)),
        {4: {"parent_span_id": None, "extra.sent_parent_span_id": span_id(3)}},
    ),
    Case(
        "all ancestors dropped up to another service",
        request(make_span(3, 2, attributes=INFRA, flags=REMOTE), make_span(4, 3)),
        {4: {"parent_span_id": None, "extra.sent_parent_span_id": span_id(3)}},
    ),
    Case(
        "a parent of another service",
        request(make_span(4, 3, flags=REMOTE)),
        {4: {"parent_span_id": None, "extra.sent_parent_span_id": span_id(3)}},
    ),
    Case(
        "a parent of another service in the same request",
        request(make_span(3, attributes=AGENT), make_span(4, 3, flags=REMOTE)),
        {3: {}, 4: {"parent_span_id": span_id(3), "extra.sent_parent_span_id": None}},
    ),
    Case("a parent of another request", request(make_span(4, 3)), {4: {"parent_span_id": span_id(3)}}),
    Case(
        "dropped ancestors up to one of another request",
        request(make_span(3, 2, attributes=INFRA), make_span(4, 3)),
        {4: {"parent_span_id": span_id(2), "extra.sent_parent_span_id": span_id(3)}},
    ),
    # --- charged once ---
    Case(
        "a wrapper",
        request(make_span(1, attributes=OUTER), make_span(2, 1)),
        {1: {"kind": "span", "input_tokens": 150, "extra.wrapper": True, "cost": 0}, 2: {"kind": "call"}},
    ),
    Case(
        "a wrapper with a chain and http in between",
        request(
            make_span(1, attributes=CHAT),
            make_span(2, 1, attributes=CHAIN),
            make_span(3, 2, attributes=INFRA),
            make_span(4, 3),
        ),
        {
            1: {"kind": "span", "model": "gpt-4o"},
            2: {"kind": "span"},
            4: {"kind": "call", "parent_span_id": span_id(2)},
        },
    ),
    Case(
        "a wrapper without tokens",
        request(make_span(2, 1), make_span(1, attributes=NO_TOKENS)),
        {1: {"kind": "span"}, 2: {"kind": "call"}},
    ),
    Case(
        "a call with fewer tokens is none",
        request(make_span(1, attributes=FEWER), make_span(2, 1)),
        {1: {"kind": "call"}, 2: {"kind": "call"}},
    ),
    *(
        Case(
            f"a {name} in between",
            request(make_span(1, attributes=OUTER), make_span(2, 1, attributes=between), make_span(3, 2)),
            {1: {"kind": "call"}, 2: {"kind": "span"}, 3: {"kind": "call"}},
        )
        for name, between in (
            ("tool", TOOL),
            ("agent", AGENT),
            ("retrieval", {"gen_ai.operation.name": "retrieval"}),
            ("retriever", {"openinference.span.kind": "RETRIEVER"}),
        )
    ),
    Case(
        "wrappers of wrappers",
        request(make_span(1, attributes=OUTER), make_span(2, 1, attributes=OUTER), make_span(3, 2)),
        {1: {"kind": "span"}, 2: {"kind": "span"}, 3: {"kind": "call"}},
    ),
    Case(
        "a cost of a wrapper is information",
        request(make_span(1, attributes=OUTER | {"llm.cost.total": 0.5}), make_span(2, 1)),
        {
            1: {
                "kind": "span",
                "cost": 0,
                "extra.attributes": {"gen_ai.operation.name": "chat", "llm.cost.total": 0.5},
            },
            2: {"kind": "call"},
        },
    ),
    # --- one meaning of tokens ---
    one(
        "more cached than input",
        {"input_tokens": 260, "cached_tokens": 150, "cache_write_tokens": 10, "extra.usage_normalized": True},
        attributes=CHAT | {"gen_ai.usage.cache_read.input_tokens": 150, "gen_ai.usage.cache_creation.input_tokens": 10},
    ),
    one(
        "cached within input",
        {"input_tokens": 100, "cached_tokens": 50, "extra.usage_normalized": None},
        attributes=CHAT | {"gen_ai.usage.cache_read.input_tokens": 50},
    ),
    one(
        "more reasoning than output",
        {"output_tokens": 50, "reasoning_tokens": 30, "extra.usage_normalized": True},
        attributes=CHAT | {"gen_ai.usage.reasoning.output_tokens": 30},
    ),
    # --- bad spans ---
    among("no trace id", "trace_id", make_span(2, traceId="")),
    among("a trace id of zeros", "trace_id", make_span(2, traceId="0" * 32)),
    among("a short span id", "span_id", make_span(2, spanId="00ff")),
    among("no start", "start_time_unix_nano", make_span(2, startTimeUnixNano=None)),
    among("in the year 2554", "timestamp", make_span(2, startTimeUnixNano=str(2**64 - 1))),
    among("more than a day ahead", "timestamp", make_span(2, startTimeUnixNano=str(START + 27 * HOUR))),
    among("a cost out of range", "cost_usd", make_span(2, attributes=CHAT | {"llm.cost.total": 1_000_001.0})),
    among("a negative cost", "cost_usd", make_span(2, attributes=CHAT | {"llm.cost.total": -1.0})),
    Case("only bad spans", request(make_span(1, traceId=""), make_span(2, spanId="")), {}, 2, "trace_id"),
    Case("more than a hundred spans", request(*(make_span(n) for n in range(1, 701))), {n: {} for n in range(1, 701)}),
]
