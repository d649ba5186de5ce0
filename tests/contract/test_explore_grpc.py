"""`GetTrace`: the flat answer of HTTP in responses of bounded size, and the same refusals."""

import json
import random
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

import grpc
import msgspec
import pytest
from msgspec import Raw

from processor.core.events.fields import FIELDS
from protos.spendstream.v1 import usage_pb2
from server import position
from server.errors import Reason, Refused
from server.explore.explorer import OffExplorer
from server.explore.questions import TraceQuestion
from server.grpc_api.trace_messages import MAX_RESPONSE
from server.status import TABLE
from tests.contract.doors import INGEST_ONLY, READ_ONLY, Doors, key_metadata
from tests.contract.test_reasons import failed
from tests.support.events import make_event, to_proto
from tests.support.explorer import AS_OF

SUMMARY: Final[dict[str, Any]] = {
    "trace_id": "t",
    "name": None,
    "start": "2026-04-20T10:00:00.000Z",
    "end": "2026-04-20T10:00:01.200Z",
    "duration_ms": 1200.0,
    "spans": 2,
    "calls": 2,
    "errors": 0,
    "input_tokens": 2**40,
    "output_tokens": 128,
    "cached_tokens": 0,
    "cost_usd": 0.0068,
    "user_id": "u1",
    "session_id": None,
    "environment": "production",
    "models": ["gpt-4o"],
    "complete": True,
}


def span(depth: int, parent: int | None, extra: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """An event as answers have it, and its place."""
    event = {"kind": "call", **make_event(**changes)}
    ordered = {field.name: event[field.name] for field in FIELDS if event.get(field.name) is not None}
    ordered.setdefault("cost_usd", None)
    more = {"extra": extra} if extra else {}
    return {
        **ordered,
        "received_at": "2026-04-20T10:00:02.000Z",
        "cost_source": None if ordered["cost_usd"] is None else "client",
        **more,
        "parent": parent,
        "depth": depth,
    }


def answer(doors: Doors, *pieces: Sequence[dict[str, Any]], sizes: Sequence[int] = (), **more: Any) -> None:
    """Have the query process answer with some pieces, and send them in chunks of these sizes."""
    total = sum(map(len, pieces))
    head = {"trace": SUMMARY, "truncated": False, "total": total, **AS_OF, **more}
    lines = [_encode({**(head if number == 0 else {}), "spans": spans}) for number, spans in enumerate(pieces)]
    text = b"\n".join(lines)
    chunks: list[bytes | BaseException] = []
    for size in sizes:
        chunks.append(text[:size])
        text = text[size:]
    doors.explorer.chunks = [*chunks, text]


_encode = msgspec.json.Encoder(decimal_format="number").encode


async def get_trace(
    doors: Doors, *metadata: tuple[str, str], key: str = READ_ONLY, **members: Any
) -> list[usage_pb2.GetTraceResponse]:
    call: Any = doors.channel.unary_stream(
        "/spendstream.v1.UsageService/GetTrace", response_deserializer=usage_pb2.GetTraceResponse.FromString
    )
    request = usage_pb2.GetTraceRequest(**{"trace_id": "t", **members})
    return [each async for each in call(request.SerializeToString(), metadata=(*key_metadata(key), *metadata))]


async def test_a_trace(doors: Doors) -> None:
    spans = [
        span(0, None, {"nested": {"a": [1, None]}, "n": 1.50}, tags={"team": "a:b"}, tools_used=["x"])
        | {"orphan": True},
        span(1, 0, cost_usd=None, eval_scores={"helpful": 0.5}, ttft_ms=0.25) | {"cycle": True},
    ]
    answer(doors, spans)
    [response] = await get_trace(doors)
    summary = response.trace
    assert {name: getattr(summary, name) for name in ("name", "session_id")} == {"name": "", "session_id": ""}
    assert not summary.HasField("name")
    assert (summary.input_tokens, summary.cost_usd, list(summary.models)) == (2**40, "0.0068", ["gpt-4o"])
    assert (response.total, response.truncated, response.as_of) == (2, False, AS_OF["asOf"])
    assert response.lag_seconds == AS_OF["lagSeconds"]
    first, second = response.spans
    assert (first.depth, first.HasField("parent"), first.orphan, first.cycle) == (0, False, True, False)
    assert (second.depth, second.parent, second.HasField("parent"), second.cycle) == (1, 0, True, True)
    assert json.loads(first.event.extra_json["nested"]) == {"a": [1, None]}
    assert first.event.extra_json["n"] == "1.5"
    assert (first.cost_source, second.HasField("cost_source")) == ("client", False)
    assert not second.event.HasField("cost_usd")
    for each, sent in zip(response.spans, spans, strict=True):
        each.event.ClearField("extra_json")
        event = {name: value for name, value in sent.items() if name in {field.name for field in FIELDS}}
        assert each.event == to_proto(event)
    [question] = doors.explorer.asked
    assert question == TraceQuestion(project="default", trace_id="t", format="pieces")


async def test_every_field_arrives(doors: Doors) -> None:
    values: dict[str, Any] = {"count": 3, "millis": 2.5, "cost": Raw(b"0.000000000001"), "flag": True, "text": "x"}
    values |= {
        "uuid": str(uuid4()),
        "timestamp": "2026-04-20T10:00:00Z",
        "tags": {"a": "b"},
        "strings": ["s"],
        "scores": {"q": 1.0},
    }
    sent = {field.name: values.get(field.kind, field.values[0] if field.values else None) for field in FIELDS}
    answer(doors, [{**sent, "received_at": "now", "depth": 0, "cost_source": "client", "parent": None}])
    [response] = await get_trace(doors)
    event = response.spans[0].event
    assert {field.name for field, _ in event.ListFields()} == set(sent)
    assert event == to_proto({**sent, "cost_usd": "0.000000000001"})


async def test_pieces_end_anywhere(doors: Doors) -> None:
    rng = random.Random(1)
    spans = [span(n, n - 1 if n else None, span_id=str(n), name="ä" * 50) for n in range(300)]
    for _ in range(5):
        sizes = [rng.randrange(1, 5000) for _ in range(100)]
        answer(doors, spans[:100], spans[100:101], [], spans[101:], sizes=sizes, truncated=True, total=60_000)
        found = await get_trace(doors)
        assert [len(each.spans) for each in found] == [100, 1, 0, 199]
        assert [each.event.span_id for response in found for each in response.spans] == [str(n) for n in range(300)]
        assert [(each.HasField("trace"), each.truncated, each.total) for each in found[:2]] == [
            (True, True, 60_000),
            (False, False, 0),
        ]


async def test_responses_are_bounded(doors: Doors) -> None:
    """Some values take more room in a message than as JSON."""
    scores = {str(number): 1.0 for number in range(20_000)}
    answer(doors, [span(n, n - 1 if n else None, eval_scores=scores, span_id=str(n)) for n in range(6)])
    found = await get_trace(doors)
    assert [len(each.spans) for each in found] == [2, 2, 2]
    assert all(MAX_RESPONSE // 2 < each.ByteSize() <= MAX_RESPONSE for each in found)


async def test_an_answer_that_breaks_off_is_an_error(doors: Doors) -> None:
    answer(doors, [span(0, None)], sizes=[10])
    assert doors.explorer.chunks is not None
    doors.explorer.chunks[1] = Refused("unavailable", "It has ended")
    assert await failed(get_trace(doors)) == (grpc.StatusCode.UNAVAILABLE, "unavailable")


async def test_what_a_call_can_ask_for(doors: Doors) -> None:
    answer(doors, [])
    token = position.encode(doors.publisher.identity, {0: 0})
    doors.explorer.add({})
    await get_trace(doors, ("x-ingest-position", token), without_extra=True, project_id="default", trace_id="t")
    [question] = doors.explorer.asked
    assert question == TraceQuestion(project="default", trace_id="t", format="pieces", extra=False, after={0: 0})


@pytest.mark.parametrize(
    ("key", "members", "metadata", "code", "reason"),
    [
        ("lqt_" + "9" * 64, {}, (), grpc.StatusCode.UNAUTHENTICATED, "unauthenticated"),
        (INGEST_ONLY, {}, (), grpc.StatusCode.PERMISSION_DENIED, "forbidden"),
        (READ_ONLY, {"project_id": "other"}, (), grpc.StatusCode.PERMISSION_DENIED, "forbidden"),
        (READ_ONLY, {"trace_id": "nothing"}, (), grpc.StatusCode.NOT_FOUND, "not_found"),
        (READ_ONLY, {"trace_id": ""}, (), grpc.StatusCode.NOT_FOUND, "not_found"),
        (READ_ONLY, {}, (("x-ingest-position", "no"),), grpc.StatusCode.INVALID_ARGUMENT, "bad_request"),
        (READ_ONLY, {}, (("x-ingest-position", "fa4e_0-5"),), grpc.StatusCode.DEADLINE_EXCEEDED, "not_yet_visible"),
    ],
)
async def test_refusals(
    doors: Doors,
    key: str,
    members: dict[str, str],
    metadata: tuple[tuple[str, str], ...],
    code: grpc.StatusCode,
    reason: str,
) -> None:
    assert await failed(get_trace(doors, *metadata, key=key, **members)) == (code, reason)


@pytest.mark.parametrize(
    "reason", ["queries_busy", "query_too_heavy", "event_store_missing", "event_store_off", "disk_full", "internal"]
)
async def test_the_same_words_as_over_http(doors: Doors, reason: Reason) -> None:
    doors.explorer.refuse = Refused(reason, "It is refused")
    assert await failed(get_trace(doors)) == (TABLE[reason].grpc, reason)
    assert (await doors.get("/v1/traces/t")).json["reason"] == reason


async def test_a_store_that_is_off(doors: Doors) -> None:
    with pytest.raises(Refused) as off:
        OffExplorer().check()
    doors.explorer.off = off.value
    assert await failed(get_trace(doors)) == (grpc.StatusCode.UNIMPLEMENTED, "event_store_off")
    call: Any = doors.channel.unary_stream("/spendstream.v1.UsageService/GetTrace")
    assert await failed(call(b"\xff", metadata=key_metadata()).read()) == (
        grpc.StatusCode.UNIMPLEMENTED,
        "event_store_off",
    )


async def test_a_message_that_is_none(doors: Doors) -> None:
    call: Any = doors.channel.unary_stream("/spendstream.v1.UsageService/GetTrace")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff", metadata=key_metadata()).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
