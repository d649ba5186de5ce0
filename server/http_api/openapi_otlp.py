"""OTLP in the OpenAPI document: exports of spans, and what other signals are answered."""

from typing import Any, Final

from processor.core.events.content_coding import MAX_BODY
from server.errors import Reason
from server.http_api.openapi_schemas import COUNT, POSITION, TEXT, Schema, listed, record, ref
from server.ingest.inflate import ENCODINGS
from server.otlp.export_responses import CONTENT_TYPES
from server.otlp.span_export import MAX_RETRY_AFTER
from server.status import TABLE

_JSON: Final = "application/json"
_AGAIN: Final = {"Retry-After": {"schema": {"type": "integer", "minimum": 1, "maximum": MAX_RETRY_AFTER}}}
_WHY: Final[dict[Reason, str]] = {
    "bad_batch": "The body cannot be decompressed or decoded; nothing was taken",
    "unauthenticated": "The key is missing, unknown, revoked or expired",
    "forbidden": "The key lacks the scope `ingest`",
    "too_large": f"The body has more than {MAX_BODY >> 20} MiB when inflated",
    "unsupported_type": "The content type or encoding is not supported",
    "rate_limited": "The key's rate or the organization's monthly quota is used up; nothing was charged",
    "unavailable": "The spans cannot be made durable now, or the server failed; the same request may be sent again",
}

SCHEMAS: Final[dict[str, Schema]] = {
    "ExportTraceServiceRequest": {
        "type": "object",
        "properties": {"resourceSpans": listed({"type": "object"})},
        "description": "opentelemetry.proto.collector.trace.v1: ids in hex, names in lowerCamelCase",
    },
    "ExportTraceServiceResponse": record(
        ("partialSuccess",),
        partialSuccess=record(
            ("rejectedSpans", "errorMessage"),
            rejectedSpans={"type": "string", "description": "How many spans were not taken; the others were"},
            errorMessage=TEXT,
        ),
    ),
    "Status": {
        "type": "object",
        "description": "google.rpc.Status; in JSON with the members of every error",
        "properties": {"code": COUNT, "message": TEXT, "error": TEXT, "reason": ref("Reason")},
        "required": ["code", "message", "error", "reason"],
    },
}


def paths() -> dict[str, Any]:
    """The operations by path and method."""
    return {
        "/v1/traces": {"post": _export()},
        "/v1/metrics": {"post": _not_here("metrics", "OTEL_METRICS_EXPORTER")},
        "/v1/logs": {"post": _not_here("logs", "OTEL_LOGS_EXPORTER")},
    }


def _contents(schema: Schema) -> dict[str, Any]:
    return {media: {"schema": schema if media == _JSON else _BINARY} for media in CONTENT_TYPES}


_BINARY: Final[Schema] = {"type": "string", "format": "binary"}


def _failure(why: str, **headers: Any) -> dict[str, Any]:
    return {"description": why, "content": _contents(ref("Status")), **({"headers": headers} if headers else {})}


def _export() -> dict[str, Any]:
    responses = {
        "200": {
            "description": "Every span that was taken is durable; `partialSuccess` says how many were not, and why",
            "headers": {"x-ingest-position": {"schema": POSITION, "description": "For `after` of a read"}},
            "content": _contents(ref("ExportTraceServiceResponse")),
        }
    }
    headers: dict[str, dict[str, Any]] = {
        "rate_limited": _AGAIN,
        "unavailable": _AGAIN,
        "unsupported_type": {"Accept": {"schema": TEXT}, "Accept-Encoding": {"schema": TEXT}},
    }
    for reason, why in _WHY.items():
        responses[str(TABLE[reason].http)] = _failure(why, **headers.get(reason, {}))
    return {
        "tags": ["ingest"],
        "summary": "Send spans over OTLP",
        "description": (
            f"An ExportTraceServiceRequest of OpenTelemetry of at most {MAX_BODY >> 20} MiB when inflated, with any "
            "number of spans. Calls to models become events of kind `call`, other steps of applications with models "
            "events of kind `span`, everything else is dropped; see the reference of OTLP attributes. A span is an "
            "event once, however often and over whatever wire it is sent. `Prefer` does not apply: spans are taken one "
            "by one. The gRPC port has the same as opentelemetry.proto.collector.trace.v1.TraceService."
        ),
        "parameters": [{"name": "Content-Encoding", "in": "header", "schema": {"enum": list(ENCODINGS)}}],
        "requestBody": {"required": True, "content": _contents(ref("ExportTraceServiceRequest"))},
        "responses": responses,
    }


def _not_here(signal: str, variable: str) -> dict[str, Any]:
    why = f"Only traces are accepted; the status says to set {variable}=none"
    return {
        "tags": ["ingest"],
        "summary": f"Say that {signal} are not accepted over OTLP",
        "security": [],
        "responses": {str(TABLE["not_found"].http): _failure(why)},
    }
