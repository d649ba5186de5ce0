"""One call of `IngestStream`: many batches on their way at once, answered in order, for as long as the key is valid.

    reads ──> [ flight | flight | ... ] ──> writes        a flight is a request and its answer to come

The window is what bounds memory and makes the flow control real: it stays full until its first answer was written, and
while it is full nothing is read, so the sender's own window fills up. Writing waits for a sender that does not read.
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
"""Requests of a stream on their way at once: what group commit has to group."""
WINDOW_BYTES: Final = 4 * 1024 * 1024
"""The same in bytes; the request that fills it may go beyond."""
CHECK_EVERY: Final = 0.4
"""Seconds between two looks at the key of an idle stream."""
PATIENCE: Final = 0.2
"""Seconds that batches on their way get after the key's end, and the sender to read the last word, or any."""


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
        """Returns when the sender has ended and everything is answered, or its key is not valid any more."""
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
                    continue  # too late
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
        """Take nothing more; `refused` is the last word."""
        if self._last is None:
            self._last = messages.refusal(sequence, refused)
        self._over = True
        self._arrived.set()

    async def _write(self, reader: asyncio.Task[None]) -> None:
        while await self._is_pending():
            raw, answer = self._flights[0]
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
            # The end would break the sender's next write, and with some clients what it has not read yet.
            await asyncio.wait((reader,), timeout=PATIENCE)

    async def _is_pending(self) -> bool:
        """Wait for a flight; False if there will be none."""
        while not self._flights and not self._over:
            self._arrived.clear()
            await self._arrived.wait()
        return bool(self._flights)

    async def _guard(self, writer: asyncio.Task[None]) -> None:
        """End the stream soon after its key: what is on its way may still arrive, then one refusal is the last word."""
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
                if not refused.retryable:  # not known just now is no reason to end a stream
                    return refused
