"""OTLP requests for tests: written in the JSON form, and the same in protobuf."""

import copy
from base64 import b64encode
from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

import msgspec
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

JsonObject = dict[str, Any]

TRACE: Final = "5b8efff798038103d269b633813fc60c"
START: Final = 1_776_679_200_123_456_789
"""2026-04-20T10:00:00.123456789Z"""
RESOURCE: Final = {
    "service.name": "app",
    "telemetry.sdk.version": "1.45.2",
    "deployment.environment.name": "production",
}
CHAT: Final = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.usage.input_tokens": 100,
    "gen_ai.usage.output_tokens": 20,
}


_NOT_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def value(found: Any) -> dict[str, Any]:
    """An AnyValue; a dict that is one already stays."""
    match found:
        case None:
            return {}
        case bool():
            return {"boolValue": found}
        case int():
            return {"intValue": str(found)}
        case float():
            return {"doubleValue": found if isfinite(found) else _NOT_FINITE[str(found)]}
        case str():
            return {"stringValue": found}
        case bytes():
            return {"bytesValue": b64encode(found).decode()}
        case list():
            return {"arrayValue": {"values": [value(each) for each in found]}}
        case dict():
            return {"kvlistValue": {"values": attributes(found)}}
    raise TypeError(type(found))


def attributes(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A list of KeyValue."""
    return [{"key": name, "value": value(each)} for name, each in found.items()]


def span_id(number: int) -> str:
    return f"{number:016x}"


def make_span(
    number: int = 1, parent: int | str = 0, /, *, name: str = "chat gpt-4o", **changes: Any
) -> dict[str, Any]:
    """A span; `attributes` as a plain dict, None leaves a member out. Without any it is a call (`CHAT`)."""
    found: dict[str, Any] = {
        "traceId": TRACE,
        "spanId": span_id(number),
        "parentSpanId": parent if isinstance(parent, str) else span_id(parent) if parent else "",
        "name": name,
        "kind": 3,
        "startTimeUnixNano": str(START),
        "endTimeUnixNano": str(START + 1_500_000_000),
        "attributes": CHAT,
        "status": {},
    }
    found |= changes
    found["attributes"] = attributes(found["attributes"] or {})
    for event in found.get("events", ()):
        event["attributes"] = attributes(event.get("attributes", {}))
    return {key: each for key, each in found.items() if each is not None}


def request(
    *spans: dict[str, Any],
    resource: Mapping[str, Any] = RESOURCE,
    scope: str = "opentelemetry.instrumentation.openai_v2",
    version: str = "2.4b0",
) -> dict[str, Any]:
    """A request of spans of one scope."""
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": attributes(resource)},
                "scopeSpans": [{"scope": {"name": scope, "version": version}, "spans": list(spans)}],
            }
        ]
    }


def to_json(found: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(found)


def to_message(found: Mapping[str, Any]) -> ExportTraceServiceRequest:
    """The message that the JSON form means."""
    return json_format.ParseDict(with_binary_ids(found), ExportTraceServiceRequest(), ignore_unknown_fields=True)


def with_binary_ids(found: Mapping[str, Any]) -> JsonObject:
    """OTLP JSON, whose ids are hex, as protobuf's own JSON, whose ids are base64."""
    made = copy.deepcopy(dict(found))
    for span in spans_of(made):
        for holder in [span, *span.get("links", [])]:
            for name in ("traceId", "spanId", "parentSpanId"):
                if name in holder:
                    holder[name] = b64encode(bytes.fromhex(holder[name])).decode()
    return made


def to_protobuf(found: Mapping[str, Any]) -> bytes:
    return to_message(found).SerializeToString()


def spans_of(found: Mapping[str, Any]) -> list[JsonObject]:
    """All spans of a request in OTLP JSON, to read or to change."""
    return [
        span
        for resource in found.get("resourceSpans", ())
        for scope in resource.get("scopeSpans", ())
        for span in scope.get("spans", ())
    ]
