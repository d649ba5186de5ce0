"""Responses of the HTTP API: answers and errors, as JSON with the headers of every answer."""

from collections.abc import Mapping

from aiohttp import web

from server.errors import Refused
from server.reads import read_json
from server.status import API_HEADERS, TABLE, http_body, http_headers, reason_of


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return `body` as JSON; `headers` are added to those of every answer of the API."""
    every = API_HEADERS if headers is None else {**API_HEADERS, **headers}
    return web.Response(body=read_json.encode(body), status=status, headers=every, content_type="application/json")


def error_response(refused: Refused, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return the answer to a refused request, with the status and the headers of its reason."""
    every = {**API_HEADERS, **http_headers(refused), **(headers or {})}
    status = TABLE[refused.reason].http
    return web.Response(body=http_body(refused), status=status, headers=every, content_type="application/json")


def protocol_error(status: int, message: str) -> web.Response:
    """Return an error whose `status` HTTP itself defines, with the reason nearest to it and none of its headers."""
    body = http_body(Refused(reason_of(status), message))
    return web.Response(body=body, status=status, headers=API_HEADERS, content_type="application/json")
