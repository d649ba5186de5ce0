"""Events as a file: `GET /v1/export`.

A download that breaks off ends with a reset of the connection, so that no client takes it for a whole one.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

import structlog
from aiohttp import hdrs, web

from server.errors import Refused
from server.explore.params import parse_export
from server.explore.questions import ExportFormat
from server.http_api.explore_requests import CHECK_EVERY, inquiry_of, is_gone, reset, secret_in, while_connected
from server.services import Services
from server.status import API_HEADERS, NDJSON

ROWS: Final = "x-rows-expected"
"""The header with the number of events of a whole download."""
CONTENT_TYPES: Final[Mapping[ExportFormat, str]] = {
    "csv": "text/csv; charset=utf-8; header=present",
    "parquet": "application/vnd.apache.parquet",
    "ndjson": NDJSON,
}

log = structlog.get_logger(__name__)


async def download_events(services: Services, request: web.Request) -> web.StreamResponse:
    """Answer with a file; a HEAD only with its headers. Raises `Refused` only before the first byte."""
    secret = secret_in(request)
    question = parse_export(inquiry_of(services, request))
    download = await while_connected(request, services.explorer.stream(question))
    headers = {
        **API_HEADERS,
        hdrs.CONTENT_TYPE: CONTENT_TYPES[question.format],
        hdrs.CONTENT_DISPOSITION: f'attachment; filename="spendstream-events.{question.format}"',
    }
    if download.rows is not None:
        headers[ROWS] = str(download.rows)
    response = web.StreamResponse(headers=headers)
    response.enable_chunked_encoding() if request.version >= (1, 1) else response.force_close()
    async with aclosing(download.chunks) as chunks:
        if request.method == hdrs.METH_HEAD:
            return response
        try:
            await _send(services, secret, request, response, chunks)
        except BaseException as error:
            reset(request)
            if isinstance(error, Refused):
                log.warning("export_broken", project=question.project, reason=error.reason, error=error.message)
            elif not isinstance(error, ConnectionError):
                raise
    return response


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
