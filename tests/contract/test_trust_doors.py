"""A process that does not know what became of its keys takes nothing, over both APIs, and recovers by itself."""

import time

import grpc
import pytest

from protos.spendstream.v1 import ingest_pb2 as pb
from server.tenancy.directory_follower import DirectoryFreshness
from tests.contract.doors import key_metadata, open_doors, to_request
from tests.support.events import make_event, to_ndjson

EVENT = make_event()


class Age:
    """Of the directory, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def trust(self) -> DirectoryFreshness:
        return DirectoryFreshness(lambda: time.monotonic() - self.seconds, time.monotonic)


async def test_an_old_directory_is_not_trusted() -> None:
    age = Age()
    async with open_doors(trust=age.trust()) as doors:
        ingest = doors.unary("IngestService/Ingest", pb.IngestResponse)
        age.seconds = 5
        answer = await doors.post(to_ndjson([EVENT]))
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert (await doors.get("/v1/users")).status == 503
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ingest(to_request([EVENT]), metadata=key_metadata())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        for secret in ("lqt_" + "0" * 64, None):  # not even to say that there is no such key
            assert (await doors.post(to_ndjson([EVENT]), x_api_key=secret)).status == 503
        assert (await doors.get("/healthz")).status == 200
        assert not doors.stored()
        age.seconds = 0
        assert (await doors.post(to_ndjson([EVENT]))).status == 202
        assert (await ingest(to_request([EVENT]), metadata=key_metadata())).accepted == 1


async def test_a_stream_goes_on_when_the_directory_is_known_again() -> None:
    age = Age()
    async with open_doors(trust=age.trust()) as doors:
        call = doors.stream()
        await call.write(to_request([EVENT], 1))
        assert (await call.read()).accepted == 1
        age.seconds = 5
        for sequence in (2, 3):
            await call.write(to_request([EVENT], sequence))
            refused = await call.read()
            assert (refused.sequence, refused.status.code) == (sequence, grpc.StatusCode.UNAVAILABLE.value[0])
        age.seconds = 0
        await call.write(to_request([EVENT], 4))
        assert (await call.read()).accepted == 1
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
