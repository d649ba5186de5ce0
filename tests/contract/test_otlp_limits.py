"""OTLP under limits: refusals in the middle of a large request, what is counted and logged, the gate, the pace."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from server.errors import Refused
from server.grpc_api.otlp_servicer import TRACES
from server.grpc_api.servicers import make_server
from server.ingest.publisher import Done, NotPublished, Outcome, Parts
from server.limits.connection_watch import ConnectionWatch
from server.limits.refusal_pacing import BURST, RATE
from server.otlp import span_export
from tests.contract.doors import READ_ONLY, SECRET, Doors, open_doors
from tests.contract.otlp_cases import AGENT, HOUR, INFRA, OUTER
from tests.contract.test_hardening import busy
from tests.contract.test_otlp import JSON, PROTOBUF, WIRES, WITH_KEY, Wire, digests, export, post, stored
from tests.support.otlp import CHAT, START, make_span, request, to_json, to_protobuf
from tests.support.patience import PATIENCE
from tests.support.publisher import FakePublisher

PART: Final = 16
"""Events that are handed on at once, in the place of 512: as large a request takes fifty times as long."""
LARGE: Final = request(*(make_span(n) for n in range(1, 39)))
"""Three parts: of 16, 16 and 6 spans."""


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_export, "PART", PART)


@pytest.fixture(params=WIRES, name="wire")
def _wire(request: pytest.FixtureRequest) -> Wire:
    return WIRES[request.param]


class Stumbling(FakePublisher):
    """A log that does not take one of the parts of a request: the n-th is refused, once."""

    def __init__(self, at: int, how: str) -> None:
        super().__init__(3)
        self._left = at
        self._how = how

    def submit(self, parts: Parts, size: int, done: Done) -> None:
        self._left -= 1
        if self._left:
            super().submit(parts, size, done)
        elif self._how == "raised":
            raise NotPublished("The log has no room")
        elif self._how == "unforeseen":
            raise ZeroDivisionError
        else:
            refused: Outcome = Refused("unavailable", "It is not known what the log has", retry_after=60)
            asyncio.get_running_loop().call_soon(lambda: done(refused))


@pytest.mark.parametrize(
    ("at", "how", "ended"),
    [
        (1, "raised", "released"),
        (2, "raised", "settled"),
        (3, "raised", "settled"),
        (1, "answered", "doubted"),
        (2, "answered", "doubted"),
        (3, "answered", "doubted"),
        (2, "unforeseen", "doubted"),
    ],
)
async def test_a_part_that_is_refused_refuses_the_request_and_the_next_try_is_whole(
    wire: Wire, at: int, how: str, ended: str
) -> None:
    async with open_doors(Stumbling(at, how)) as doors:
        outcome = await wire.send(doors, LARGE)
        assert outcome.reason == "unavailable"
        assert outcome.position is None
        assert outcome.retry_after is not None
        assert 1 <= outcome.retry_after <= 5
        async with asyncio.timeout(PATIENCE):
            while doors.quotas.reservations[0].ended == []:  # noqa: ASYNC110 - parts that were under way go on
                await asyncio.sleep(0.01)
        assert [(each.events, each.ended) for each in doors.quotas.reservations] == [(38, [ended])]
        written = len(stored(doors))
        assert written in {0, 16, 32, 22}

        assert (await wire.send(doors, LARGE)).reason == ""
        assert [each.ended for each in doors.quotas.reservations] == [[ended], ["settled"]]
        copies = Counter(event.event_id for event in stored(doors))
        assert len(copies) == 38
        assert copies.total() == written + 38
        assert all(len(found) == 1 for found in digests(doors).values())
        assert doors.services.intake.pending.used == 0
        assert counted(doors, "batches_accepted", door="otlp") == 1
        assert counted(doors, "events_accepted", door="otlp") == 38
        assert counted(doors, "batches_refused", door="otlp", reason="unavailable") == 1


async def test_a_quota_that_has_no_room_for_all_of_a_request_takes_none_of_it(wire: Wire, doors: Doors) -> None:
    doors.quotas.refuse_events = Refused("quota_exceeded", "no", retry_after=60, details={"limit": 1})
    assert (await wire.send(doors, LARGE)).reason == "quota_exceeded"
    assert stored(doors) == []
    doors.quotas.refuse_events = None
    assert (await wire.send(doors, LARGE)).reason == ""
    assert len(stored(doors)) == 38


# --- what is counted ------------------------------------------------------------------------------------------------


def counted(doors: Doors, name: str, **labels: str) -> float:
    registry: CollectorRegistry = doors.services.intake.meters.registry
    found = registry.get_sample_value(f"spendstream_{name}_total", labels)
    assert found is not None, (name, labels)
    return found


def every(doors: Doors, name: str) -> dict[str, float]:
    """All series of a counter with one label, that are not 0."""
    registry: CollectorRegistry = doors.services.intake.meters.registry
    (found,) = [each for each in registry.collect() if each.name == f"spendstream_{name}"]
    return {next(iter(each.labels.values())): each.value for each in found.samples if each.value}


MIXED: Final = request(
    make_span(1, attributes=OUTER),
    make_span(2, 1),
    make_span(3, attributes=CHAT | {"gen_ai.usage.cost": 0.5}),
    make_span(4, attributes=AGENT),
    make_span(5, attributes=INFRA),
    make_span(6, attributes=INFRA),
    make_span(7, attributes={"db.system": "postgresql"}),
    make_span(8, attributes={}),
    make_span(9, traceId=""),
    make_span(10, spanId=""),
    make_span(11, startTimeUnixNano=None),
    make_span(12, startTimeUnixNano=str(START + 27 * HOUR)),
    make_span(13, attributes=CHAT | {"llm.cost.total": -1.0}),
)


async def test_spans_are_counted_by_what_became_of_them(wire: Wire, doors: Doors) -> None:
    assert (await wire.send(doors, MIXED)).rejected == 5
    assert every(doors, "otlp_spans") == {"call": 2, "span": 2}
    assert every(doors, "otlp_spans_dropped") == {"http": 2, "database": 1, "other": 1}
    assert every(doors, "otlp_spans_bad") == {"no_ids": 2, "bad_time": 1, "rejected": 2}
    assert counted(doors, "batches_accepted", door="otlp") == 1
    assert counted(doors, "events_accepted", door="otlp") == 4
    assert counted(doors, "events_rejected", door="otlp", code="out_of_range") == 2
    assert every(doors, "events_without_cost") == {"none": 1}  # of calls
    for other in ("http", "grpc"):
        assert counted(doors, "events_accepted", door=other) == 0


async def test_a_span_that_cannot_be_read_is_counted(doors: Doors) -> None:
    sent = to_json(request(make_span(1))).replace(b'"kind":3', b'"kind":3,"flags":"no"')
    assert (await WIRES["json"].send(doors, sent)).rejected == 1
    assert every(doors, "otlp_spans_bad") == {"unreadable": 1}
    assert counted(doors, "batches_accepted", door="otlp") == 0


async def test_refusals_are_counted_by_their_reason(wire: Wire, doors: Doors) -> None:
    await wire.send(doors, request(make_span()), ())
    await wire.send(doors, request(make_span()), (("x-api-key", READ_ONLY),))
    await wire.send(doors, b"\x0a\xff\xffno request")
    doors.quotas.refuse_request = Refused("rate_limited", "no", retry_after=1)
    await wire.send(doors, request(make_span()))
    for reason in ("unauthenticated", "forbidden", "bad_batch", "rate_limited"):
        assert counted(doors, "batches_refused", door="otlp", reason=reason) == 1
    assert every(doors, "otlp_spans") == {}


# --- what is logged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WIRES)
async def test_each_export_is_one_line_of_the_access_log(name: str) -> None:
    async with open_doors(watched=True) as doors:
        with capture_logs() as logs:
            await WIRES[name].send(doors, MIXED)
            await WIRES[name].send(doors, b"\x0a\xff\xffno request")
            await WIRES[name].send(doors, request(make_span()), (("x-api-key", "lqt_" + "0" * 64),))
            lines: list[Any] = []
            async with asyncio.timeout(PATIENCE):
                while len(lines) < 3:  # the last one comes after its answer
                    await asyncio.sleep(0.01)
                    lines = [each for each in logs if each["event"] in {"http.request", "grpc.call"}]
        prefixes = [SECRET[:12], SECRET[:12], "lqt_" + "0" * 8]
        if name == "grpc":
            found = [(each["method"], each["code"], each["key"]) for each in lines]
            codes = ["OK", "INVALID_ARGUMENT", "UNAUTHENTICATED"]
            assert found == [("Export", code, prefix) for code, prefix in zip(codes, prefixes, strict=True)]
        else:
            answers = [(each["method"], each["path"], each["status"], each["key"]) for each in lines]
            statuses = [200, 400, 401]
            assert answers == [
                ("POST", "/v1/traces", status, prefix) for status, prefix in zip(statuses, prefixes, strict=True)
            ]
        assert all(each["ms"] >= 0 for each in lines)
        assert SECRET not in repr(lines)


# --- the gate, and the pace -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["protobuf", "json", "packed"])
@pytest.mark.parametrize("watched", [False, True], ids=["", "each seen"])
async def test_an_export_that_waits_too_long_at_the_gate_is_503_in_its_encoding(
    monkeypatch: pytest.MonkeyPatch, name: str, watched: bool
) -> None:
    async with open_doors(watched=watched) as doors:
        monkeypatch.setattr("server.http_api.gate.PER_TURN", 0)
        monkeypatch.setattr("server.http_api.gate.PATIENCE", 0.1)
        for _ in range(3):
            outcome = await WIRES[name].send(doors, LARGE)
            assert (outcome.reason, outcome.retry_after) == ("unavailable", 1)
        assert counted(doors, "batches_refused", door="otlp", reason="unavailable") == 3
        assert stored(doors) == []
        monkeypatch.undo()
        assert (await WIRES[name].send(doors, LARGE)).reason == ""
        assert len(stored(doors)) == 38


async def test_exports_that_arrive_together_are_taken_one_after_the_other(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.http_api.gate.PER_TURN", 1)
    sent = [request(make_span(n)) for n in range(1, 41)]
    outcomes = await asyncio.gather(*(WIRES["json"].send(doors, each) for each in sent))
    assert {each.reason for each in outcomes} == {""}
    assert len({event.event_id for event in stored(doors)}) == 40


async def test_refusals_of_a_key_are_paced(wire: Wire, doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(doors.services.throttle, "_sleep", sleep)
    monkeypatch.setattr(doors.services.throttle, "_clock", lambda: 100.0)  # however slow this machine is
    for _ in range(BURST + 5):
        assert (await wire.send(doors, b"\x0a\xff\xffno request")).reason == "bad_batch"
    assert waited == pytest.approx([number / RATE for number in range(1, 6)])
    doors.publisher.available = False  # what is not the sender's doing is answered at once
    assert (await wire.send(doors, request(make_span()))).reason == "unavailable"
    assert len(waited) == 5


async def test_an_export_makes_its_grpc_connection_one_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not among the first to be ended where there are too many."""
    async with open_doors() as doors:
        known: list[str] = []
        watch = ConnectionWatch("grpc", 3)
        monkeypatch.setattr(watch, "know", known.append)
        server, port = await make_server(doors.services, bind="127.0.0.1:0", connections=watch)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary(f"/{TRACES}/Export")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"")  # without a key
            assert known == []
            await call(to_protobuf(request(make_span())), metadata=WITH_KEY)
            assert len(known) == 1
        await server.stop(0)


BOUNDS: Final[Mapping[str, Callable[[Doors], Any]]] = {
    "http": lambda doors: post(doors, "/v1/traces", to_json(request()), WITH_KEY, Content_Type=JSON),
    "protobuf": lambda doors: post(doors, "/v1/traces", b"", WITH_KEY, Content_Type=PROTOBUF),
    "grpc": lambda doors: export(doors, TRACES)(b"", metadata=WITH_KEY),
}


@pytest.mark.parametrize("name", BOUNDS)
async def test_a_key_cannot_have_any_number_of_exports_under_way(name: str, doors: Doors) -> None:
    doors.services.bodies.requests = 0
    if name == "grpc":
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await BOUNDS[name](doors)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    else:
        answer = await BOUNDS[name](doors)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize("name", ["protobuf", "json"])
async def test_too_many_connections_are_503_which_exporters_retry(name: str) -> None:
    content_type, body = (PROTOBUF, to_protobuf(LARGE)) if name == "protobuf" else (JSON, to_json(LARGE))
    async with open_doors(connections=4) as doors:
        held = await busy(doors, 3)  # of four, as many as one address may have
        answer = await post(doors, "/v1/traces", body, WITH_KEY, Content_Type=content_type)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        for _, each in held:
            each.close()
        async with asyncio.timeout(PATIENCE):
            while (await WIRES[name].send(doors, LARGE)).reason:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert len(stored(doors)) == 38
