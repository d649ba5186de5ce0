"""Answers to exports in both encodings: `ExportTraceServiceResponse`, and `google.rpc.Status`."""

from typing import Final

import msgspec

from protos.spendstream.otlp.v1 import spans_pb2 as pb
from server.errors import Refused
from server.otlp.span_export import ExportAnswer
from server.otlp.spans import Encoding

CONTENT_TYPES: Final[dict[str, Encoding]] = {"application/x-protobuf": "protobuf", "application/json": "json"}
"""Of requests and their answers."""


def no_metrics() -> Refused:
    """What metrics are answered."""
    return _no("metrics", "OTEL_METRICS_EXPORTER")


def no_logs() -> Refused:
    """What logs are answered."""
    return _no("logs", "OTEL_LOGS_EXPORTER")


def _no(signal: str, variable: str) -> Refused:
    return Refused(
        "not_found", f"Only traces are accepted here: set {variable}=none, or export {signal} to another endpoint"
    )


def content_type_of(encoding: Encoding) -> str:
    """The content type of an encoding."""
    return next(name for name, each in CONTENT_TYPES.items() if each == encoding)


def response_of(answer: ExportAnswer) -> pb.ExportResponse:
    """The message of an answer."""
    if not answer.rejected:
        return pb.ExportResponse()
    partial = pb.PartialSuccess(rejected_spans=answer.rejected, error_message=answer.message)
    return pb.ExportResponse(partial_success=partial)


def body_of(answer: ExportAnswer, encoding: Encoding) -> bytes:
    """The body of an answer; 64-bit numbers are strings in JSON."""
    if encoding == "protobuf":
        return response_of(answer).SerializeToString()
    if not answer.rejected:
        return b"{}"
    partial = {"rejectedSpans": str(answer.rejected), "errorMessage": answer.message}
    return msgspec.json.encode({"partialSuccess": partial})
