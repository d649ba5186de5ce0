"""Connections that a test opens by hand: all are closed, and gone, when its block ends, however it ends.

What a failed test leaves open is found by a later one, whose failure it then is.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from tests.support.patience import PATIENCE


class Connections:
    """Opens connections, and keeps them until `close`."""

    def __init__(self) -> None:
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self, host: str, port: int, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """`asyncio.open_connection`."""
        reader, writer = await asyncio.open_connection(host, port, **options)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        """Close all of them, also those that wait for a peer which does not read; returns when none is left."""
        for writer in self._writers:
            writer.transport.abort()
        async with asyncio.timeout(PATIENCE):
            for writer in self._writers:
                with contextlib.suppress(OSError):
                    await writer.wait_closed()


@contextlib.asynccontextmanager
async def connections() -> AsyncIterator[Connections]:
    """Connections for the length of the block."""
    made = Connections()
    try:
        yield made
    finally:
        await made.close()
