"""Answers of server-sent events (WHATWG HTML, section 9.2), for as long as their client listens."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any, Final

from aiohttp import web

from server.errors import Refused
from server.status import API_HEADERS, http_body

HEADERS: Final = {
    **API_HEADERS,
    "Content-Type": "text/event-stream",
    "X-Accel-Buffering": "no",  # proxies that know the header pass events on without buffering
}
HELLO: Final = b": spendstream\nretry: 1000\n\n"
HEARTBEAT: Final = b": heartbeat\n\n"


async def send_events(
    request: web.Request, frames: AsyncGenerator[Any, None], written: Callable[[Any], bytes]
) -> web.StreamResponse:
    """Answer with each of `frames` as `written`, and with a heartbeat for None, until they end or the client has gone.

    A `Refused` that ends them is the last event, `error`.
    """
    response = web.StreamResponse(headers=HEADERS)
    response.enable_chunked_encoding() if request.version >= (1, 1) else response.force_close()
    try:
        await response.prepare(request)
        await response.write(HELLO)
        async with aclosing(frames):
            async for frame in frames:
                await response.write(HEARTBEAT if frame is None else written(frame))
    except Refused as refused:
        with suppress(ConnectionError):
            await response.write(b"event: error\ndata: %b\n\n" % http_body(refused))
    except ConnectionError:  # the client went away
        return response
    except asyncio.CancelledError:
        if request.transport is not None:
            request.transport.abort()  # the client does not read: do not wait until it has
        raise
    await response.write_eof()
    return response
