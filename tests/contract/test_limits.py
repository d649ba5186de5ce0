"""Both doors in front of real quotas: what an answer says of a limit, and that it is the same over both."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from grpc_status import rpc_status

from protos.spendstream.v1 import ingest_pb2 as pb
from server.errors import Refused
from server.limits.rate_limit_headers import Allowance
from tests.contract.doors import key_metadata, open_doors, to_request
from tests.contract.fakes import NOW
from tests.support.events import make_event, to_ndjson

EVENT = make_event()
LEFT = [Allowance("requests", 60, 60, NOW + 1, 60), Allowance("events", 10_000, 9_999, NOW + 5_000_000)]
REFUSALS = {
    "rate_limited": Refused(
        "rate_limited", "Rate limit exceeded", retry_after=1, details={"limit": 60, "used": 60, "resetsAt": "soon"}
    ),
    "quota_exceeded": Refused(
        "quota_exceeded", "Monthly quota exceeded", retry_after=86_400, details={"limit": 5, "used": 5, "resetsAt": "x"}
    ),
}


@pytest.mark.parametrize("reason", REFUSALS)
async def test_a_refusal_says_what_is_left_and_when_to_come_back(reason: str) -> None:
    refused = REFUSALS[reason]
    async with open_doors() as doors:
        doors.quotas.left = LEFT
        if reason == "rate_limited":
            doors.quotas.refuse_request = refused
        else:
            doors.quotas.refuse_events = refused
        answer = await doors.post(to_ndjson([EVENT]))
        assert answer.status == 429
        wait = int(answer.headers["Retry-After"])
        assert wait == min(refused.retry_after or 0, 60)
        assert answer.json == {"error": refused.message, "reason": refused.reason, **refused.details}
        assert answer.headers["RateLimit-Policy"] == '"requests";q=60;w=60, "events";q=10000'
        assert answer.headers["RateLimit"] == '"requests";r=0;t=1, "events";r=1;t=5'
        ingest = doors.unary("IngestService/Ingest", pb.IngestResponse)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ingest(to_request([EVENT]), metadata=key_metadata())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status: Any = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
        retry, quota = details.RetryInfo(), details.QuotaFailure()
        assert any(detail.Unpack(retry) for detail in status.details)
        assert retry.retry_delay.seconds == wait
        assert any(detail.Unpack(quota) for detail in status.details)
        subject = "key" if reason == "rate_limited" else "organization"
        assert [(each.subject, each.description) for each in quota.violations] == [(subject, refused.message)]
        assert not doors.stored()


async def test_an_accepted_batch_says_what_is_left_too() -> None:
    async with open_doors() as doors:
        answer = await doors.post(to_ndjson([EVENT]))
        assert "RateLimit" not in answer.headers
        assert "RateLimit-Policy" not in answer.headers
        doors.quotas.left = LEFT[1:]
        answer = await doors.post(to_ndjson([EVENT]))
        assert (answer.status, answer.headers["RateLimit"]) == (202, '"events";r=1;t=5')
