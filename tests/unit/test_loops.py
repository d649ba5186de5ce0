"""No test leaves a connection to a later one (tests.support.loops)."""

import asyncio
import gc
import socket
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that accepts, and reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_what_was_closed_is_gone_with_its_loop_also_if_nobody_reads(port: int) -> None:
    async def write() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * 50_000_000)
        writer.close()

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        asyncio.run(write())
        gc.collect()
    assert [each.message for each in found] == []


def test_what_is_left_open_is_the_failure_of_who_left_it(port: int) -> None:
    kept = []

    async def leave() -> None:
        kept.append(await asyncio.open_connection("127.0.0.1", port))

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with pytest.raises(AssertionError, match="left open: <_SelectorSocketTransport"):
            asyncio.run(leave())
        kept.clear()
        gc.collect()
    assert [each.message for each in found] == []
