"""gRPC clients that keep quiet connections alive with pings, as meshes and load balancers want it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from protos.spendstream.v1 import ingest_pb2, ingest_pb2_grpc, usage_pb2, usage_pb2_grpc
from tests.support.events import make_event, to_proto
from tests.support.server import Server

INTERVALS: Final = (10, 12, 20, 25)
"""Seconds between two pings of a client."""
QUIET: Final = float(os.environ.get("KEEPALIVE_SECONDS", "45"))
"""Seconds without a message: the third ping that comes too early ends a connection, and those of 10 and 12 s have three
by then. A bound that allows these allows the slower ones; what they show is that nothing else ends a quiet connection.
"""


def channel(server: Server, interval: int) -> grpc.aio.Channel:
    """A channel of its own connection that pings, also without a call."""
    options = [
        ("grpc.keepalive_time_ms", interval * 1000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.insecure_channel(server.grpc, options)


def request(sequence: int) -> ingest_pb2.IngestRequest:
    return ingest_pb2.IngestRequest(sequence=sequence, events=[to_proto(make_event())])


async def quiet_stream(server: Server, interval: int) -> None:
    async def requests() -> AsyncIterator[ingest_pb2.IngestRequest]:
        yield request(1)
        await asyncio.sleep(QUIET)
        yield request(2)

    async with channel(server, interval) as connection:
        stub: Any = ingest_pb2_grpc.IngestServiceStub(connection)
        call = stub.IngestStream(requests(), metadata=(("x-api-key", server.key),))
        assert [answer.accepted async for answer in call] == [1, 1]


async def quiet_watch(server: Server, interval: int) -> None:
    async with channel(server, interval) as connection:
        stub: Any = usage_pb2_grpc.UsageServiceStub(connection)
        asked = usage_pb2.WatchUsersRequest(user_ids=["not there"])
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in stub.WatchUsers(asked, metadata=(("x-api-key", server.key),), timeout=QUIET):
                pass
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED, ended.value.details()
        assert time.monotonic() - began >= QUIET - 1


async def quiet_connection(server: Server, interval: int) -> None:
    """No call is under way: the connection has to stay READY the whole time."""
    async with channel(server, interval) as connection:
        stub: Any = ingest_pb2_grpc.IngestServiceStub(connection)
        assert (await stub.Ingest(request(1), metadata=(("x-api-key", server.key),))).accepted == 1
        assert connection.get_state() is grpc.ChannelConnectivity.READY
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.wait_for_state_change(grpc.ChannelConnectivity.READY), QUIET)


@pytest.mark.slow
@pytest.mark.timeout(QUIET + 600)
async def test_quiet_connections_that_ping_are_kept(tmp_path: Path) -> None:
    """`KEEPALIVE_SECONDS=115` makes it as long as the slowest client needs for its fourth ping."""
    server = Server(tmp_path / "data")
    await asyncio.to_thread(server.start)
    try:
        await asyncio.gather(
            *(quiet(server, each) for quiet in (quiet_stream, quiet_watch, quiet_connection) for each in INTERVALS)
        )
    finally:
        await asyncio.to_thread(server.stop)
