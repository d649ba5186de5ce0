"""Connections that are many, slow, idle or abusive. The bounds are small here, so that nothing has to wait for long."""

import asyncio
import contextlib
import json
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from protos.spendstream.v1 import ingest_pb2 as pb
from protos.spendstream.v1 import usage_pb2
from server.errors import Refused
from server.grpc_api.otlp_servicer import TRACES
from server.grpc_api.servicers import OPTIONS, make_server
from server.http_api.connections import PROBE_CONNECTIONS
from server.ingest.publisher import Done, Parts
from server.limits.admission import MIN_IDLE
from server.limits.call_shares import CallShares
from server.limits.connection_watch import ConnectionWatch
from server.limits.refusal_pacing import BURST, RefusalPacer
from tests.contract.doors import SECRET, Doors, key_metadata, open_doors, to_request
from tests.support.events import make_event, to_ndjson
from tests.support.patience import PATIENCE, until
from tests.support.publisher import FakePublisher

EVENT = make_event()
BODY = to_ndjson([EVENT])
HEAD = (
    f"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nx-api-key: {SECRET}\r\n"
    f"Content-Type: application/x-ndjson\r\nContent-Length: {len(BODY)}\r\n"
)


class HeldPublisher(FakePublisher):
    """A log that is durable only after `durable` is set."""

    def __init__(self) -> None:
        super().__init__(3)
        self.durable = asyncio.Event()
        self.submitted = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, parts: Parts, size: int, done: Done) -> None:
        self.submitted += 1
        self._tasks.add(task := asyncio.create_task(self._when_durable(parts, done)))
        task.add_done_callback(self._tasks.discard)

    async def _when_durable(self, parts: Parts, done: Done) -> None:
        await self.durable.wait()
        done(self.write(parts))


# --- HTTP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trickle", [b"", b"a"], ids=["silent", "slow"])
async def test_a_head_has_to_arrive_in_time(trickle: bytes) -> None:
    async with open_doors(keepalive=1.0) as doors:
        reader, writer = await doors.connect()
        if trickle:
            writer.write(HEAD.encode() + b"x-slow: ")
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            while not reader.at_eof():
                writer.write(trickle)  # a byte now and then keeps nothing open
                try:
                    assert await asyncio.wait_for(reader.read(1), 0.1) == b""
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
        assert time.monotonic() - began >= 0.9
        writer.close()
        assert (await doors.post(BODY)).status == 202
        assert not doors.services.bodies.used


async def test_a_connection_between_two_requests_has_to_go_on_in_time() -> None:
    async with open_doors(keepalive=1.0) as doors:
        reader, writer = await doors.connect()
        writer.write(HEAD.encode() + b"\r\n" + BODY)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 202")
        async with asyncio.timeout(PATIENCE):
            await reader.read()
        writer.close()


PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


async def read_closed(reader: asyncio.StreamReader) -> tuple[bytes, dict[str, str], bytes]:
    """Status line, headers by lower-case name, and body of the one answer that comes before the end."""
    head, _, body = (await asyncio.wait_for(reader.read(), PATIENCE)).partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = {name.lower(): value for name, _, value in (line.decode().partition(": ") for line in lines)}
    return status, headers, body


async def busy(doors: Doors, count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """So many connections with a request under way: one that is idle for a moment makes room for another."""
    held = [await doors.connect() for _ in range(count)]
    for reader, writer in held:
        writer.write(HEAD.encode() + b"Expect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    return held


async def test_too_many_connections_are_told_so_and_closed() -> None:
    async with open_doors(connections=4) as doors:
        held = await busy(doors, 3)  # of four, as many as one address may have
        reader, writer = await doors.connect()
        writer.write(HEAD.encode() + b"\r\n" + BODY)
        status, headers, body = await read_closed(reader)
        assert status.startswith(b"HTTP/1.1 503 ")
        assert (headers["retry-after"], headers["connection"]) == ("1", "close")
        assert body == b'{"error":"Too many connections; try again","reason":"unavailable"}'
        assert not doors.stored()
        writer.close()
        for _, each in held:
            each.close()
        async with asyncio.timeout(PATIENCE):
            while (await doors.post(BODY)).status != 202:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_a_probe_is_answered_whatever_the_number_of_connections(path: str) -> None:
    async with open_doors(connections=4, registry=CollectorRegistry()) as doors:
        held = await busy(doors, 3)  # of four, as many as one address may have
        held += [await doors.connect() for _ in range(2 * PROBE_CONNECTIONS)]
        for _ in range(3):
            reader, writer = await doors.connect()
            writer.write(PROBE.replace(b"/healthz", path.encode()))
            status, headers, _ = await read_closed(reader)
            assert (status, headers["connection"]) == (b"HTTP/1.1 200 OK", "close")
            writer.close()
        for _, each in held:
            each.close()


async def test_idle_connections_make_room_for_those_that_ask_for_something() -> None:
    async with open_doors(connections=4) as doors:
        known = await doors.connect()
        known[1].write(PROBE)
        assert await known[0].readuntil(b"}")
        idle = [await doors.connect() for _ in range(3)]
        await asyncio.sleep(MIN_IDLE + 0.1)
        assert (await doors.post(BODY)).status == 202
        assert await asyncio.wait_for(idle[0][0].read(), PATIENCE) == b""  # the oldest of those that never asked
        known[1].write(PROBE)
        assert (await known[0].readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
        for _, each in [known, *idle]:
            each.close()


MARK = "".join(sorted(SECRET[:8])) + "-" + "q" * 20
FORM_FEED = "\x0c"


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        (HEAD + "x-long: " + "a" * 33_000 + "\r\n\r\n", "longer than 32768 bytes"),
        (HEAD + "".join(f"x-{n}: {'b' * 1000}\r\n" for n in range(40)) + "\r\n", "longer than 32768 bytes"),
        (HEAD + "".join(f"x-{n}: 1\r\n" for n in range(130)) + "\r\n", "more than 128 headers"),
        ("GET /" + "a" * 33_000 + " HTTP/1.1\r\nHost: x\r\n\r\n", "longer than 32768 bytes"),
        ("not http at all\r\n\r\n", "not a well-formed HTTP/1.1 request"),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "the gRPC API has a port of its own"),
        (HEAD.replace("Content-Length: ", "Content-Length: -"), "not a well-formed HTTP/1.1 request"),
        (HEAD + "Transfer-Encoding: chunked\r\n\r\n", "not a well-formed HTTP/1.1 request"),
        (HEAD + "Transfer-Encoding: gzip\r\n\r\n", "not a well-formed HTTP/1.1 request"),
        (HEAD.replace("Host: x\r\n", "") + "\r\n", "Host header is missing"),
        (HEAD + "Host: y\r\n\r\n", "Host occurs more than once"),
        (HEAD.replace("\r\n", "\n") + "\n", "not a well-formed HTTP/1.1 request"),
        (HEAD + f"x-mark: {MARK}\n\r\n\r\n", "not a well-formed HTTP/1.1 request"),
        (HEAD + f"x-mark {MARK}\r\n\r\n", "not a well-formed HTTP/1.1 request"),
        (HEAD + f"x-mark: {MARK}\x00{MARK}\r\n\r\n", ""),
        (HEAD + f"x-mark: {MARK}{FORM_FEED}\r\n\r\n", ""),
        (HEAD.replace("/v1/ingest", f"{MARK}") + "\r\n", ""),
        (HEAD.replace("/v1/ingest", f"http://[{MARK}/") + "\r\n", ""),
    ],
)
@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_head_beyond_its_bounds_is_answered_and_closed(head: str, fault: str, pieces: int) -> None:
    async with open_doors() as doors:
        reader, writer = await doors.connect()
        sent = head.encode("latin-1")
        size = -(-len(sent) // pieces)
        answer = asyncio.create_task(read_closed(reader))
        for start in range(0, len(sent), size):
            if not answer.done():
                writer.write(sent[start : start + size])
                await asyncio.sleep(0.02)
        status, headers, body = await answer
        assert status.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), status
        assert headers["content-type"].startswith("application/json")
        assert fault in json.loads(body)["error"]
        for secret in (SECRET, MARK, "a" * 50, "b" * 50):
            assert secret.encode() not in body
        writer.close()
        assert not doors.stored()
        assert (await doors.post(BODY)).status == 202


async def test_an_expectation_that_is_not_known_is_not_repeated() -> None:
    async with open_doors() as doors:
        reader, writer = await doors.connect()
        writer.write(PROBE[:-2] + f"Expect: {MARK}\r\nConnection: close\r\n\r\n".encode())
        status, headers, body = await read_closed(reader)
        assert (status, headers["cache-control"]) == (b"HTTP/1.1 417 Expectation Failed", "no-store")
        assert json.loads(body) == {"error": "Expect must be 100-continue, or absent", "reason": "bad_request"}
        writer.close()


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize(
    "more",
    [
        "".join(f"x-hop-{n}: 1\r\n" for n in range(124)),
        "x-forwarded-client-cert: " + "a" * 9000 + "\r\n",
        "x-a: " + "a" * (32 * 1024 - len(HEAD) - len("x-a: \r\n\r\n")) + "\r\n",
    ],
    ids=["128 headers", "a header of 9 kB", "32 KiB in all"],
)
async def test_heads_as_proxies_make_them_are_taken(more: str, pieces: int) -> None:
    async with open_doors() as doors:
        reader, writer = await doors.connect()
        for count in range(1, 4):
            sent = (HEAD + more + "\r\n").encode() + BODY
            size = -(-len(sent) // pieces)
            for start in range(0, len(sent), size):
                writer.write(sent[start : start + size])
                await asyncio.sleep(0.01)
            assert (await asyncio.wait_for(reader.readuntil(b"}"), PATIENCE)).startswith(b"HTTP/1.1 202 ")
            assert len(doors.stored()) == count
        writer.close()


async def test_the_head_behind_a_request_under_way_is_bounded_too() -> None:
    publisher = HeldPublisher()
    async with open_doors(publisher) as doors:
        reader, writer = await doors.connect()
        writer.write(HEAD.encode() + b"\r\n" + BODY)
        await until(lambda: publisher.submitted)
        for _ in range(5):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nx-a: " + b"a" * 10_000)
            await asyncio.sleep(0.02)
        publisher.durable.set()
        status, _, _ = await read_closed(reader)
        assert status.startswith(b"HTTP/1.1 202 ")
        writer.close()


async def test_trailers_are_bounded() -> None:
    async with open_doors() as doors:
        reader, writer = await doors.connect()
        head = HEAD.replace(f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked")
        writer.write(head.encode() + b"\r\n%x\r\n%b\r\n0\r\n" % (len(BODY), BODY))
        for number in range(5):
            writer.write(b"x-%d: " % number + b"a" * 10_000 + b"\r\n")
            await asyncio.sleep(0.02)
        status, _, body = await read_closed(reader)
        assert status.startswith(b"HTTP/1.1 400 "), status
        assert json.loads(body)["error"] == "The body is cut off or not well framed"
        assert not doors.stored()
        writer.close()


# --- a client that has ended its side ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 5])
async def test_a_client_that_has_ended_its_side_gets_its_answer(pieces: int) -> None:
    async with open_doors() as doors:
        reader, writer = await doors.connect()
        sent = HEAD.encode() + b"\r\n" + BODY
        size = -(-len(sent) // pieces)
        for start in range(0, len(sent), size):
            writer.write(sent[start : start + size])
            await asyncio.sleep(0.01 if pieces > 1 else 0)
        writer.write_eof()
        status, _, body = await read_closed(reader)
        assert (status, json.loads(body)) == (b"HTTP/1.1 202 Accepted", {"accepted": 1})
        writer.close()
        assert len(doors.stored()) == 1


async def test_it_gets_all_its_answers_also_late_ones() -> None:
    publisher = HeldPublisher()
    async with open_doors(publisher) as doors:
        reader, writer = await doors.connect()
        writer.write((HEAD.encode() + b"\r\n" + BODY) * 2 + PROBE)
        writer.write_eof()
        await until(lambda: publisher.submitted)
        await asyncio.sleep(0.3)
        publisher.durable.set()
        answers = await asyncio.wait_for(reader.read(), PATIENCE)
        assert (answers.count(b"HTTP/1.1 202 "), answers.count(b"HTTP/1.1 200 ")) == (2, 1)
        writer.close()


async def test_a_body_that_ends_too_early_is_refused() -> None:
    async with open_doors() as doors:
        reader, writer = await doors.connect()
        writer.write(HEAD.encode() + b"\r\n" + BODY[:-5])
        writer.write_eof()
        status, _, body = await read_closed(reader)
        assert status.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"] == "The body is cut off or not well framed"
        writer.close()
        assert not doors.stored()
        assert not doors.services.bodies.used


async def test_a_large_body_is_read_to_its_end() -> None:
    body = to_ndjson(
        [make_event(error_message="x" * 400_000, event_id=f"{n:08x}-0000-4000-8000-000000000000") for n in range(2)]
    )
    async with open_doors() as doors:
        reader, writer = await doors.connect()
        writer.write(
            HEAD.replace(f"Content-Length: {len(BODY)}", f"Content-Length: {len(body)}").encode() + b"\r\n" + body
        )
        writer.write_eof()
        status, _, _ = await read_closed(reader)
        assert status.startswith(b"HTTP/1.1 400 "), status  # each line is beyond its own bound: all of it was read
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", PROBE], ids=["nothing", "a part of a head", "between two"])
async def test_an_idle_connection_that_is_ended_is_closed(sent: bytes) -> None:
    async with open_doors() as doors:
        reader, writer = await doors.connect()
        writer.write(sent)
        if sent == PROBE:
            await reader.readuntil(b"}")
        await asyncio.sleep(0.05)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()


# --- transfer codings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/ingest", "/v1/users"])
async def test_a_transfer_coding_that_is_not_known_is_501(path: str) -> None:
    async with open_doors() as doors:
        reader, writer = await doors.connect()
        head = HEAD.replace(f"Content-Length: {len(BODY)}", "Transfer-Encoding: gzip, chunked\r\nConnection: close")
        writer.write(head.replace("/v1/ingest", path).encode() + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        status, headers, body = await read_closed(reader)
        assert (status, headers["cache-control"]) == (b"HTTP/1.1 501 Not Implemented", "no-store")
        assert "Transfer-Encoding: gzip" in json.loads(body)["error"]
        assert not doors.stored()
        writer.close()


# --- what is kept, and by whom ----------------------------------------------------------------------------------------


async def test_one_organization_cannot_hold_all_room_for_bodies() -> None:
    other = "lqt_" + "7" * 64
    async with open_doors() as doors:
        doors.add_key(other, organization="other", project="theirs")
        doors.services.bodies.limit = 64 * 1024
        held = []
        for _ in range(8):
            _, writer = await doors.connect()
            head = HEAD.replace(f"Content-Length: {len(BODY)}", "Content-Length: 100000")
            writer.write(head.encode() + b"\r\n" + b" " * 10_000)
            held.append(writer)
        async with asyncio.timeout(PATIENCE):
            while doors.services.bodies.used < 20_000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await doors.post(BODY, x_api_key=other)).status == 202
        for writer in held:
            writer.close()


async def test_a_key_cannot_have_any_number_of_requests_under_way() -> None:
    async with open_doors() as doors:
        doors.services.bodies.requests = 2
        held = [writer for _, writer in await busy(doors, 2)]
        answer = await doors.post(BODY)
        assert (answer.status, answer.json["error"]) == (503, "This key has 2 requests under way already")
        ingest = doors.unary("IngestService/Ingest", pb.IngestResponse)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ingest(to_request([EVENT]), metadata=key_metadata())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        held[0].write(BODY)
        async with asyncio.timeout(PATIENCE):
            while (await doors.post(BODY)).status != 202:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for writer in held:
            writer.close()


# --- gRPC: HTTP/2 by hand (RFC 9113, section 4.1) ---------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE = 3, 6
ENHANCE_YOUR_CALM = 11


def host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def frame(kind: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, 0]) + bytes(4) + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await asyncio.wait_for(reader.readexactly(9), PATIENCE)
    return head[3], await asyncio.wait_for(reader.readexactly(int.from_bytes(head[:3])), PATIENCE)


async def test_streams_and_metadata_of_a_grpc_connection_are_bounded() -> None:
    async with open_doors() as doors:
        reader, writer = await doors.connections.open(*host_and_port(doors.address))
        writer.write(PREFACE + frame(SETTINGS))
        kind, payload = await read_frame(reader)
        assert kind == SETTINGS
        told = dict(struct.iter_unpack(">HI", payload))
        wanted = dict(OPTIONS)
        assert told[MAX_CONCURRENT_STREAMS] == wanted["grpc.max_concurrent_streams"] == 512
        assert told[MAX_HEADER_LIST_SIZE] == wanted["grpc.absolute_max_metadata_size"] == 32_768
        writer.close()


def test_every_option_is_one_that_grpc_has() -> None:
    """gRPC ignores a name that it does not know."""
    core = Path(str(import_module("grpc._cython.cygrpc").__file__)).read_bytes()
    assert [name for name, _ in OPTIONS if name.encode() + b"\0" not in core] == []
    assert b"grpc.max_allowed_incoming_connections\0" in core


async def test_grpc_connections_beyond_the_bound_are_closed() -> None:
    async with open_doors() as doors:
        watch = ConnectionWatch("grpc", 3)
        server, port = await make_server(doors.services, bind="127.0.0.1:0", connections=watch)
        await server.start()
        held = []
        for _ in range(3):
            reader, writer = await doors.connections.open("127.0.0.1", port)
            writer.write(PREFACE + frame(SETTINGS))
            assert (await read_frame(reader))[0] == SETTINGS
            held.append(writer)
        reader, writer = await doors.connections.open("127.0.0.1", port)
        writer.write(PREFACE + frame(SETTINGS))
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        for each in (*held, writer):
            each.close()
        await server.stop(0)


async def test_metadata_beyond_its_bound_is_refused() -> None:
    async with open_doors() as doors:
        ingest = doors.unary("IngestService/Ingest", pb.IngestResponse)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ingest(to_request([EVENT]), metadata=(*key_metadata(), ("x-long", "a" * 40_000)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await ingest(to_request([EVENT]), metadata=key_metadata())).accepted == 1


async def test_pings_without_end_end_the_connection() -> None:
    async with open_doors() as doors:
        reader, writer = await doors.connections.open(*host_and_port(doors.address))
        writer.write(PREFACE + frame(SETTINGS) + 20 * frame(PING, b"8 bytes!"))
        while True:
            kind, payload = await read_frame(reader)
            if kind == GOAWAY:
                break
        assert int.from_bytes(payload[4:8]) == ENHANCE_YOUR_CALM
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()
        ingest = doors.unary("IngestService/Ingest", pb.IngestResponse)
        assert (await ingest(to_request([EVENT]), metadata=key_metadata())).accepted == 1


class Stopped:
    """A clock that stands still, and sleepers that are never woken."""

    def __init__(self) -> None:
        self.sleeping = 0

    def pacer(self) -> RefusalPacer:
        return RefusalPacer(lambda: 100.0, self._sleep)

    async def _sleep(self, _: float) -> None:
        self.sleeping += 1
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def paced_grpc(doors: Doors, stopped: Stopped) -> AsyncIterator[Any]:
    """A server whose refusals wait for ever once they are paced."""
    services = replace(doors.services, throttle=stopped.pacer())
    server, port = await make_server(services, bind="127.0.0.1:0")
    await server.start()
    channel: Any
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def refused_until_one_waits(call: Callable[[], Any], stopped: Stopped) -> int:
    """Call until an answer is held back; returns how many there were before."""
    for number in range(1000):
        asked = asyncio.ensure_future(call())
        while not asked.done() and not stopped.sleeping:
            await asyncio.wait({asked}, timeout=0.01)
        if stopped.sleeping:
            asked.cancel()
            return number
        assert isinstance(asked.exception(), grpc.aio.AioRpcError)
    raise AssertionError("no refusal has waited")


@pytest.mark.parametrize("name", ["Ingest", "ListUsers", "GetTrace", "Export", "IngestStream"])
async def test_calls_without_a_valid_key_are_paced_over_grpc(name: str) -> None:
    stopped = Stopped()
    async with open_doors() as doors, paced_grpc(doors, stopped) as channel:
        ways: dict[str, Callable[[], Any]] = {
            "Ingest": lambda: channel.unary_unary("/spendstream.v1.IngestService/Ingest")(b""),
            "ListUsers": lambda: channel.unary_unary("/spendstream.v1.UsageService/ListUsers")(b""),
            "GetTrace": lambda: channel.unary_stream("/spendstream.v1.UsageService/GetTrace")(b"").read(),
            "Export": lambda: channel.unary_unary(f"/{TRACES}/Export")(b""),
            "IngestStream": lambda: channel.stream_stream("/spendstream.v1.IngestService/IngestStream")().read(),
        }
        assert await refused_until_one_waits(ways[name], stopped) == BURST


async def test_refused_traces_are_paced_over_grpc() -> None:
    stopped = Stopped()
    async with open_doors() as doors, paced_grpc(doors, stopped) as channel:
        doors.explorer.refuse = Refused("queries_busy", "Not now", retry_after=1)
        call = channel.unary_stream("/spendstream.v1.UsageService/GetTrace")
        request = usage_pb2.GetTraceRequest(trace_id="t").SerializeToString()
        assert await refused_until_one_waits(lambda: call(request, metadata=key_metadata()).read(), stopped) == BURST


async def test_refusals_that_wait_leave_room_for_the_calls_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is a call under way, and there are only so many."""
    monkeypatch.setattr("server.grpc_api.servicers.MAX_CALLS", 16)
    monkeypatch.setattr("server.limits.refusal_pacing.MOST_OF_ONE", 8)
    stopped = Stopped()
    async with open_doors() as doors, paced_grpc(doors, stopped) as channel:
        other = "lqt_" + "4" * 64
        doors.add_key(other)
        ingest = channel.unary_unary(
            "/spendstream.v1.IngestService/Ingest", response_deserializer=pb.IngestResponse.FromString
        )
        waiting = []
        for _ in range(BURST + 40):
            before = stopped.sleeping
            asked = asyncio.ensure_future(ingest(b"\xff", metadata=key_metadata()))
            while not asked.done() and stopped.sleeping == before:
                await asyncio.wait({asked}, timeout=0.01)
            if not asked.done():
                waiting.append(asked)
        assert (await ingest(to_request([EVENT]), metadata=key_metadata(other))).accepted == 1
        assert len(waiting) == 8
        for each in waiting:
            each.cancel()


async def test_calls_that_need_no_key_leave_room_for_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of a call without a key is not awaited, and of calls that need none only so many are under way."""
    monkeypatch.setattr("server.grpc_api.servicers.MAX_CALLS", 16)
    monkeypatch.setattr("server.grpc_api.health_servicer.MOST_STRANGERS", 8)
    monkeypatch.setattr("server.grpc_api.health_servicer.MESSAGE_TIMEOUT", 60.0)  # or the first end before the last
    async with open_doors() as doors:
        server, port = await make_server(doors.services, bind="127.0.0.1:0")
        await server.start()
        channel: Any
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            held = []
            for method in ("spendstream.v1.IngestService/Ingest", "spendstream.v1.UsageService/GetTrace"):
                for _ in range(20):  # their message never comes
                    call = channel.stream_stream(f"/{method}")()
                    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
            for number in range(12):
                for method in ("Check", "Watch"):
                    call = channel.stream_stream(f"/grpc.health.v1.Health/{method}")()
                    held.append(call)
                    if number >= 4:
                        assert await call.code() is grpc.StatusCode.UNAVAILABLE
                    else:
                        await call.wait_for_connection()
            ingest = channel.unary_unary(
                "/spendstream.v1.IngestService/Ingest", response_deserializer=pb.IngestResponse.FromString
            )
            assert (await ingest(to_request([EVENT]), metadata=key_metadata())).accepted == 1
            assert [call.done() for call in held] == [False] * 8 + [True] * 16
            for call in held:
                call.cancel()
        await server.stop(0)


class CountedShares(CallShares):
    """It says how many calls are under way."""

    under_way = 0

    @contextlib.contextmanager
    def call(self, organization: str) -> Iterator[None]:
        with super().call(organization):
            self.under_way += 1
            try:
                yield
            finally:
                self.under_way -= 1


@pytest.mark.parametrize(
    "method",
    [
        "spendstream.v1.IngestService/IngestStream",
        "spendstream.v1.IngestService/Ingest",
        "spendstream.v1.UsageService/WatchUsers",
        "spendstream.v1.UsageService/ListUsers",
        f"{TRACES}/Export",
    ],
)
async def test_idle_calls_of_an_organization_leave_room_for_those_of_others(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over however many connections: of twelve calls it gets half, and the next one half of what is left."""
    shares = CountedShares(12)
    monkeypatch.setattr("server.grpc_api.servicers.CallShares", lambda: shares)
    other = "lqt_" + "4" * 64
    async with open_doors() as doors, contextlib.AsyncExitStack() as opened:
        doors.add_key(other, organization="other", project="other")
        server, port = await make_server(doors.services, bind="127.0.0.1:0")
        await server.start()
        held: list[Any] = []
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels: list[Any] = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(10)]
        for number, channel in enumerate(channels):
            await opened.enter_async_context(channel)
            call = channel.stream_stream(f"/{method}")(metadata=key_metadata())
            held.append(call)
            if number < 6:
                await call.wait_for_connection()
                await until(lambda: shares.under_way == len(held))  # the handler may come later
            else:
                assert await call.code() is grpc.StatusCode.UNAVAILABLE
                assert "has 6 calls under way" in await call.details()
        ingest = channels[0].unary_unary(
            "/spendstream.v1.IngestService/Ingest", response_deserializer=pb.IngestResponse.FromString
        )
        assert (await ingest(to_request([EVENT]), metadata=key_metadata(other))).accepted == 1
        assert [call.done() for call in held] == [False] * 6 + [True] * 4
        held[0].cancel()
        async with asyncio.timeout(PATIENCE):
            while True:  # until the server has heard of it
                try:
                    assert (await ingest(to_request([EVENT]), metadata=key_metadata())).accepted == 1
                    break
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                await asyncio.sleep(0.01)
        for call in held:
            call.cancel()
        await server.stop(0)


@pytest.mark.parametrize("method", ["spendstream.v1.IngestService/Ingest", f"{TRACES}/Export"])
async def test_a_message_has_a_time_to_arrive(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.grpc_api.call_metadata.MESSAGE_TIMEOUT", 0.1)
    async with open_doors() as doors:
        channel: Any
        async with grpc.aio.insecure_channel(doors.address) as channel:
            call = channel.stream_unary(f"/{method}")(metadata=key_metadata())
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "did not arrive" in await call.details()
            ended = channel.stream_unary(f"/{method}")(iter(()), metadata=key_metadata())
            assert await ended.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "no message" in await ended.details()
