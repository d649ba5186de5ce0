from typing import Any, get_args

import grpc
import msgspec
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details

from server.errors import Reason, Refused, Rejection
from server.status import TABLE, grpc_status, http_body, http_headers, retry_after

REASONS: tuple[Reason, ...] = get_args(Reason)
CODE = grpc.StatusCode

# The contract's own table, sections 2.2, 3 and 6: another copy, on purpose.
WANTED = {
    "range_too_wide": (400, CODE.INVALID_ARGUMENT),
    "too_deep": (400, CODE.INVALID_ARGUMENT),
    "method_not_allowed": (405, CODE.UNIMPLEMENTED),
    "query_too_heavy": (422, CODE.FAILED_PRECONDITION),
    "internal": (500, CODE.INTERNAL),
    "event_store_off": (501, CODE.UNIMPLEMENTED),
    "event_store_missing": (503, CODE.UNAVAILABLE),
    "queries_busy": (503, CODE.UNAVAILABLE),
    "disk_full": (503, CODE.UNAVAILABLE),
    "bad_request": (400, CODE.INVALID_ARGUMENT),
    "bad_batch": (400, CODE.INVALID_ARGUMENT),
    "too_large": (413, CODE.INVALID_ARGUMENT),
    "unsupported_type": (415, CODE.INVALID_ARGUMENT),
    "unsupported_encoding": (415, CODE.INVALID_ARGUMENT),
    "unauthenticated": (401, CODE.UNAUTHENTICATED),
    "forbidden": (403, CODE.PERMISSION_DENIED),
    "not_found": (404, CODE.NOT_FOUND),
    "conflict": (409, CODE.ABORTED),  # not in the contract: of the admin API
    "rate_limited": (429, CODE.RESOURCE_EXHAUSTED),
    "quota_exceeded": (429, CODE.RESOURCE_EXHAUSTED),
    "unavailable": (503, CODE.UNAVAILABLE),
    "not_yet_visible": (504, CODE.DEADLINE_EXCEEDED),
}

REJECTED = (
    Rejection(3, "id-3", "cost_usd", "missing", "cost_usd is required"),
    Rejection(5, None, None, "syntax", "not valid"),
)


def unpack(refused: Refused, kind: type[Message], room: int | None = None) -> Any:
    found = kind()
    return found if any(detail.Unpack(found) for detail in grpc_status(refused, room).details) else None


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_its_codes(reason: Reason) -> None:
    assert set(WANTED) == set(REASONS)
    assert (TABLE[reason].http, TABLE[reason].grpc) == WANTED[reason]
    assert grpc_status(Refused(reason, "why")).code == WANTED[reason][1].value[0]
    assert grpc_status(Refused(reason, "why")).message == "why"


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize(("asked", "answered"), [(None, 1), (0, 1), (7, 7), (60, 60), (86_400, 60)])
def test_retry_after_is_1_to_60_seconds(reason: Reason, asked: int | None, answered: int) -> None:
    refused = Refused(reason, "why", retry_after=asked)
    retry = unpack(refused, details.RetryInfo)
    if refused.retryable:
        assert retry_after(refused) == answered
        assert http_headers(refused)["Retry-After"] == str(answered)
        assert retry.retry_delay.seconds == answered
    else:
        assert retry is None
        assert "Retry-After" not in http_headers(refused)


def test_an_unsupported_type_or_encoding_says_what_is() -> None:
    assert http_headers(Refused("unsupported_type", "")) == {"Accept": "application/x-ndjson"}
    assert http_headers(Refused("unsupported_encoding", "")) == {"Accept-Encoding": "gzip, deflate, zstd, identity"}


def test_http_body() -> None:
    refused = Refused("quota_exceeded", "Monthly quota exceeded", details={"limit": 5, "used": 5, "resetsAt": "soon"})
    assert msgspec.json.decode(http_body(refused)) == {
        "error": "Monthly quota exceeded",
        "reason": "quota_exceeded",
        "limit": 5,
        "used": 5,
        "resetsAt": "soon",
    }
    assert http_body(Refused("unauthenticated", "no")) == b'{"error":"no","reason":"unauthenticated"}'
    assert http_body(Refused("bad_batch", "no")) == b'{"error":"no","reason":"bad_batch","rejected":[]}'
    assert msgspec.json.decode(http_body(Refused("bad_batch", "no", rejected=REJECTED)))["rejected"] == [
        {
            "line": 3,
            "event_id": "id-3",
            "field": "cost_usd",
            "code": "missing",
            "message": "cost_usd is required",
        },
        {"line": 5, "event_id": None, "field": None, "code": "syntax", "message": "not valid"},
    ]


def test_bad_request_names_the_fields() -> None:
    found = unpack(Refused("bad_batch", "no", rejected=REJECTED), details.BadRequest)
    assert [(each.field, each.description, each.reason) for each in found.field_violations] == [
        ("events[2].cost_usd", "cost_usd is required", "MISSING"),
        ("events[4]", "not valid", "SYNTAX"),
    ]
    assert unpack(Refused("bad_request", "limit must be a number"), details.BadRequest) is not None


def test_a_status_fits_into_metadata() -> None:
    many = [Rejection(line, None, "timestamp", "invalid", "x" * 90) for line in range(1, 101)]
    refused = Refused("bad_batch", "no", rejected=many)
    assert len(unpack(refused, details.BadRequest).field_violations) == 100
    assert grpc_status(refused, 3072).ByteSize() < 4096
    assert len(unpack(refused, details.BadRequest, 3072).field_violations) > 10


def test_a_quota_has_its_own_detail() -> None:
    refused = Refused("quota_exceeded", "Monthly quota exceeded", details={"limit": 5, "used": None})
    assert unpack(refused, details.QuotaFailure).violations[0].description == "Monthly quota exceeded"
    info = unpack(refused, details.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == ("QUOTA_EXCEEDED", "spendstream", {"limit": "5"})
    assert unpack(refused, details.QuotaFailure).violations[0].subject == "organization"
    limited = unpack(Refused("rate_limited", "slow down"), details.QuotaFailure)
    assert [(each.subject, each.description) for each in limited.violations] == [("key", "slow down")]
    assert unpack(Refused("unavailable", "later"), details.QuotaFailure) is None
