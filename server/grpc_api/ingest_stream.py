"""One call of `IngestStream`: several batches under way at once, answered in order, while the key is valid.

    reads ──> [ flight | flight | ... ] ──> writes        a flight is a request and its answer to come

The window bounds memory and gives flow control: it stays full until its first answer is written, and while it is full
nothing is read, so that the client's send window fills up. Writing waits for a client that does not read.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import grpc

from protos.spendstream.v1.ingest_pb2 import IngestResponse
from server.errors import Refused
from server.grpc_api import messages
from server.ingest.protobuf import sequence_of
from server.tenancy.keys import Key

WINDOW: Final = 16
"""Most requests of a stream under way at once; group commit makes them durable together."""
WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Most bytes of them; the last request may exceed it."""
CHECK_EVERY: Final = 0.4
"""Seconds between two checks of an idle stream's key."""
PATIENCE: Final = 0.2
"""Seconds after the key's end for batches under way to be answered, and then for the client to read the answers."""


class Call(Protocol):
    """What is used of `grpc.aio.ServicerContext`."""

    async def read(self) -> Any: ...
    async def write(self, message: IngestResponse) -> None: ...


class _Flight(NamedTuple):
    raw: bytes
    answer: asyncio.Future[IngestResponse]


class IngestStream:
    """`check` gives the stream's key or raises `Refused`; `start` begins to take one request: what it gives is done
    with the answer, and never with an error."""

    def __init__(
        self, call: Call, check: Callable[[], Key], start: Callable[[Key, bytes], asyncio.Future[IngestResponse]]
    ) -> None:
        self._call = call
        self._check = check
        self._start = start
        self._flights: deque[_Flight] = deque()
        self._size = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._over = False
        self._last: IngestResponse | None = None

    async def run(self) -> None:
        """Answer the stream; return when the client has ended it and all is answered, or its key is not valid any
        more."""
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write(reader))
        guard = asyncio.create_task(self._guard(writer))
        try:
            await asyncio.wait((writer,))
        finally:
            left: list[asyncio.Future[Any]] = [reader, writer, guard, *(flight.answer for flight in self._flights)]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        for task in (writer, reader):
            if not task.cancelled():
                task.result()

    async def _read(self) -> None:
        try:
            while (raw := await self._call.read()) is not grpc.aio.EOF:
                if self._last is not None:
                    continue  # the key has ended
                try:
                    key = self._check()
                except Refused as refused:
                    if not refused.retryable:
                        self._end(refused, sequence_of(raw))
                        continue
                    answer = asyncio.get_running_loop().create_future()
                    answer.set_result(messages.refusal(sequence_of(raw), refused))
                else:
                    answer = self._start(key, raw)
                self._flights.append(_Flight(raw, answer))
                self._size += len(raw)
                self._arrived.set()
                while len(self._flights) >= WINDOW or self._size >= WINDOW_BYTES:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._over = True
            self._arrived.set()

    def _end(self, refused: Refused, sequence: int) -> None:
        """Accept no more requests; `refused` is the last answer."""
        if self._last is None:
            self._last = messages.refusal(sequence, refused)
        self._over = True
        self._arrived.set()

    async def _write(self, reader: asyncio.Task[None]) -> None:
        while await self._is_pending():
            raw, answer = self._flights[0]
            if not answer.done():
                await asyncio.wait((answer,))
            if answer.cancelled():  # by the guard
                if self._last is not None:
                    self._last.sequence = sequence_of(raw)
                break
            await self._call.write(answer.result())
            self._flights.popleft()
            self._size -= len(raw)
            self._room.set()
        if self._last is not None:
            await self._call.write(self._last)
            # Ending the call breaks the client's next write, and in some clients drops what it has not read yet.
            await asyncio.wait((reader,), timeout=PATIENCE)

    async def _is_pending(self) -> bool:
        """Wait for a flight; False if there will be none."""
        while not self._flights and not self._over:
            self._arrived.clear()
            await self._arrived.wait()
        return bool(self._flights)

    async def _guard(self, writer: asyncio.Task[None]) -> None:
        """End the stream after its key: requests under way may still be answered, then a refusal is the last answer."""
        self._end(await self._invalid(), 0)
        await asyncio.sleep(PATIENCE)
        for flight in self._flights:
            flight.answer.cancel()
        await asyncio.sleep(PATIENCE)
        writer.cancel()

    async def _invalid(self) -> Refused:
        while True:
            await asyncio.sleep(CHECK_EVERY)
            try:
                self._check()
            except Refused as refused:
                if not refused.retryable:  # keys that are not known just now are no reason to end a stream
                    return refused
