"""Events as a file: `GET /v1/export`."""

from collections.abc import Mapping
from contextlib import aclosing
from typing import Final

from aiohttp import hdrs, web

from server.explore.question_params import parse_export
from server.explore.questions import ExportFormat
from server.http_api.chunked_answers import send_chunks
from server.http_api.explore_requests import begin_answer, inquiry_of
from server.services import Services
from server.status import API_HEADERS, NDJSON

ROWS: Final = "x-rows-expected"
"""The header with the number of events of a whole download."""
CONTENT_TYPES: Final[Mapping[ExportFormat, str]] = {
    "csv": "text/csv; charset=utf-8; header=present",
    "parquet": "application/vnd.apache.parquet",
    "ndjson": NDJSON,
}


async def download_events(services: Services, request: web.Request) -> web.StreamResponse:
    """Answer with a file; a HEAD only with its headers. Raises `Refused` only before the first byte."""
    question = parse_export(inquiry_of(services, request))
    download = await begin_answer(services, request, question)
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
        await send_chunks(services, request, response, chunks)
    return response
