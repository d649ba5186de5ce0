"""OTLP over HTTP: `POST /v1/traces`, and the paths that say that only traces are accepted."""

from collections.abc import Mapping
from functools import partial
from typing import Final

import msgspec
from aiohttp import hdrs, web

from server.errors import Refused
from server.http_api.connections import Connection
from server.http_api.gate import full
from server.http_api.request_bodies import expect_later, inflated, read_body
from server.ingest.inflate import encoding_of
from server.otlp import export_responses
from server.otlp.span_export import ExportAnswer, failed, soon
from server.otlp.spans import Encoding
from server.services import Services, secret_of
from server.status import API_HEADERS, POSITION, TABLE, error_members, grpc_status, http_headers
from server.tenancy.keys import Key

TRACES: Final = "/v1/traces"
OTHERS: Final = {"/v1/metrics": export_responses.no_metrics, "/v1/logs": export_responses.no_logs}
_PATHS: Final = frozenset({TRACES, *OTHERS})


def add_routes(app: web.Application, services: Services) -> None:
    """Serve exports. `GET` of the same paths are reads, or nothing."""
    app.router.add_route("POST", TRACES, partial(_export, services), expect_handler=expect_later)
    for path in OTHERS:
        app.router.add_route("POST", path, _not_here, expect_handler=expect_later)


def is_export(request: web.Request) -> bool:
    """Whether errors of a request are answered as OTLP has them."""
    return request.method == hdrs.METH_POST and request.path in _PATHS


def status_response(
    request: web.Request, refused: Refused, status: int | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """The answer to a refused export: `google.rpc.Status` in the request's encoding. A fault of the server is 503;
    `status` is another one that HTTP itself defines."""
    found = soon(failed() if refused.reason == "internal" else refused)
    encoding: Encoding = export_responses.CONTENT_TYPES.get(request.content_type, "json")
    every = {**API_HEADERS, **http_headers(found), **(headers or {})}
    if found.reason == "unsupported_type":
        every["Accept"] = ", ".join(export_responses.CONTENT_TYPES)
    message = grpc_status(found)
    if encoding == "protobuf":
        body = message.SerializeToString()
    else:
        body = msgspec.json.encode(
            {"code": message.code, "message": found.message, **error_members(found), **found.details}
        )
    code = TABLE[found.reason].http if status is None or refused.reason == "internal" else status
    return web.Response(body=body, status=code, headers=every, content_type=export_responses.content_type_of(encoding))


async def _not_here(request: web.Request) -> web.Response:
    return status_response(request, OTHERS[request.path]())


async def _export(services: Services, request: web.Request) -> web.Response:
    try:
        secret = secret_of(request.headers.get("x-api-key"), request.headers.get(hdrs.AUTHORIZATION))
        key = services.authenticate(secret, "ingest")
    except Refused as refused:
        services.intake.meters.refused("otlp", refused)
        raise
    try:
        outcome: ExportAnswer | Refused = await _accept(services, request, key)
    except Refused as refused:
        outcome = refused.with_traceback(None)  # its frames would keep the body while this waits
        outcome.__context__ = None
    if isinstance(outcome, Refused):
        services.intake.meters.refused("otlp", outcome)
        await services.throttle.pace(key.id, outcome)
        response = status_response(request, outcome)
    else:
        encoding = export_responses.CONTENT_TYPES[request.content_type]
        response = web.Response(
            body=export_responses.body_of(outcome, encoding),
            headers={**API_HEADERS, POSITION: outcome.position},
            content_type=request.content_type,
        )
    response.headers.update(services.intake.limits(key))
    return response


async def _accept(services: Services, request: web.Request, key: Key) -> ExportAnswer:
    """Take the spans in the request's body. Raises `Refused`, before the body is read where that is known by then, and
    `ConnectionError` if the client went away."""
    encoding = export_responses.CONTENT_TYPES.get(request.content_type)
    if encoding is None:
        raise Refused("unsupported_type", f"Content-Type must be {' or '.join(export_responses.CONTENT_TYPES)}")
    coding = encoding_of(request.headers.get(hdrs.CONTENT_ENCODING, ""))
    if isinstance(request.protocol, Connection) and request.protocol.is_refused:
        raise full()
    with services.bodies.hold(key.organization, key.id) as hold:
        body = await inflated(await read_body(request, hold), coding, hold)
        return await services.otlp.accept(key, body, encoding, hold.reserve)
