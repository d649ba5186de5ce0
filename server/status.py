"""The one table reason -> HTTP status, gRPC status code and meaning, and both forms of an error answer made from it."""

from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any, Final, NamedTuple

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
"""Headers of every answer of the API: it is a tenant's data, for this client only, and never a page."""

POSITION: Final = "x-ingest-position"
"""The header of a receipt: a read with its value contains the batch."""

_Code = grpc.StatusCode


class Status(NamedTuple):
    """The status codes of a reason on both APIs, and its meaning, as the reference has it."""

    http: int
    grpc: grpc.StatusCode
    meaning: str


TABLE: Final[dict[Reason, Status]] = {
    "bad_request": Status(400, _Code.INVALID_ARGUMENT, "A parameter, a header or the body is not as expected"),
    "bad_batch": Status(
        400, _Code.INVALID_ARGUMENT, "The batch cannot be read, is empty, too long or has no valid event"
    ),
    "range_too_wide": Status(400, _Code.INVALID_ARGUMENT, "The range of time is wider than one question may cover"),
    "too_deep": Status(400, _Code.INVALID_ARGUMENT, "The trace is nested too deep to be answered as a tree"),
    "unauthenticated": Status(401, _Code.UNAUTHENTICATED, "The API key is missing, unknown, revoked or expired"),
    "forbidden": Status(403, _Code.PERMISSION_DENIED, "The API key lacks the scope, or may not ask for this project"),
    "not_found": Status(
        404,
        _Code.NOT_FOUND,
        "There is nothing at this path, or no user, event, trace, session, key or budget of this id",
    ),
    "method_not_allowed": Status(405, _Code.UNIMPLEMENTED, "The path has no such method; `Allow` names those it has"),
    "conflict": Status(409, _Code.ABORTED, "It exists already as something else, or its state does not allow it"),
    "too_large": Status(413, _Code.INVALID_ARGUMENT, "The body is too large, counted while it is inflated"),
    "unsupported_type": Status(
        415, _Code.INVALID_ARGUMENT, "The content type is not supported; `Accept` names what is"
    ),
    "unsupported_encoding": Status(
        415,
        _Code.INVALID_ARGUMENT,
        "The content encoding is not supported; `Accept-Encoding` names those that are (501: a transfer encoding)",
    ),
    "query_too_heavy": Status(422, _Code.FAILED_PRECONDITION, "The query would never fit its bounds; ask for less"),
    "rate_limited": Status(429, _Code.RESOURCE_EXHAUSTED, "The key's requests a minute are used up"),
    "quota_exceeded": Status(429, _Code.RESOURCE_EXHAUSTED, "The organization's monthly quota is used up"),
    "internal": Status(500, _Code.INTERNAL, "A fault of the server; its log says more"),
    "event_store_off": Status(501, _Code.UNIMPLEMENTED, "The event store is switched off on this server"),
    "unavailable": Status(503, _Code.UNAVAILABLE, "The server cannot accept or answer it now; retry it unchanged"),
    "disk_full": Status(503, _Code.UNAVAILABLE, "The disk has no room for it; retry it when there is"),
    "queries_busy": Status(503, _Code.UNAVAILABLE, "Too many queries of the project are waiting already; retry it"),
    "event_store_missing": Status(503, _Code.UNAVAILABLE, "The API process does not see the event store's directory"),
    "not_yet_visible": Status(
        504, _Code.DEADLINE_EXCEEDED, "The tables, or the event store, did not contain the position in time; retry it"
    ),
}
"""In the order of the HTTP statuses."""

UNKNOWN_EXPECTATION: Final = HTTPStatus.EXPECTATION_FAILED.value
"""The answer to an `Expect` that is not 100-continue (RFC 9110, 10.1.1)."""
UNKNOWN_TRANSFER_CODING: Final = HTTPStatus.NOT_IMPLEMENTED.value
"""The answer to a transfer coding besides `chunked` (RFC 9112, 6.1)."""

_OF_HTTP: Final[dict[int, Reason]] = {
    **{
        TABLE[reason].http: reason
        for reason in ("bad_request", "not_found", "method_not_allowed", "too_large", "unsupported_type", "unavailable")
    },
    UNKNOWN_EXPECTATION: "bad_request",  # these two statuses have no reason of their own
    UNKNOWN_TRANSFER_CODING: "unsupported_encoding",
}

_SUBJECTS: Final[dict[Reason, str]] = {"rate_limited": "key", "quota_exceeded": "organization"}
"""The subject of a `QuotaFailure`."""

_HEADERS: Final[dict[Reason, dict[str, str]]] = {
    "unauthenticated": {"WWW-Authenticate": 'ApiKey realm="spendstream"'},  # RFC 9110 wants one with every 401
    "unsupported_type": {"Accept": NDJSON},
    "unsupported_encoding": {"Accept-Encoding": ", ".join(ENCODINGS)},
}


def retry_after(refused: Refused) -> int | None:
    """Return the seconds to wait before the request is retried, 1 to 60; None: a retry would not help."""
    return min(max(refused.retry_after or 1, 1), MAX_RETRY_AFTER) if refused.retryable else None


# --- HTTP ------------------------------------------------------------------------------------------------------------


def reason_of(status: int) -> Reason:
    """Return the reason nearest to a `status` of 400 to 599 that HTTP itself defines."""
    return _OF_HTTP.get(status, "bad_request" if status < TABLE["internal"].http else "internal")


@cache
def phrase_of(status: int) -> str:
    """The words beside a status."""
    return HTTPStatus(status).phrase


def http_headers(refused: Refused) -> dict[str, str]:
    """Return the headers of an error answer that its reason asks for."""
    headers = dict(_HEADERS.get(refused.reason, ()))
    wait = retry_after(refused)
    return headers if wait is None else {**headers, "Retry-After": str(wait)}


def error_members(refused: Refused) -> dict[str, Any]:
    """Return the two members that every error body has."""
    return {"error": refused.message, "reason": refused.reason}


def http_body(refused: Refused) -> bytes:
    """Return the body of an error answer: `error`, `reason`, the details, and for a refused batch always `rejected`."""
    body = error_members(refused)
    if refused.rejected or refused.reason == "bad_batch":
        body["rejected"] = refused.rejected
    return msgspec.json.encode({**body, **refused.details})


def http_response(refused: Refused, *, close: bool = False) -> bytes:
    """Return a whole HTTP response as bytes, where aiohttp has no request to answer; `close`: ends the connection."""
    status, body = HTTPStatus(TABLE[refused.reason].http), http_body(refused)
    headers = {"Content-Type": "application/json", **API_HEADERS, **http_headers(refused)}
    headers["Content-Length"] = str(len(body))
    if close:
        headers["Connection"] = "close"
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# --- gRPC ------------------------------------------------------------------------------------------------------------


def grpc_status(refused: Refused, room: int | None = None) -> status_pb2.Status:
    """Return the status with its details (`google.rpc`). `room` bounds the field violations in bytes, None: no bound:
    trailing metadata has to stay below 8 KiB."""
    code = TABLE[refused.reason].grpc
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
