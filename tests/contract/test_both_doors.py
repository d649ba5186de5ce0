"""The table of cases over both APIs: the same batch gives the same receipt, the same hot columns, the same events."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import msgspec
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from processor.core.events import message
from processor.core.events.event import Event
from protos.spendstream.v1 import ingest_pb2 as pb
from server.errors import Rejection
from server.status import TABLE
from tests.contract.cases import CASES, Case
from tests.contract.doors import Api, Doors, key_metadata, open_doors, to_request
from tests.support.events import to_ndjson

APIS: Final[tuple[Api, ...]] = ("grpc",)
"""Those that these tests need (the fixture `doors`)."""

Fault = tuple[int, str | None, str | None, str, str]


@dataclass
class Outcome:
    """What a door made of a batch, in words of neither API."""

    status: int | None
    """HTTP's; None where gRPC has none of its own."""
    code: int
    """gRPC's; 0 for accepted."""
    accepted: int
    rejected: list[Fault]
    columns: list[Any]
    events: list[dict[str, Any]]


def plain(event: Event) -> dict[str, Any]:
    extra = {name: json.loads(bytes(value)) for name, value in event.extra.items()}
    return {**msgspec.structs.asdict(event), "extra": extra}


def in_log(doors: Doors) -> tuple[list[Any], list[dict[str, Any]]]:
    """The columns of all that was stored, and the events in full; but for how they are encoded and came in."""
    columns: list[Any] = []
    for values in doors.publisher.messages.values():
        for found in map(message.decode, values):
            sources = [
                msgspec.structs.replace(request.source, payload="json", api="http") for request in found.requests
            ]
            columns.append([sources, found.users, found.dims, found.cost_sources, found.rows.tobytes()])
    return columns, [plain(event) for _, events in doors.stored() for event in events]


def fault(item: Rejection | pb.Rejection) -> Fault:
    if isinstance(item, Rejection):
        return item.line, item.event_id, item.field, item.code, item.message
    event_id = item.event_id if item.HasField("event_id") else None
    return item.line, event_id, item.field if item.HasField("field") else None, item.code, item.message


async def over_http(case: Case) -> Outcome:
    async with open_doors(apis=["http"]) as doors:
        body = to_ndjson([dict(event) for event in case.events]) if case.events is not None else _made(case.body)
        headers = {"Content-Encoding": case.encoding, "Prefer": case.prefer}
        answer = await doors.post(body, **{name: value for name, value in headers.items() if value is not None})
        found = answer.json
        assert ("error" in found) is (answer.status != 202)
        assert ("x-ingest-position" in answer.headers) is (answer.status == 202)
        if case.prefer:
            assert answer.headers["Preference-Applied"] == case.prefer.rpartition(" ")[2]
        rejected = msgspec.convert(found.get("rejected", []), list[Rejection])
        code = next((each.grpc.value[0] for each in TABLE.values() if each.http == answer.status), 0)
        return Outcome(
            answer.status, code, found.get("accepted", 0), [fault(item) for item in rejected], *in_log(doors)
        )


async def over_grpc(case: Case) -> Outcome:
    async with open_doors(apis=["grpc"]) as doors:
        stream = doors.stream([("prefer", case.prefer)] if case.prefer else ())
        await stream.write(message_of(case))
        answer: pb.IngestResponse = await stream.read()
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert answer.HasField("status") is not answer.HasField("position")
        rejected = [fault(item) for item in answer.rejected]
        return Outcome(None, answer.status.code, answer.accepted, rejected, *in_log(doors))


def message_of(case: Case) -> bytes:
    return to_request([dict(event) for event in case.events]) if case.events is not None else _made(case.message)


def _made(make: Any) -> bytes:
    made: bytes = make()
    return made


def check(case: Case, outcome: Outcome) -> None:
    """What the table says of it."""
    assert [(line, field, code) for line, _, field, code, _ in outcome.rejected] == list(case.rejected)
    assert all(message for *_, message in outcome.rejected)
    assert outcome.accepted == case.accepted == len(outcome.events)
    if case.refused is not None:
        status, code, _ = TABLE[case.refused]
        assert (outcome.status or status, outcome.code) == (status, code.value[0])
    else:
        assert (outcome.status or 202, outcome.code) == (202, 0)
        first = min(outcome.events, key=lambda event: [sent_id(case, 0) != event["event_id"], event["event_id"]])
        assert {name: first[name] for name in case.stored} == case.stored
    if case.events is not None:
        for line, event_id, field, *_ in outcome.rejected:
            assert event_id == (sent_id(case, line - 1, repeat=True) if field else None)


def sent_id(case: Case, index: int, *, repeat: bool = False) -> str | None:
    """The id of an event as it was sent: lower case, or as a rejection repeats it."""
    events: Sequence[Any] = case.events or ()
    text = events[index].get("event_id") if index < len(events) else None
    if not isinstance(text, str) or len(text) > 256:
        return None
    return text if repeat else text.lower()


def cases(*attributes: str) -> pytest.MarkDecorator:
    chosen = [case for case in CASES if any(getattr(case, name) is not None for name in attributes)]
    return pytest.mark.parametrize("case", chosen, ids=[case.name for case in chosen])


def test_the_table_is_whole() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) > 60
    assert all((case.events is None) + (case.body is None) + (case.message is None) == 2 for case in CASES)


@cases("events")
async def test_both(case: Case) -> None:
    http, proto = await over_http(case), await over_grpc(case)
    check(case, http)
    check(case, proto)
    http.status = None
    for outcome in (http, proto):  # what is said of a whole event may speak of its payload format
        outcome.rejected = [(*item[:4], item[4] if item[2] else "") for item in outcome.rejected]
    assert http == proto


@cases("body")
async def test_http(case: Case) -> None:
    check(case, await over_http(case))


@cases("message")
async def test_grpc(case: Case) -> None:
    check(case, await over_grpc(case))


@cases("events", "message")
async def test_a_unary_call_answers_like_a_stream(case: Case, doors: Doors) -> None:
    call = doors.unary("IngestService/Ingest", pb.IngestResponse)
    metadata = (*key_metadata(), *([("prefer", case.prefer)] if case.prefer else ()))
    if case.refused is None:
        answer = await call(message_of(case), metadata=metadata)
        assert answer.accepted == case.accepted
        assert [(item.line, item.code) for item in answer.rejected] == [(line, code) for line, _, code in case.rejected]
        return
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(message_of(case), metadata=metadata)
    error: Any = caught.value  # a call for grpcio-status, if not for its stubs
    status = rpc_status.from_call(error)
    assert caught.value.code() == TABLE[case.refused].grpc
    assert status is not None
    found = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(found)
    wanted = [f"events[{line - 1}].{field}" if field else f"events[{line - 1}]" for line, field, _ in case.rejected]
    assert [violation.field for violation in found.field_violations] == wanted
    assert doors.stored() == []
