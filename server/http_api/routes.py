"""The routes of the HTTP API: turn requests into `Batch`es and parameters, results and `Refused` into responses."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError
from prometheus_client import CollectorRegistry

from processor import tracing
from processor.core.events import ndjson
from processor.core.events.event import Handling
from processor.structured_log import structlog
from server.alerts.budget_json import budget_list
from server.errors import Refused
from server.http_api import admin, docs_page, explore_routes, otlp_routes, static_files
from server.http_api.connections import Connection, Runner, too_many_connections
from server.http_api.fast_path import FastPath, body_of
from server.http_api.gate import Gate, full
from server.http_api.otlp_routes import is_export
from server.http_api.request_bodies import expect_later, inflated, read_body
from server.http_api.responses import error_response, json_response, protocol_error
from server.http_api.user_stream import stream_users
from server.ingest import prefer
from server.ingest.batch import Batch, Receipt
from server.ingest.inflate import encoding_of, kept
from server.ingest.intake import MAX_EVENTS
from server.reads import read_json
from server.reads.params import check_names
from server.services import Services, secret_of
from server.status import API_HEADERS, NDJSON, POSITION, TABLE, UNKNOWN_TRANSFER_CODING, error_members, reason_of
from server.telemetry import access_log, exposition, request_traces
from server.telemetry.exposition import Gather
from server.tenancy.admin_service import AdminService
from server.tenancy.keys import Key

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

API_KEY: Final = "x-api-key"
USERS: Final = "/v1/users/"
NAMELESS: Final = (
    "This path names no user. The ids . and .. cannot stand in a path: browsers, curl and proxies resolve them; "
    "ask for GET /v1/users/?user_id=ID"
)
PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths that are answered even while there are too many connections."""

GATE: Final = web.AppKey("gate", Gate)
FAST_PATH: Final = web.AppKey("fast_path", FastPath)

log = structlog.get_logger(__name__)


def create_app(
    services: Services,
    desk: AdminService | None = None,
    registry: CollectorRegistry | None = None,
    gather: Gather | None = None,
) -> web.Application:
    """Return the application, to be served by `make_runner`. A `desk` adds the admin API, a `registry` the metrics;
    `gather` turns that registry into the one of all API processes."""
    routes = _Routes(services)
    outer = [access_log.log_requests] if services.access_log else []
    if tracing.is_on():
        outer.append(request_traces.trace_requests)
    app = web.Application(middlewares=[*outer, _answer_errors, _guard_keys(services)])
    # With an access log or traces every batch is a request that they see: no fast path, and no refusal without one.
    is_watched = services.access_log or tracing.is_on()
    on_refused = None if is_watched else partial(services.intake.meters.refused, "http")
    app[GATE] = Gate(services.directory.owner_of, services.intake.pending, on_refused)
    if not is_watched:
        app[FAST_PATH] = FastPath(services)
    app.router.add_route("POST", "/v1/ingest", routes.ingest, expect_handler=expect_later)
    app.router.add_get("/v1/users", routes.list_users)
    app.router.add_get(USERS, routes.get_user_by_parameter)
    app.router.add_get(USERS + r"{user_id:[\s\S]+}", routes.get_user)
    app.router.add_get("/v1/costs", routes.get_costs)
    app.router.add_get("/v1/stream/users", partial(stream_users, services), allow_head=False)
    app.router.add_get("/v1/quota", routes.get_quota)
    app.router.add_get("/v1/budgets", routes.get_budgets)
    explore_routes.add_routes(app, services)
    otlp_routes.add_routes(app, services)
    app.router.add_get("/healthz", routes.healthz)
    app.router.add_get("/readyz", routes.readyz)
    static_files.add_routes(app)
    docs_page.add_routes(app)
    if registry is not None:
        exposition.add_routes(app, registry, gather)
    if desk is not None:
        admin.add_routes(app, services, desk)
    return app


def make_runner(app: web.Application, **bounds: Any) -> Runner:
    """The runner the application needs; `bounds` are those of `Runner`."""
    return Runner(app, _server_logger(), app[GATE], app.get(FAST_PATH), **bounds)


class _Routes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def ingest(self, request: web.Request) -> web.Response:
        services = self._services
        try:
            key = services.authenticate(request.headers.get(API_KEY), "ingest")
        except Refused as refused:
            services.intake.meters.refused("http", refused)
            raise
        preferences = request.headers.getall("Prefer", ())
        wanted = prefer.handling(preferences) if preferences else None
        try:
            outcome: Receipt | Refused = await self._accept(request, key, services.handling_of(key, wanted))
        except Refused as refused:
            outcome = refused.with_traceback(None)  # its frames would keep the body while this waits
            outcome.__context__ = None
        if isinstance(outcome, Refused):
            services.intake.meters.refused("http", outcome)
            await services.throttle.pace(key.id, outcome)
            response = error_response(outcome)
        else:
            headers = {**API_HEADERS, POSITION: outcome.position}
            body, status = body_of(outcome), HTTPStatus.ACCEPTED
            response = web.Response(body=body, status=status, headers=headers, content_type="application/json")
        response.headers.update(services.intake.limits(key))
        if wanted:
            response.headers["Preference-Applied"] = f"handling={wanted}"
        return response

    async def _accept(self, request: web.Request, key: Key, handling: Handling) -> Receipt:
        """Take the batch in the request's body. Raises `Refused`, before the body is read where that is known by then,
        and `ConnectionError` if the client went away."""
        if request.content_type != NDJSON:
            raise Refused("unsupported_type", f"Content-Type must be {NDJSON}")
        encoding = encoding_of(request.headers.get(hdrs.CONTENT_ENCODING, ""))
        if isinstance(request.protocol, Connection) and request.protocol.is_refused:
            raise full()
        with self._services.bodies.hold(key.organization, key.id) as hold:
            sent = await read_body(request, hold)
            text = await inflated(sent, encoding, hold)
            records, lines = ndjson.split(text, MAX_EVENTS)
            body = kept(sent, encoding, text)
            del sent, text
            return await self._services.intake.accept(key, Batch("http", "json", records, lines, handling, body))

    async def list_users(self, request: web.Request) -> web.Response:
        key, params, after = self._read(request)
        return json_response(read_json.user_page(await self._services.reads.list_users(key, params, after)))

    async def get_user(self, request: web.Request) -> web.Response:
        key, params, after = self._read(request)
        return json_response(
            read_json.user_detail(await self._services.reads.get_user(key, _user_id(request), params, after))
        )

    async def get_user_by_parameter(self, request: web.Request) -> web.Response:
        """`GET /v1/users/?user_id=ID`: the same answer, for the ids that clients and proxies resolve in a path."""
        key, params, after = self._read(request)
        given = [params[name] for name in ("user_id", "userId") if name in params]
        if len(given) != 1 or not given[0]:
            raise Refused("not_found", NAMELESS)
        others = {name: value for name, value in params.items() if name not in {"user_id", "userId"}}
        return json_response(read_json.user_detail(await self._services.reads.get_user(key, given[0], others, after)))

    async def get_costs(self, request: web.Request) -> web.Response:
        key, params, after = self._read(request)
        return json_response(read_json.costs(await self._services.reads.get_costs(key, params, after)))

    async def get_quota(self, request: web.Request) -> web.Response:
        key, params, after = self._read(request)
        check_names(params, ("projectId",), key.project)
        return json_response(read_json.quota(await self._services.reads.get_quota(key, after)))

    async def get_budgets(self, request: web.Request) -> web.Response:
        key, params, after = self._read(request)
        check_names(params, ("projectId",), key.project)
        return json_response(budget_list(await self._services.reads.get_budgets(key, after)))

    async def healthz(self, _: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        reasons, warnings = list(self._services.health.unready()), list(self._services.health.warnings())
        told: dict[str, Any] = {"warnings": warnings} if warnings else {}
        if not reasons:
            return json_response({"status": "ready", **told})
        refused = Refused("unavailable", f"Not ready: {'; '.join(reasons)}")
        body = {"status": "unready", **error_members(refused), "reasons": reasons, **told}
        return json_response(body, TABLE[refused.reason].http)

    def _read(self, request: web.Request) -> tuple[Key, Mapping[str, str], str | None]:
        """The key of a read, its parameters, the first of each name, and the position it waits for."""
        secret = secret_of(request.headers.get(API_KEY), request.headers.get(hdrs.AUTHORIZATION))
        key = self._services.authenticate(secret, "read")
        params: dict[str, str] = {}
        for name, value in request.query.items():
            params.setdefault(name, value)
        return key, params, params.pop("after", None)


# --- requests --------------------------------------------------------------------------------------------------------


def _user_id(request: web.Request) -> str:
    """Return what follows `/v1/users/`, decoded once; the router's match would leave `%2F` undecoded."""
    text = unquote(request.rel_url.raw_path.removeprefix(USERS))
    return text.encode(errors="replace").decode()


def _unknown_coding(request: web.Request) -> str | None:
    """Return the transfer coding that is applied to the body besides `chunked`, if there is one (RFC 9112, 6.1)."""
    values = ",".join(request.headers.getall(hdrs.TRANSFER_ENCODING))
    codings = [each.strip().lower().partition(";")[0].rstrip() for each in values.split(",")]
    return next((each for each in codings if each not in ("chunked", "")), None)


# --- errors -----------------------------------------------------------------------------------------------------------


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as JSON, or as OTLP has it, and log only the unexpected one."""
    try:
        if hdrs.TRANSFER_ENCODING in request.headers and (coding := _unknown_coding(request)):
            message = f"Transfer-Encoding: {coding} is not supported, only chunked; pack the body by Content-Encoding"
            return _protocol_error(request, UNKNOWN_TRANSFER_CODING, message)
        connection = request.protocol
        if isinstance(connection, Connection) and connection.is_probe_only:
            response = await handler(request) if request.path in PROBES else _error(request, too_many_connections())
            response.force_close()
            return response
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is answered
        return _answer_to(request, error)


def _answer_to(request: web.Request, error: Exception) -> web.Response:
    """The answer to a request that ended with an error."""
    if isinstance(error, Refused):
        return _error(request, error)
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.method} is not allowed here, only {allowed}"
        return error_response(Refused("method_not_allowed", message), {"Allow": allowed})
    if isinstance(error, web.HTTPNotFound):
        return error_response(Refused("not_found", "There is nothing at this path; GET /openapi.json lists the paths"))
    if isinstance(error, web.HTTPException):
        return _protocol_error(request, error.status, error.reason)
    if isinstance(error, ConnectionError):  # the client went away: nobody reads this
        return error_response(Refused("bad_request", "The client closed the connection"))
    log.error("http_request_failed", method=request.method, path=request.path, exc_info=error)
    return _error(request, Refused("internal", "Internal server error"))


def _error(request: web.Request, refused: Refused) -> web.Response:
    return otlp_routes.status_response(request, refused) if is_export(request) else error_response(refused)


def _protocol_error(request: web.Request, status: int, message: str) -> web.Response:
    if is_export(request):
        return otlp_routes.status_response(request, Refused(reason_of(status), message), status)
    return protocol_error(status, message)


def _guard_keys(services: Services) -> Any:
    """Give the directory of a process that stood still a moment to catch up before keys are looked at, and let who
    tries keys that there are not wait for the answers, by the address."""

    @web.middleware
    async def guard_keys(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not services.trust.is_fresh and request.path.startswith("/v1/"):
            await services.trust.settle()
        try:
            return await handler(request)
        except Refused as refused:
            if refused.reason == "unauthenticated":
                await services.throttle.pace(request.remote or "", refused)
            raise

    return guard_keys


class _ClientFaults(logging.Filter):
    """Keeps faults of clients out of the log: connections that end, requests that are not HTTP."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, ConnectionError | HttpProcessingError | RequestPayloadError)


def _server_logger() -> logging.Logger:
    logger = logging.getLogger("spendstream.http")
    if not logger.filters:
        logger.addFilter(_ClientFaults())
    return logger
