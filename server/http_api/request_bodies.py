"""Bodies of requests: read and inflated with bounds on their size, their memory and their time."""

import asyncio
from typing import Final

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.web_protocol import RequestPayloadError

from processor.core.events.content_coding import MAX_BODY
from server.errors import Refused
from server.ingest.inflate import Encoding, inflate, refuse_compressed, too_large
from server.limits.memory_budget import Hold

BODY_TIMEOUT: Final = 120.0
"""Seconds in which a body has to arrive."""
INLINE_IN: Final = 256 * 1024
INLINE_OUT: Final = 1024 * 1024
"""Bytes in and out up to which a body is inflated on the event loop: a thread would cost more."""


async def expect_later(_: web.Request) -> None:
    """Send no 100 Continue yet: `read_body` does, once the request has been checked."""


async def read_body(request: web.Request, hold: Hold) -> bytes:
    """The body as sent. Raises `Refused`, and `ConnectionError` if the client went away."""
    if (request.content_length or 0) > MAX_BODY:
        raise too_large()
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > MAX_BODY:
                    raise too_large()
                hold.reserve(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise Refused("bad_batch", f"The body did not arrive within {BODY_TIMEOUT:.0f} seconds") from None
    except RequestPayloadError:
        raise Refused("bad_batch", "The body is cut off or not well framed") from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def inflated(body: bytes, encoding: Encoding, hold: Hold) -> bytes:
    """The body itself; one that is large, or turns out to be, is inflated on a thread."""
    if encoding == "identity":
        refuse_compressed(body)
        return body
    if len(body) <= INLINE_IN:
        try:
            return inflate(body, encoding, INLINE_OUT)
        except Refused as refused:
            if refused.reason != "too_large":
                raise
    hold.reserve(MAX_BODY)
    return await asyncio.to_thread(inflate, body, encoding)
