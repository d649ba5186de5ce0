"""Connections that are many, slow, idle or abusive. The bounds are small here, so that nothing has to wait for long."""

import asyncio
import struct
import time

import grpc
import pytest

from protos.spendstream.v1 import ingest_pb2 as pb
from server.grpc_service import OPTIONS
from tests.contract.doors import SECRET, Doors, key_metadata, open_doors, to_request
from tests.support.events import make_event, to_ndjson

EVENT = make_event()
BODY = to_ndjson([EVENT])
HEAD = (
    f"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nx-api-key: {SECRET}\r\n"
    f"Content-Type: application/x-ndjson\r\nContent-Length: {len(BODY)}\r\n"
)


async def connect(doors: Doors) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(doors.url.rpartition(":")[2]))


# --- HTTP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trickle", [b"", b"a"], ids=["silent", "slow"])
async def test_a_head_has_to_arrive_in_time(trickle: bytes) -> None:
    async with open_doors(keepalive=1.0) as doors:
        reader, writer = await connect(doors)
        if trickle:
            writer.write(HEAD.encode() + b"x-slow: ")
        began = time.monotonic()
        async with asyncio.timeout(20):
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
        assert not doors.face.bodies.used


async def test_a_connection_between_two_requests_has_to_go_on_in_time() -> None:
    async with open_doors(keepalive=1.0) as doors:
        reader, writer = await connect(doors)
        writer.write(HEAD.encode() + b"\r\n" + BODY)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 202")
        async with asyncio.timeout(20):
            await reader.read()
        writer.close()


async def test_too_many_connections_are_told_so_and_closed() -> None:
    async with open_doors(connections=3) as doors:
        held = [await connect(doors) for _ in range(3)]
        await asyncio.sleep(0.05)
        reader, writer = await connect(doors)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in answer
        assert answer.endswith(b'{"error":"Too many connections; try again"}')
        writer.close()
        for _, each in held:
            each.close()
        async with asyncio.timeout(10):
            while (await doors.post(BODY)).status != 202:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "head",
    [
        HEAD + "x-long: " + "a" * 9000 + "\r\n\r\n",
        HEAD + "".join(f"x-{n}: 1\r\n" for n in range(100)) + "\r\n",
        "GET /" + "a" * 9000 + " HTTP/1.1\r\nHost: x\r\n\r\n",
        "not http at all\r\n\r\n",
        HEAD.replace("Content-Length: ", "Content-Length: -"),
        HEAD + "Transfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["a long header", "many headers", "a long path", "garbage", "a negative length", "two lengths"],
)
async def test_a_head_beyond_its_bounds_is_answered_and_closed(head: str) -> None:
    async with open_doors() as doors:
        reader, writer = await connect(doors)
        writer.write(head.encode())
        answer = await asyncio.wait_for(reader.read(100), 10)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), answer
        writer.close()
        assert not doors.stored()
        assert (await doors.post(BODY)).status == 202


async def test_one_organisation_cannot_hold_all_room_for_bodies() -> None:
    other = "lqt_" + "7" * 64
    async with open_doors() as doors:
        doors.add_key(other, organization="other", project="theirs")
        doors.face.bodies.limit = 64 * 1024
        held = []
        for _ in range(8):
            _, writer = await connect(doors)
            head = HEAD.replace(f"Content-Length: {len(BODY)}", "Content-Length: 100000")
            writer.write(head.encode() + b"\r\n" + b" " * 10_000)
            held.append(writer)
        async with asyncio.timeout(10):
            while doors.face.bodies.used < 20_000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await doors.post(BODY, x_api_key=other)).status == 202
        for writer in held:
            writer.close()


async def test_a_key_cannot_have_any_number_of_requests_under_way() -> None:
    async with open_doors() as doors:
        doors.face.bodies.requests = 2
        held = []
        for _ in range(2):
            _, writer = await connect(doors)
            writer.write(HEAD.encode() + b"\r\n")
            held.append(writer)
        await asyncio.sleep(0.1)
        answer = await doors.post(BODY)
        assert (answer.status, answer.json["error"]) == (503, "This key has 2 requests under way already")
        ingest = doors.unary("IngestService/Ingest", pb.IngestResponse)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ingest(to_request([EVENT]), metadata=key_metadata())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        held[0].write(BODY)
        async with asyncio.timeout(10):
            while (await doors.post(BODY)).status != 202:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for writer in held:
            writer.close()


# --- gRPC: HTTP/2 by hand (RFC 9113, section 4.1) ---------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE = 3, 6
ENHANCE_YOUR_CALM = 11


def frame(kind: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, 0]) + bytes(4) + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await asyncio.wait_for(reader.readexactly(9), 20)
    return head[3], await asyncio.wait_for(reader.readexactly(int.from_bytes(head[:3])), 20)


async def test_streams_and_metadata_of_a_grpc_connection_are_bounded() -> None:
    async with open_doors() as doors:
        reader, writer = await asyncio.open_connection(*doors.address.split(":"))
        writer.write(PREFACE + frame(SETTINGS))
        kind, payload = await read_frame(reader)
        assert kind == SETTINGS
        told = dict(struct.iter_unpack(">HI", payload))
        wanted = dict(OPTIONS)
        assert told[MAX_CONCURRENT_STREAMS] == wanted["grpc.max_concurrent_streams"] == 512
        assert told[MAX_HEADER_LIST_SIZE] == wanted["grpc.absolute_max_metadata_size"] == 32_768
        writer.close()


async def test_metadata_beyond_its_bound_is_refused() -> None:
    async with open_doors() as doors:
        ingest = doors.unary("IngestService/Ingest", pb.IngestResponse)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ingest(to_request([EVENT]), metadata=(*key_metadata(), ("x-long", "a" * 40_000)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await ingest(to_request([EVENT]), metadata=key_metadata())).accepted == 1


async def test_pings_without_end_end_the_connection() -> None:
    async with open_doors() as doors:
        reader, writer = await asyncio.open_connection(*doors.address.split(":"))
        writer.write(PREFACE + frame(SETTINGS) + 20 * frame(PING, b"8 bytes!"))
        while True:
            kind, payload = await read_frame(reader)
            if kind == GOAWAY:
                break
        assert int.from_bytes(payload[4:8]) == ENHANCE_YOUR_CALM
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        ingest = doors.unary("IngestService/Ingest", pb.IngestResponse)
        assert (await ingest(to_request([EVENT]), metadata=key_metadata())).accepted == 1
