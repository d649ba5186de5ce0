"""The gate before the HTTP API, with real connections: who waits, who is refused, and that no answer goes astray."""

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import replace
from typing import Final

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from server.ingest.publisher import Done, Parts
from tests.contract.doors import SECRET, Api, Doors, open_doors
from tests.support.connections import connections
from tests.support.events import make_event, to_ndjson
from tests.support.patience import PATIENCE, until

APIS: Final[tuple[Api, ...]] = ("http",)
"""Those that these tests need (the fixture `doors`)."""

BODY = to_ndjson([make_event()])
CHUNKED = b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
FULL = b'{"error":"More batches arrive than can be accepted; retry the request unchanged","reason":"unavailable"}'


def request(event: dict[str, object] | None = None, *more: str, length: bool = True) -> bytes:
    body = to_ndjson([event or make_event()])
    head = ["POST /v1/ingest HTTP/1.1", "Host: x", f"x-api-key: {SECRET}", "Content-Type: application/x-ndjson", *more]
    if length:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Status, head, body."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    body = await asyncio.wait_for(reader.readexactly(int(lengths[0].split(b":")[1])), PATIENCE)
    return int(head.split()[1]), head, body


def refusals(doors: Doors) -> float:
    registry: CollectorRegistry = doors.services.intake.meters.registry
    labels = {"door": "http", "reason": "unavailable"}
    return registry.get_sample_value("spendstream_batches_refused_total", labels) or 0.0


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nobody comes in, and nobody waits for long; `undo` opens it."""
    monkeypatch.setattr("server.http_api.gate.PER_TURN", 0)
    monkeypatch.setattr("server.http_api.gate.PATIENCE", 0.1)
    return monkeypatch


async def test_all_that_arrive_together_are_taken_one_after_the_other(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.http_api.gate.PER_TURN", 1)
    events = [make_event() for _ in range(100)]
    answers = await asyncio.gather(*(doors.post(to_ndjson([event])) for event in events))
    assert [answer.status for answer in answers] == [202] * 100
    stored = [str(event.event_id) for _, block in doors.stored() for event in block]
    assert sorted(stored) == sorted(str(event["event_id"]) for event in events)


async def test_who_waits_for_too_long_is_refused_and_the_connection_goes_on(
    doors: Doors, shut: pytest.MonkeyPatch
) -> None:
    reader, writer = await doors.connect()
    for _ in range(3):
        writer.write(request())
        status, head, body = await read_answer(reader)
        assert (status, body) == (503, FULL)
        assert b"\r\nRetry-After: 1\r\n" in head
        assert b"\r\nContent-Type: application/json\r\n" in head
    assert (doors.stored(), refusals(doors)) == ([], 3)
    shut.undo()
    writer.write(request())
    assert (await read_answer(reader))[0] == 202
    assert len(doors.stored()) == 1
    writer.close()


async def test_everything_but_a_batch_passes(doors: Doors, shut: pytest.MonkeyPatch) -> None:
    assert (await doors.get("/healthz")).status == 200
    assert (await doors.get("/v1/users")).status == 200
    assert (await doors.post(BODY)).status == 503


@pytest.mark.parametrize(
    "sent",
    [
        [request()],
        [request(None, "Expect: 100-continue")],
        [request(None, "Connection: keep-alive")],
        [request()[:30], request()[30:]],
        [request()[:300], request()[300:]],
        [request()[:-5], request()[-5:]],
        [request(None, "Transfer-Encoding: chunked", length=False).partition(b"\r\n\r\n")[0] + CHUNKED],
    ],
    ids=["whole", "expecting", "keep-alive", "a part of the head", "after the head", "a part of the body", "chunked"],
)
@pytest.mark.parametrize("watched", [False, True], ids=["", "each seen"])
async def test_a_request_in_any_form_is_answered_once(
    shut: pytest.MonkeyPatch, sent: list[bytes], watched: bool
) -> None:
    async with open_doors(watched=watched, apis=APIS) as doors:
        reader, writer = await doors.connect()
        for _ in range(2):
            shut.setattr("server.http_api.gate.PATIENCE", 60.0)  # until all of it is there
            for part in sent:
                writer.write(part)
                await asyncio.sleep(0.02)
            shut.setattr("server.http_api.gate.PATIENCE", 0.0)
            status, _, _ = await read_answer(reader)
            assert status == 503
        assert not reader.at_eof()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)  # no further answer
        writer.close()


async def test_several_requests_at_once_get_their_answers_in_order(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.http_api.gate.PER_TURN", 0)
    monkeypatch.setattr("server.http_api.gate.PATIENCE", 60.0)
    reader, writer = await doors.connect()
    first, second, third = make_event(), make_event(), make_event()
    writer.write(request(first) + request(second))
    await asyncio.sleep(0.02)
    monkeypatch.undo()
    writer.write(request(third))  # joins what is held
    statuses = [(await read_answer(reader))[0] for _ in range(3)]
    stored = {str(event.event_id) for _, block in doors.stored() for event in block}
    wanted = {
        str(event["event_id"]) for event, status in zip((first, second, third), statuses, strict=True) if status == 202
    }
    assert stored == wanted
    assert statuses == [202, 202, 202]
    writer.close()


async def test_no_answer_of_the_gate_overtakes_one_that_is_due(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http_api.gate.PATIENCE", 0.05)
    submit, held = doors.publisher.submit, list[tuple[Parts, int, Done]]()
    monkeypatch.setattr(doors.publisher, "submit", lambda *batch: held.append(batch))
    reader, writer = await doors.connect()
    writer.write(request())
    await until(lambda: held)  # it is under way
    monkeypatch.setattr("server.http_api.gate.PER_TURN", 0)
    writer.write(request())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.3)  # the second one's place is behind the first
    for batch in held:
        submit(*batch)
    monkeypatch.setattr(doors.publisher, "submit", submit)
    assert [(await read_answer(reader))[0] for _ in range(2)] == [202, 503]
    writer.close()


async def test_a_body_that_looks_like_a_request_is_a_body(doors: Doors, shut: pytest.MonkeyPatch) -> None:
    line = b"POST /v1/ingest HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
    head, body = request().split(b"\r\n\r\n")
    size = len(body)
    reader, writer = await doors.connect()
    shut.setattr("server.http_api.gate.PER_TURN", 32)
    writer.write(head.replace(b"Content-Length: %d" % size, b"Content-Length: %d" % (size + len(line))))
    writer.write(b"\r\n\r\n" + body)
    await asyncio.sleep(0.1)  # the head and a line of the body are there
    shut.setattr("server.http_api.gate.PER_TURN", 0)
    writer.write(line)
    status, _, answer = await read_answer(reader)
    assert (status, json.loads(answer)["accepted"]) == (202, 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.3)
    writer.close()


async def test_who_leaves_while_he_waits_is_forgotten(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http_api.gate.PER_TURN", 0)
    _, writer = await doors.connect()
    writer.write(request())
    await asyncio.sleep(0.05)
    at_once = struct.pack("ii", 1, 0)  # a reset: by an end alone nobody can tell it from a client that waits for more
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    writer.transport.abort()
    await asyncio.sleep(0.05)
    monkeypatch.undo()
    assert (await doors.post(BODY)).status == 202
    await asyncio.sleep(0.05)
    assert len(doors.stored()) == 1


@pytest.mark.parametrize(("per_turn", "status"), [(32, 202), (0, 503)])
async def test_who_has_ended_its_side_while_it_waits_gets_its_answer(
    doors: Doors, shut: pytest.MonkeyPatch, per_turn: int, status: int
) -> None:
    if per_turn:
        shut.setattr("server.http_api.gate.PATIENCE", PATIENCE)  # it is not refused before it is let in
    reader, writer = await doors.connect()
    writer.write(request())
    writer.write_eof()
    await asyncio.sleep(0.05)
    shut.setattr("server.http_api.gate.PER_TURN", per_turn)
    assert (await read_answer(reader))[0] == status
    assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
    writer.close()


async def test_who_waits_is_not_taken_for_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_doors(keepalive=5.0, apis=APIS) as doors:
        reader, writer = await doors.connect()
        writer.write(request())
        assert (await read_answer(reader))[0] == 202
        await asyncio.sleep(2.6)
        monkeypatch.setattr("server.http_api.gate.PER_TURN", 0)
        monkeypatch.setattr("server.http_api.gate.PATIENCE", 2.6)  # together they are more than it may be idle for
        writer.write(request())
        assert (await read_answer(reader))[::2] == (503, FULL)
        writer.close()


async def test_who_waits_when_the_server_stops_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http_api.gate.PER_TURN", 0)
    monkeypatch.setattr("server.http_api.gate.PATIENCE", PATIENCE)
    async with connections() as opened:
        async with open_doors(apis=APIS) as doors:
            reader, writer = await opened.open("127.0.0.1", int(doors.url.rpartition(":")[2]))
            writer.write(request())
            await asyncio.sleep(0.1)
        assert (await read_answer(reader))[::2] == (503, FULL)
        assert doors.stored() == []


async def test_an_unknown_key_waits_too(doors: Doors, shut: pytest.MonkeyPatch) -> None:
    assert (await doors.post(BODY, x_api_key="lqt_" + "9" * 64)).status == 503
    shut.undo()
    assert (await doors.post(BODY, x_api_key="lqt_" + "9" * 64)).status == 401


async def test_one_organization_does_not_keep_another_waiting(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "lqt_" + "7" * 64
    doors.add_key(other, organization="other", project="theirs")
    monkeypatch.setattr("server.http_api.gate.PER_TURN", 0)
    monkeypatch.setattr("server.http_api.gate.PATIENCE", 60.0)
    many = [asyncio.ensure_future(doors.post(BODY)) for _ in range(60)]
    await asyncio.sleep(0.3)
    one = asyncio.ensure_future(doors.post(BODY, x_api_key=other))
    await asyncio.sleep(0.1)
    monkeypatch.setattr("server.http_api.gate.PER_TURN", 1)
    assert (await one).status == 202
    assert sum(each.done() for each in many) < 30
    for each in many:
        each.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*many)


async def test_a_refusal_is_logged_where_each_request_is(shut: pytest.MonkeyPatch) -> None:
    async with open_doors(watched=True, apis=APIS) as doors:
        assert doors.services == replace(doors.services, access_log=True)
        with capture_logs() as logs:
            answer = await doors.post(BODY)
        assert (answer.status, answer.body) == (503, FULL)
        assert [entry["status"] for entry in logs if entry["event"] == "http.request"] == [503]
        assert refusals(doors) == 1
