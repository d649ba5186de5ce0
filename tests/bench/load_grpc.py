"""Load over gRPC: ready-made messages through `IngestStream`, with a few of each stream on their way at once."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import grpc

from protos.spendstream.v1.ingest_pb2 import IngestResponse
from tests.bench.loading import Order, Outcome, main, now

METHOD: Final = "/spendstream.v1.IngestService/IngestStream"


class Stream:
    """One stream, and the shared supply of requests."""

    def __init__(self, call: Any, depth: int, supply: Iterator[bytes], outcome: Outcome) -> None:
        self._call = call
        self._room = asyncio.Semaphore(depth)
        self._supply = supply
        self._outcome = outcome
        self._due: deque[float] = deque()

    async def run(self) -> None:
        """Send until the supply is used up and everything is answered."""
        reader = asyncio.create_task(self._read())
        for request in self._supply:
            await self._room.acquire()
            self._due.append(now())
            await self._call.write(request)
        await self._call.done_writing()
        await reader

    async def _read(self) -> None:
        outcome = self._outcome
        while (raw := await self._call.read()) is not grpc.aio.EOF:
            outcome.ended = now()
            outcome.latencies.append(outcome.ended - self._due.popleft())
            response = IngestResponse.FromString(raw)
            outcome.requests += 1
            outcome.accepted += response.accepted
            outcome.refused += response.HasField("status")
            outcome.position = response.position or outcome.position
            self._room.release()


def load(order: Order, bodies: list[bytes]) -> Callable[[], Awaitable[Outcome]]:
    """What is returned sends the messages."""

    async def run() -> Outcome:
        outcome = Outcome()
        supply = iter(bodies)
        compression = grpc.Compression.Gzip if order.encoding == "gzip" else grpc.Compression.NoCompression
        async with grpc.aio.insecure_channel(f"127.0.0.1:{order.port}", compression=compression) as channel:
            await channel.channel_ready()
            method: Any = channel.stream_stream(METHOD, request_serializer=None, response_deserializer=None)
            calls = [method(metadata=(("x-api-key", order.key),)) for _ in range(order.lanes)]
            outcome.began = now()
            await asyncio.gather(*(Stream(call, order.depth, supply, outcome).run() for call in calls))
        return outcome

    return run


if __name__ == "__main__":
    main(load)
