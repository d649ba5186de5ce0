"""Answers of any size, passed on in pieces: this process never has more of one in memory than its client is ready for.

What breaks off ends with a reset of the connection, so that no client takes a part for the whole.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from aiohttp import hdrs, web

from processor.structured_log import structlog
from server.errors import Refused
from server.explore.explorer import Download
from server.http_api.explore_requests import CHECK_EVERY, is_gone, reset, secret_in
from server.services import Services
from server.status import API_HEADERS

MAX_WHOLE: Final = 512 * 1024
"""Bytes up to which an answer is sent as a whole, with its length."""

log = structlog.get_logger(__name__)


async def answer_json(services: Services, request: web.Request, download: Download) -> web.StreamResponse:
    """Answer with the JSON of a download. Raises `Refused` only before the first byte."""
    async with aclosing(download.chunks) as chunks:
        found: list[bytes] = []
        async for chunk in chunks:
            found.append(chunk)
            if sum(map(len, found)) > MAX_WHOLE:
                break
        else:
            return web.Response(body=b"".join(found), headers=API_HEADERS, content_type="application/json")
        response = web.StreamResponse(headers={**API_HEADERS, hdrs.CONTENT_TYPE: "application/json"})
        response.enable_chunked_encoding() if request.version >= (1, 1) else response.force_close()
        if request.method != hdrs.METH_HEAD:
            await send_chunks(services, request, response, _joined(found, chunks))
        return response


async def _joined(first: list[bytes], others: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    while first:
        yield first.pop(0)
    async for chunk in others:
        yield chunk


async def send_chunks(
    services: Services, request: web.Request, response: web.StreamResponse, chunks: AsyncGenerator[bytes, None]
) -> None:
    """Send all chunks; where that breaks off, or the request's key ends, reset the connection."""
    try:
        await _send(services, secret_in(request), request, response, chunks)
    except BaseException as error:
        reset(request)
        if isinstance(error, Refused):
            log.warning("answer_broken", path=request.path, reason=error.reason, error=error.message)
        elif not isinstance(error, ConnectionError):
            raise


async def _send(
    services: Services,
    secret: str | None,
    request: web.Request,
    response: web.StreamResponse,
    chunks: AsyncGenerator[bytes, None],
) -> None:
    """Send all chunks. Raises `Refused` and `ConnectionError` where that breaks off."""

    async def send() -> None:
        await response.prepare(request)
        async for chunk in chunks:
            await response.write(chunk)
        await response.write_eof()

    sending = asyncio.ensure_future(send())
    try:
        while not (await asyncio.wait((sending,), timeout=CHECK_EVERY))[0]:
            if is_gone(request):
                raise ConnectionResetError("The client has left")
            _check_key(services, secret)
    finally:
        sending.cancel()
        await asyncio.wait((sending,))
    sending.result()


def _check_key(services: Services, secret: str | None) -> None:
    """Raise `Refused` once the key has ended; keys that are not known just now are no reason to break off."""
    try:
        services.authenticate(secret, "read")
    except Refused as refused:
        if not refused.retryable:
            raise
