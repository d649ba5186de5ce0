"""OTLP in: the same spans over each wire give the same events and the same errors."""

import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, Final, Protocol, cast

import grpc
import msgspec
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from processor.core.events import message
from processor.core.events.event import Event
from server.errors import Refused
from server.grpc_api.otlp_servicer import LOGS, METRICS, TRACES
from server.otlp.content import Content
from server.otlp.kinds import Which
from server.otlp.span_export import SpanExport
from server.status import TABLE
from tests.contract.doors import INGEST_ONLY, READ_ONLY, SECRET, Answer, Doors, open_doors
from tests.contract.otlp_cases import CASES, Case
from tests.support.otlp import CHAT, START, TRACE, make_span, request, span_id, to_json, to_protobuf

Key = tuple[tuple[str, str], ...]
WITH_KEY: Final[Key] = (("x-api-key", SECRET),)
PROTOBUF, JSON = "application/x-protobuf", "application/json"


@dataclass
class Outcome:
    """What a client sees."""

    reason: str = ""
    """Of a refusal, in lower case; empty: the request was taken."""
    rejected: int = 0
    message: str = ""
    position: str | None = None
    retry_after: int | None = None


class Wire(Protocol):
    """A way to send spans."""

    async def send(self, doors: Doors, sent: Any, key: Key = WITH_KEY) -> Outcome:
        """Send a request; bytes are sent as they are."""
        ...


async def post(doors: Doors, path: str, body: bytes, key: Key = WITH_KEY, **headers: str) -> Answer:
    every = dict(key) | {name.replace("_", "-"): value for name, value in headers.items()}
    async with doors.session.post(doors.url + path, data=io.BytesIO(body), headers=every) as response:
        return Answer(response.status, dict(response.headers), await response.read())


class Http:
    """OTLP over HTTP in one of its encodings."""

    def __init__(self, content_type: str, *, is_packed: bool = False) -> None:
        self.content_type = content_type
        self.is_packed = is_packed

    async def send(self, doors: Doors, sent: Any, key: Key = WITH_KEY) -> Outcome:
        body = sent if isinstance(sent, bytes) else (to_json if self.content_type == JSON else to_protobuf)(sent)
        packed = {"Content_Encoding": "gzip"} if self.is_packed else {}
        answer = await post(
            doors,
            "/v1/traces",
            gzip.compress(body, 1) if self.is_packed else body,
            key,
            Content_Type=self.content_type,
            **packed,
        )
        assert answer.headers["Content-Type"].partition(";")[0] == self.content_type
        return self._read(answer)

    def _read(self, answer: Answer) -> Outcome:
        position = answer.headers.get("x-ingest-position")
        after = answer.headers.get("Retry-After")
        retry_after = None if after is None else int(after)
        if self.content_type == JSON:
            found = answer.json
            if answer.status == 200:
                partial = found.get("partialSuccess", {})
                rejected, message = int(partial.get("rejectedSpans", 0)), partial.get("errorMessage", "")
                return Outcome("", rejected, message, position)
            assert found["error"] == found["message"]
            assert found["code"] == TABLE[found["reason"]].grpc.value[0]
            assert TABLE[found["reason"]].http == answer.status
            return Outcome(found["reason"], 0, found["message"], position, retry_after)
        if answer.status == 200:
            partial = ExportTraceServiceResponse.FromString(answer.body).partial_success
            return Outcome("", partial.rejected_spans, partial.error_message, position)
        outcome = outcome_of(status_pb2.Status.FromString(answer.body), position)
        assert TABLE[outcome.reason].http == answer.status  # type: ignore[index] # a reason
        assert outcome.retry_after == retry_after
        return outcome


def outcome_of(status: status_pb2.Status, position: str | None = None) -> Outcome:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details:
        detail.Unpack(info)
        has_retry |= detail.Unpack(retry)
    seconds = retry.retry_delay.seconds if has_retry else None
    return Outcome(info.reason.lower(), 0, status.message, position, seconds)


class Grpc:
    """OTLP over gRPC."""

    async def send(self, doors: Doors, sent: Any, key: Key = WITH_KEY) -> Outcome:
        call = export(doors, TRACES)(sent if isinstance(sent, bytes) else to_protobuf(sent), metadata=key)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            status = rpc_status.from_call(cast(Any, error))
            assert status is not None
            return outcome_of(status)
        position = dict(await call.trailing_metadata()).get("x-ingest-position")
        partial = answer.partial_success
        return Outcome("", partial.rejected_spans, partial.error_message, position)


def export(doors: Doors, service: str) -> Any:
    """The method `Export` of a service, of raw bytes."""
    return doors.channel.unary_unary(f"/{service}/Export", response_deserializer=ExportTraceServiceResponse.FromString)


WIRES: Final[dict[str, Wire]] = {
    "protobuf": Http(PROTOBUF),
    "json": Http(JSON),
    "packed": Http(PROTOBUF, is_packed=True),
    "grpc": Grpc(),
}


@pytest.fixture(params=WIRES, name="wire")
def _wire(request: pytest.FixtureRequest) -> Wire:
    return WIRES[request.param]


def stored(doors: Doors) -> list[Event]:
    """Events in the log, by their span."""
    events = [event for asked, found in doors.stored() for event in found]
    assert all(asked.source.api == "otlp" and asked.source.handling == "lenient" for asked, _ in doors.stored())
    return sorted(events, key=lambda event: event.span_id)


def field_of(event: Event, name: str) -> Any:
    """A field; of `extra` its values as JSON has them."""
    extra = {key: msgspec.json.decode(raw) for key, raw in event.extra.items()}
    if name == "extra":
        return extra
    return extra.get(name.removeprefix("extra.")) if name.startswith("extra.") else getattr(event, name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_what_spans_become(case: Case, doors: Doors) -> None:
    """And that it is the same over every wire."""
    first: list[Event] | None = None
    for name, wire in WIRES.items():
        outcome = await wire.send(doors, case.sent)
        found = stored(doors)
        assert outcome.reason == "", name
        assert outcome.position is not None
        assert outcome.rejected == case.rejected
        assert case.fault in outcome.message
        check_events(found, case)
        first = first or found
        assert found == first, name
        for values in doors.publisher.messages.values():
            values.clear()


def check_events(found: list[Event], case: Case) -> None:
    events = {int(event.span_id, 16): event for event in found}
    assert set(events) == set(case.kept)
    for number, wanted in case.kept.items():
        for name, expected in wanted.items():
            assert field_of(events[number], name) == expected, (number, name)


# --- refusals --------------------------------------------------------------------------------------------------------


async def test_a_key_that_is_not_valid(wire: Wire, doors: Doors) -> None:
    for key in ((), (("x-api-key", "lqt_" + "f" * 64),), (("authorization", "Bearer x"),)):
        assert (await wire.send(doors, request(make_span()), key)).reason == "unauthenticated"


async def test_a_key_without_the_scope(wire: Wire, doors: Doors) -> None:
    outcome = await wire.send(doors, request(make_span()), (("x-api-key", READ_ONLY),))
    assert outcome.reason == "forbidden"


@pytest.mark.parametrize("key", [(("x-api-key", INGEST_ONLY),), (("authorization", f"Bearer {INGEST_ONLY}"),)])
async def test_either_header_has_the_key(wire: Wire, doors: Doors, key: Key) -> None:
    assert (await wire.send(doors, request(make_span()), key)).reason == ""
    assert len(stored(doors)) == 1


async def test_a_body_that_is_none(wire: Wire, doors: Doors) -> None:
    outcome = await wire.send(doors, b"\x0a\xff\xffno request")
    assert outcome.reason == "bad_batch"
    assert outcome.retry_after is None


async def test_a_body_over_the_limit(wire: Wire, doors: Doors) -> None:
    blank = b" " * (20 * 1024 * 1024 + 1)
    assert (await wire.send(doors, blank)).reason == "too_large"
    assert stored(doors) == []


@pytest.mark.parametrize("reason", ["rate_limited", "quota_exceeded"])
async def test_limits_ask_for_a_wait_that_exporters_accept(wire: Wire, doors: Doors, reason: Any) -> None:
    refusal = Refused(reason, "no", retry_after=60, details={"limit": 1})
    if reason == "rate_limited":
        doors.quotas.refuse_request = refusal
    else:
        doors.quotas.refuse_events = refusal
    outcome = await wire.send(doors, request(make_span()))
    assert (outcome.reason, outcome.retry_after) == (reason, 5)
    assert stored(doors) == []


async def test_the_log_cannot_take_it(wire: Wire, doors: Doors) -> None:
    doors.publisher.available = False
    outcome = await wire.send(doors, request(make_span()))
    assert (outcome.reason, outcome.retry_after) == ("unavailable", 1)


async def test_a_fault_of_ours_is_503(wire: Wire, doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(doors.services.intake, "accept_parts", fail)
    outcome = await wire.send(doors, request(make_span()))
    assert (outcome.reason, outcome.retry_after) == ("unavailable", 1)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-ndjson", "application/octet-stream", "", "*/*"])
async def test_a_content_type_that_is_not_known(doors: Doors, content_type: str) -> None:
    answer = await post(doors, "/v1/traces", b"{}", Content_Type=content_type)
    assert answer.status == 415
    assert answer.headers["Accept"] == "application/x-protobuf, application/json"
    assert answer.json["reason"] == "unsupported_type"


async def test_a_coding_that_is_not_known(doors: Doors) -> None:
    answer = await post(doors, "/v1/traces", b"{}", Content_Type=JSON, Content_Encoding="br")
    assert answer.status == 415
    assert answer.json["reason"] == "unsupported_encoding"
    assert "gzip" in answer.headers["Accept-Encoding"]


@pytest.mark.parametrize(("path", "variable"), [("metrics", "OTEL_METRICS_EXPORTER"), ("logs", "OTEL_LOGS_EXPORTER")])
async def test_other_signals(doors: Doors, path: str, variable: str) -> None:
    answer = await post(doors, f"/v1/{path}", b"{}", Content_Type=JSON)
    assert (answer.status, answer.json["reason"]) == (404, "not_found")
    assert f"{variable}=none" in answer.json["message"]
    answer = await post(doors, f"/v1/{path}", b"", Content_Type=PROTOBUF)
    status = status_pb2.Status.FromString(answer.body)
    assert (answer.status, status.code) == (404, code_pb2.NOT_FOUND)
    assert f"{variable}=none" in status.message
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await export(doors, METRICS if path == "metrics" else LOGS)(b"", metadata=WITH_KEY)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert f"{variable}=none" in (caught.value.details() or "")


async def test_reads_at_the_same_paths_stay(doors: Doors) -> None:
    assert (await doors.get("/v1/traces")).status != 405
    assert (await doors.get("/v1/metrics")).status != 405


# --- ids, quota, durability ------------------------------------------------------------------------------------------


async def test_the_id_of_an_event(wire: Wire, doors: Doors) -> None:
    await wire.send(doors, request(make_span(7)))
    raw = sha256(b"default\0" + bytes.fromhex(TRACE) + bytes.fromhex(span_id(7))).digest()[:16].hex()
    (event,) = stored(doors)
    found = event.event_id.replace("-", "")
    assert found[:12] + found[13:16] + found[17:] == raw[:12] + raw[13:16] + raw[17:]
    assert found[12] == "4"
    assert int(found[16], 16) == int(raw[16], 16) & 0x3 | 0x8


async def test_a_request_is_one_against_the_rate_and_its_kept_spans_against_the_quota(wire: Wire, doors: Doors) -> None:
    spans = [make_span(n) for n in range(1, 1201)]
    await wire.send(doors, request(*spans, make_span(2000, attributes={}), make_span(2001, traceId="")))
    assert doors.quotas.requests == 1
    assert [(each.events, each.ended) for each in doors.quotas.reservations] == [(1200, ["settled"])]
    assert len(stored(doors)) == 1200


async def test_nothing_is_reserved_for_no_span(wire: Wire, doors: Doors) -> None:
    await wire.send(doors, request(make_span(1, attributes={})))
    assert doors.quotas.reservations == []


async def test_the_position_of_no_event_is_one(wire: Wire, doors: Doors) -> None:
    outcome = await wire.send(doors, request())
    assert outcome.position == doors.publisher.identity


DIFFERENT: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "environment": lambda: request(make_span(), resource={"deployment.environment.name": "staging", "k8s.pod": "p"}),
    "attributes": lambda: request(make_span(attributes=CHAT | {"collector": "c"})),
    "cost": lambda: request(make_span(attributes=CHAT | {"gen_ai.usage.cost": 0.5})),
    "wrapper": lambda: request(make_span(), make_span(2, 1)),
}


@pytest.mark.parametrize("change", DIFFERENT)
async def test_what_is_no_conflict(doors: Doors, change: str) -> None:
    wire = WIRES["protobuf"]
    await wire.send(doors, request(make_span()))
    await wire.send(doors, DIFFERENT[change]())
    assert len(digests(doors)[span_id(1)]) == 1


@pytest.mark.parametrize(
    "other",
    [
        make_span(attributes=CHAT | {"gen_ai.usage.input_tokens": 101}),
        make_span(attributes=CHAT | {"gen_ai.request.model": "other"}),
        make_span(startTimeUnixNano=str(START + 1000)),
        make_span(status={"code": 2}),
        make_span(attributes=CHAT | {"user.id": "u2"}),
    ],
)
async def test_what_is_a_conflict(doors: Doors, other: dict[str, Any]) -> None:
    wire = WIRES["protobuf"]
    await wire.send(doors, request(make_span()))
    await wire.send(doors, request(other))
    assert len(digests(doors)[span_id(1)]) == 2


def digests(doors: Doors) -> dict[str, set[int]]:
    """The digests of each span's copies."""
    found: dict[str, set[int]] = {}
    for values in doors.publisher.messages.values():
        for value in values:
            decoded = message.decode(value)
            rows = decoded.rows["digest"].tolist()
            events = [event for _, each in message.events(decoded) for event in each]
            for event, digest in zip(events, rows, strict=True):
                found.setdefault(event.span_id, set()).add(digest)
    return found


# --- handling and settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handling", ["strict", "partial", "lenient"])
async def test_handling_does_not_apply(wire: Wire, doors: Doors, handling: str) -> None:
    """Neither the key's nor the request's: a bad span costs no other."""
    secret = "lqt_" + "4" * 64
    doors.add_key(secret, handling=handling)
    key = (("x-api-key", secret), ("prefer", f"handling={handling}"))
    outcome = await wire.send(doors, request(make_span(1), make_span(2, traceId=""), make_span(3)), key)
    assert (outcome.reason, outcome.rejected) == ("", 1)
    assert [event.span_id for event in stored(doors)] == [span_id(1), span_id(3)]


async def test_all_spans_are_kept_where_the_setting_says_so(wire: Wire) -> None:
    sent = request(make_span(1, attributes={"http.request.method": "GET"}, name="GET"), make_span(2, 1, attributes={}))
    both: list[tuple[str, str | None]] = [("GET", None), ("chat gpt-4o", span_id(1))]
    settings: list[tuple[Which, list[tuple[str, str | None]]]] = [("genai", []), ("all", both)]
    for which, kept in settings:
        async with open_doors(otlp=partial(SpanExport, which=which)) as doors:
            assert (await wire.send(doors, sent)).rejected == 0
            found = stored(doors)
            assert [(event.name, event.parent_span_id) for event in found] == kept
            assert all(event.kind == "span" and event.cost == 0 for event in found)


async def test_prompts_are_dropped_where_the_setting_says_so(wire: Wire) -> None:
    sent = request(*(make_span(n, attributes=CHAT | {"gen_ai.input.messages": "secret", "x": 1}) for n in (1, 2, 3)))
    settings: list[tuple[Content, dict[str, Any]]] = [
        ("keep", {"gen_ai.input.messages": "secret", "x": 1}),
        ("drop", {"x": 1}),
    ]
    for content, kept in settings:
        async with open_doors(otlp=partial(SpanExport, content=content)) as doors:
            for _ in range(3):  # as the compiled kernel makes them, too
                await wire.send(doors, sent)
            wanted = {"gen_ai.operation.name": "chat", **kept}
            found = [field_of(event, "extra.attributes") for event in stored(doors)]
            assert found == [wanted] * 9
