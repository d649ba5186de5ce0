"""The one table reason -> HTTP status, gRPC status code, and both forms of an error answer made from it."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

import grpc
import msgspec
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from server.errors import Reason, Refused, Rejection
from server.ingest.inflate import ENCODINGS

MAX_RETRY_AFTER: Final = 60
"""Seconds; no answer asks for a longer wait."""

NDJSON: Final = "application/x-ndjson"

API_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Of every answer of the API: it is a tenant's data, for this client only, and never a page."""

_Code = grpc.StatusCode
TABLE: Final[dict[Reason, tuple[int, grpc.StatusCode]]] = {
    "bad_request": (400, _Code.INVALID_ARGUMENT),
    "bad_batch": (400, _Code.INVALID_ARGUMENT),
    "too_large": (413, _Code.INVALID_ARGUMENT),
    "unsupported_type": (415, _Code.INVALID_ARGUMENT),
    "unsupported_encoding": (415, _Code.INVALID_ARGUMENT),
    "unauthenticated": (401, _Code.UNAUTHENTICATED),
    "forbidden": (403, _Code.PERMISSION_DENIED),
    "not_found": (404, _Code.NOT_FOUND),
    "conflict": (409, _Code.ABORTED),
    "rate_limited": (429, _Code.RESOURCE_EXHAUSTED),
    "quota_exceeded": (429, _Code.RESOURCE_EXHAUSTED),
    "unavailable": (503, _Code.UNAVAILABLE),
    "not_yet_visible": (504, _Code.DEADLINE_EXCEEDED),
}

_SUBJECTS: Final[dict[Reason, str]] = {"rate_limited": "key", "quota_exceeded": "organization"}
"""Whose limit it was, in a `QuotaFailure`."""

_HEADERS: Final[dict[Reason, dict[str, str]]] = {
    "unauthenticated": {"WWW-Authenticate": 'ApiKey realm="spendstream"'},  # RFC 9110 wants one with every 401
    "unsupported_type": {"Accept": NDJSON},
    "unsupported_encoding": {"Accept-Encoding": ", ".join(ENCODINGS)},
}


def retry_after(refused: Refused) -> int | None:
    """Seconds to wait before the same request is sent again, 1 to 60; None if that would be of no use."""
    return min(max(refused.retry_after or 1, 1), MAX_RETRY_AFTER) if refused.retryable else None


# --- HTTP ------------------------------------------------------------------------------------------------------------


def http_headers(refused: Refused) -> dict[str, str]:
    """What an error answer says besides its body."""
    headers = dict(_HEADERS.get(refused.reason, ()))
    wait = retry_after(refused)
    return headers if wait is None else {**headers, "Retry-After": str(wait)}


def http_body(refused: Refused) -> bytes:
    """`{"error": ...}` with the details; a refused batch always has its `rejected`, be it empty."""
    body: dict[str, Any] = {"error": refused.message}
    if refused.rejected or refused.reason == "bad_batch":
        body["rejected"] = refused.rejected
    return msgspec.json.encode({**body, **refused.details})


def http_response(refused: Refused, *, close: bool = False) -> bytes:
    """Return the whole response as bytes, for where there is no request to answer; `close`: the connection ends."""
    status, body = HTTPStatus(TABLE[refused.reason][0]), http_body(refused)
    headers = {"Content-Type": "application/json", **API_HEADERS, **http_headers(refused)}
    headers["Content-Length"] = str(len(body))
    if close:
        headers["Connection"] = "close"
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# --- gRPC ------------------------------------------------------------------------------------------------------------


def grpc_status(refused: Refused, room: int | None = None) -> status_pb2.Status:
    """The rich status. `room` bounds the field violations in bytes: trailing metadata has to stay below 8 KiB."""
    code = TABLE[refused.reason][1]
    status = status_pb2.Status(code=code.value[0], message=refused.message)
    if code is _Code.INVALID_ARGUMENT:
        status.details.add().Pack(_bad_request(refused.rejected, room))
    wait = retry_after(refused)
    if wait is not None:
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=wait)))
    subject = _SUBJECTS.get(refused.reason)
    if subject is not None:
        violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=refused.message)
        status.details.add().Pack(error_details_pb2.QuotaFailure(violations=[violation]))
    known = {name: str(value) for name, value in refused.details.items() if value is not None}
    info = error_details_pb2.ErrorInfo(reason=refused.reason.upper(), domain="spendstream", metadata=known)
    status.details.add().Pack(info)
    return status


def _bad_request(rejected: Iterable[Rejection], room: int | None) -> error_details_pb2.BadRequest:
    found = error_details_pb2.BadRequest()
    for item in rejected:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=f"events[{item.line - 1}]" + (f".{item.field}" if item.field else ""),
            description=item.message,
            reason=item.code.upper(),
        )
        if room is not None:
            room -= violation.ByteSize() + 4
            if room < 0:
                break
        found.field_violations.append(violation)
    return found
