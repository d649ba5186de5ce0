"""The API process's side of the query process: `Explorer` over its Unix socket."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from server.errors import Refused
from server.explore import wire
from server.explore.explorer import Download
from server.explore.questions import Question, StatusQuestion
from server.telemetry.store_metrics import StoreStatus

CONNECT_PATIENCE: Final = 1.0
"""Seconds to wait for a query process that is just being started again."""
PAUSE: Final = 0.05
"""Seconds between two tries to connect."""
SILENCE: Final = 10.0
"""Seconds without a sign of life after which the query process is held to hang."""
RETRY_AFTER: Final = 1
"""Seconds after which a query process that is away may be back."""
STATUS_PATIENCE: Final = 2.0
"""Seconds to wait for the status of the store."""


class QueryClient:
    """`Explorer` that asks the query process of a data directory; a connection for each question."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def check(self) -> None:
        """Any question may be asked."""

    async def ask(self, question: Question) -> bytes:
        """See `Explorer`."""
        pieces = []
        async with self._connected(question) as (reader, _):
            while not isinstance(frame := await _next(reader), wire.End):
                if isinstance(frame, wire.Chunk):
                    pieces.append(frame.data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def status(self) -> StoreStatus | None:
        """Return how far the store is; None: nobody knows it just now."""
        try:
            async with asyncio.timeout(STATUS_PATIENCE):
                return msgspec.json.decode(await self.ask(StatusQuestion(project="")), type=StoreStatus)
        except (Refused, TimeoutError):
            return None

    async def stream(self, question: Question) -> Download:
        """See `Explorer`."""
        chunks = self._stream(question)
        try:
            head = await anext(chunks)
        except BaseException:
            await chunks.aclose()
            raise
        assert isinstance(head, wire.AnswerHead)
        return Download(_data(chunks), head.rows)

    async def _stream(self, question: Question) -> AsyncGenerator[wire.AnswerHead | bytes, None]:
        """Yield the head and the pieces of an answer. Raises `Refused` where it breaks off."""
        async with self._connected(question) as (reader, _):
            while not isinstance(frame := await _next(reader), wire.End):
                if isinstance(frame, wire.AnswerHead):
                    yield frame
                elif isinstance(frame, wire.Chunk):
                    yield frame.data

    @asynccontextmanager
    async def _connected(self, question: Question) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Ask a question on a connection of its own, which is closed at the end of the block."""
        reader, writer = await self._connect()
        try:
            writer.write(wire.pack_question(question))
            yield reader, writer
        except ConnectionError as error:
            raise _away() from error
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        deadline = time.monotonic() + CONNECT_PATIENCE
        while True:
            try:
                with wire.SocketAddress(self._data_dir) as path:
                    return await asyncio.open_unix_connection(path)
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise _away() from error
            await asyncio.sleep(PAUSE)


async def _data(chunks: AsyncGenerator[wire.AnswerHead | bytes, None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            if isinstance(chunk, bytes):
                yield chunk


async def _next(reader: asyncio.StreamReader) -> wire.Frame:
    """Return the next frame but for signs of life. Raises `Refused` and `ConnectionError`."""
    try:
        async with asyncio.timeout(SILENCE) as patience:
            while isinstance(frame := await wire.read_frame(reader), wire.Alive):
                patience.reschedule(asyncio.get_running_loop().time() + SILENCE)
    except TimeoutError:
        raise ConnectionResetError("the query process does not answer") from None
    if isinstance(frame, wire.Refusal):
        raise frame.refused()
    return frame


def _away() -> Refused:
    return Refused(
        "unavailable", "The process that answers questions about events is being started again", retry_after=RETRY_AFTER
    )
