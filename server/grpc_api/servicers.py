"""The services of the gRPC API: turn messages into `Batch`es and read parameters, results into messages and statuses.

Requests arrive as raw bytes and are parsed here, so that a malformed one gets an answer with a reason.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, NamedTuple, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_status import rpc_status
from msgspec import structs

from processor import tracing
from processor.core.events.content_coding import MAX_BODY
from processor.core.events.event import Handling
from processor.structured_log import structlog
from protos.spendstream.v1 import ingest_pb2, usage_pb2
from server.errors import Refused
from server.explore.question_params import Inquiry, parse_trace
from server.grpc_api import messages, otlp_servicer, trace_messages
from server.grpc_api.call_metadata import Context, message_of, metadata_of, pace_stranger
from server.grpc_api.health_servicer import HealthService, Reflection, Strangers
from server.grpc_api.ingest_stream import IngestStream
from server.grpc_api.otlp_servicer import NotServed, OtlpServicer, not_served
from server.grpc_api.watch import watch_users
from server.ingest import prefer, protobuf
from server.ingest.batch import Batch, Incoming, Receipt
from server.ingest.inflate import too_large
from server.ingest.intake import MAX_EVENTS
from server.limits.call_shares import CallShares
from server.limits.connection_watch import MAX_GRPC, ConnectionWatch
from server.limits.memory_budget import Hold
from server.limits.refusal_pacing import questions_of
from server.otlp.export_responses import no_logs, no_metrics
from server.services import Services, secret_of
from server.status import grpc_status
from server.telemetry import access_log, request_traces
from server.tenancy.keys import Key, Scope

INGEST: Final = "spendstream.v1.IngestService"
USAGE: Final = "spendstream.v1.UsageService"

MAX_MESSAGE: Final = 21 * 1024 * 1024 + 64 * 1024
"""Bytes of a message that the transport accepts: above our own limit, so that exceeding ours gets an answer of ours."""
DETAILS_ROOM: Final = 3 * 1024
"""Bytes of field violations in a call's status: it is sent in metadata, which clients limit to 8 KiB."""

MIN_PING_INTERVAL: Final = 5_000
"""Least milliseconds between two pings of a client to which nothing is sent meanwhile. gRPC's default is five minutes.

Clients ping every 10 s at most (grpc-go and grpc-java raise lower values to that). It is half of that because pings
sent 10 s apart may arrive closer together, and early pings are counted while a stream is quiet.
"""

OPTIONS: Final[list[tuple[str, int]]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),  # else pings between two calls may come every two hours only
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL),
    ("grpc.http2.max_ping_strikes", 2),  # so many pings may come too early; the next one ends the connection
    ("grpc.max_concurrent_streams", 512),  # of one connection; further calls wait in the client
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 32 * 1024),
]
MAX_CALLS: Final = 8192
"""Most calls under way at once, over all connections; a further one gets RESOURCE_EXHAUSTED."""

log = structlog.get_logger(__name__)


async def make_server(
    services: Services,
    *,
    bind: str,
    tls: grpc.ServerCredentials | None = None,
    share: bool = False,
    connections: ConnectionWatch | None = None,
) -> tuple[grpc.aio.Server, int]:
    """Return a server that is bound but not started, and its port, which other processes may also bind if `share`.

    It accepts at most the limit of `connections`, to which it reports its calls; that has to be run beside it. Raises
    `RuntimeError` if it cannot bind.
    """
    connections = connections or ConnectionWatch("grpc", MAX_GRPC)
    options = [
        *OPTIONS,
        ("grpc.so_reuseport", int(share)),  # else a taken port is an error, not a second server on it
        ("grpc.max_allowed_incoming_connections", connections.limit),  # a further one is closed when it is accepted
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_CALLS)
    _add_services(server, services, connections)
    _add_public_services(server, services, connections)
    return server, server.add_insecure_port(bind) if tls is None else server.add_secure_port(bind, tls)


def _add_services(server: grpc.aio.Server, services: Services, connections: ConnectionWatch) -> None:
    """Serve what takes a key."""
    shares = CallShares()
    ingest, usage, spans, around = (
        _Ingest(services, connections, shares),
        _Usage(services, connections, shares),
        OtlpServicer(services, connections, shares),
        _Around(services.access_log, connections),
    )
    exports = {
        otlp_servicer.TRACES: spans.Export,
        otlp_servicer.METRICS: not_served(no_metrics),
        otlp_servicer.LOGS: not_served(no_logs),
    }
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                INGEST, {"Ingest": _unary(ingest.Ingest, around), "IngestStream": _stream(ingest.IngestStream, around)}
            ),
            grpc.method_handlers_generic_handler(
                USAGE,
                {
                    "ListUsers": _unary(usage.ListUsers, around),
                    "GetUser": _unary(usage.GetUser, around),
                    "GetCosts": _unary(usage.GetCosts, around),
                    "GetQuota": _unary(usage.GetQuota, around),
                    "WatchUsers": _server_stream(usage.WatchUsers, around),
                    "GetTrace": _server_stream(usage.GetTrace, around),
                },
            ),
            *(
                grpc.method_handlers_generic_handler(name, {"Export": _unary(method, around)})
                for name, method in exports.items()
            ),
        )
    )


def _add_public_services(server: grpc.aio.Server, services: Services, connections: ConnectionWatch) -> None:
    """Serve what takes no key: health and reflection."""
    strangers = Strangers(connections)
    probes = HealthService(services.health, (INGEST, USAGE, otlp_servicer.TRACES), strangers)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(health.SERVICE_NAME, probes.handlers()),))
    reflected = Reflection((INGEST, USAGE, health.SERVICE_NAME, reflection.SERVICE_NAME), strangers)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, server)  # type: ignore[no-untyped-call]


_Response = ingest_pb2.IngestResponse
_Answer = Callable[[Key, bytes], Coroutine[Any, Any, _Response]]


class _Waiting(NamedTuple):
    """A request of a stream that waits for the turn of the loop to end."""

    incoming: Incoming
    raw: bytes
    hold: Hold
    answered: asyncio.Future[_Response]
    otherwise: _Answer


class _StreamKey:
    """The key of a stream's sender, found anew after each change of the directory."""

    def __init__(self, services: Services, metadata: dict[str, str]) -> None:
        self._services = services
        self._metadata = metadata
        self._key: Key | None = None
        self._changes = 0
        """The number of the directory's changes at which it was found."""

    def check(self) -> Key:
        """Return it while it is valid; raises `Refused` as `Services.authenticate` does."""
        services, key = self._services, self._key
        changes = services.directory.changes  # the number first: it changes after the keys
        if key is None or self._changes != changes or key.expires is not None:
            key = self._key = _authenticate(services, self._metadata, "ingest")
            self._changes = changes
        else:
            services.trust.check()
        return key


class _Ingest:
    def __init__(self, services: Services, connections: ConnectionWatch, shares: CallShares) -> None:
        self._services = services
        self._connections = connections
        self._shares = shares
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[_Response]] = set()

    async def Ingest(self, context: Context) -> ingest_pb2.IngestResponse:
        metadata = metadata_of(context)
        key = await self._sender(context, metadata)
        try:
            with self._shares.call(key.organization):
                sequence, receipt = await self._accept(key, await message_of(context), _preferred(metadata))
        except Refused as refused:
            self._services.intake.meters.refused("grpc", refused)
            await self._services.throttle.pace(key.id, refused)
            raise
        context.set_trailing_metadata((("x-ingest-position", receipt.position),))
        return messages.receipt(sequence, receipt)

    async def IngestStream(self, context: Context) -> None:
        metadata = metadata_of(context)
        preferred = _preferred(metadata)
        sender = await self._sender(context, metadata)

        async def answer(key: Key, raw: bytes) -> ingest_pb2.IngestResponse:
            try:
                return messages.receipt(*await self._accept(key, raw, preferred))
            except Refused as refused:
                self._services.intake.meters.refused("grpc", refused)
                await self._services.throttle.pace(key.id, refused)
                return messages.refusal(protobuf.sequence_of(raw), refused)
            except Exception:
                log.exception("grpc_batch_failed", method="IngestStream")
                return messages.failure(protobuf.sequence_of(raw), _INTERNAL)

        def start(key: Key, raw: bytes) -> asyncio.Future[ingest_pb2.IngestResponse]:
            return self._start(key, raw, self._services.handling_of(key, preferred), answer)

        try:
            with self._shares.call(sender.organization):
                return await IngestStream(context, _StreamKey(self._services, metadata).check, start).run()
        except Refused as refused:  # too many calls: a stream that goes on answers what it refuses
            self._services.intake.meters.refused("grpc", refused)
            await self._services.throttle.pace(sender.id, refused)
            raise

    def _start(self, key: Key, raw: bytes, handling: Handling, otherwise: _Answer) -> asyncio.Future[_Response]:
        """Begin to take a request of a stream, with those of other streams in this turn of the loop where nothing is
        unusual about it; `otherwise` takes the others, in a task of their own."""
        waiting = None if len(raw) > MAX_BODY or tracing.is_on() else self._open(key, raw, handling, otherwise)
        if waiting is None:
            return asyncio.create_task(otherwise(key, raw))
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        self._waiting.append(waiting)
        return waiting.answered

    def _open(self, key: Key, raw: bytes, handling: Handling, otherwise: _Answer) -> _Waiting | None:
        """The batch of a request, with how it is answered; None: something is unusual about it."""
        meters = self._services.intake.meters
        try:
            hold = self._services.bodies.hold(key.organization, key.id)
        except Refused:
            return None
        try:
            hold.reserve(len(raw))
            sequence, events = protobuf.parse(raw, MAX_EVENTS)
        except Exception:  # noqa: BLE001 - whatever it is, the other way has it again, and says so
            hold.close()
            return None
        answered: asyncio.Future[_Response] = asyncio.get_running_loop().create_future()

        def done(outcome: Receipt | Refused) -> None:
            hold.close()
            if isinstance(outcome, Refused):
                meters.refused("grpc", outcome)
            if answered.done():  # the sender has gone
                return
            if isinstance(outcome, Refused):
                answered.set_result(messages.refusal(sequence, outcome))
            else:
                answered.set_result(messages.receipt(sequence, outcome))

        batch = Batch("grpc", "protobuf", events, range(1, len(events) + 1), handling)
        return _Waiting(Incoming(key, batch, done), raw, hold, answered, otherwise)

    def _turn(self) -> None:
        waiting, self._waiting = self._waiting, []
        wanted = []
        for each in waiting:
            if each.answered.done():  # the stream has ended
                each.hold.close()
            else:
                wanted.append(each)
        taken = self._services.intake.take_together([each.incoming for each in wanted])
        for is_taken, each in zip(taken, wanted, strict=True):
            if not is_taken:
                each.hold.close()
                self._follow(asyncio.create_task(each.otherwise(each.incoming.key, each.raw)), each.answered)

    def _follow(self, task: asyncio.Task[_Response], answered: asyncio.Future[_Response]) -> None:
        """Have a request answered with what a task gives, and the task end if nobody wants that any more."""
        self._tasks.add(task)

        def ended(_: object) -> None:
            self._tasks.discard(task)
            if answered.done():
                return
            if task.cancelled():
                answered.cancel()
            else:
                answered.set_result(task.result())

        def given_up(_: object) -> None:
            if answered.cancelled():
                task.cancel()

        task.add_done_callback(ended)
        answered.add_done_callback(given_up)

    async def _sender(self, context: Context, metadata: dict[str, str]) -> Key:
        try:
            key = _authenticate(self._services, metadata, "ingest")
        except Refused as refused:
            self._services.intake.meters.refused("grpc", refused)
            await pace_stranger(self._services, context, refused)
            raise
        self._connections.know(context.peer())
        return key

    async def _accept(self, key: Key, raw: bytes, preferred: Handling | None) -> tuple[int, Receipt]:
        if len(raw) > MAX_BODY:
            raise too_large()
        with self._services.bodies.hold(key.organization, key.id) as hold:
            hold.reserve(len(raw))
            sequence, events = protobuf.parse(raw, MAX_EVENTS)
            lines = range(1, len(events) + 1)
            handling = self._services.handling_of(key, preferred)
            return sequence, await self._services.intake.accept(key, Batch("grpc", "protobuf", events, lines, handling))


class _Usage:
    def __init__(self, services: Services, connections: ConnectionWatch, shares: CallShares) -> None:
        self._services = services
        self._connections = connections
        self._shares = shares

    async def ListUsers(self, context: Context) -> usage_pb2.ListUsersResponse:
        async with self._reader(context) as (key, after):
            request = _parse(usage_pb2.ListUsersRequest, await message_of(context))
            return messages.user_page(await self._services.reads.list_users(key, _params(request), after))
        raise AssertionError

    async def GetUser(self, context: Context) -> usage_pb2.GetUserResponse:
        async with self._reader(context) as (key, after):
            request = _parse(usage_pb2.GetUserRequest, await message_of(context))
            detail = await self._services.reads.get_user(key, request.user_id, _params(request), after)
            return messages.user_detail(detail)
        raise AssertionError

    async def GetCosts(self, context: Context) -> usage_pb2.GetCostsResponse:
        async with self._reader(context) as (key, after):
            request = _parse(usage_pb2.GetCostsRequest, await message_of(context))
            return messages.costs(await self._services.reads.get_costs(key, _params(request), after))
        raise AssertionError

    async def GetQuota(self, context: Context) -> usage_pb2.GetQuotaResponse:
        async with self._reader(context) as (key, after):
            _parse(usage_pb2.GetQuotaRequest, await message_of(context))
            return messages.quota(await self._services.reads.get_quota(key, after))
        raise AssertionError

    async def WatchUsers(self, context: Context) -> None:
        services, metadata = self._services, metadata_of(context)
        async with self._reader(context) as (_, after):
            request = _parse(usage_pb2.WatchUsersRequest, await message_of(context))
            secret = secret_of(metadata.get("x-api-key"), metadata.get("authorization"))

            def check() -> Key:
                return services.authenticate(secret, "read")

            await watch_users(services.feed, request, secret, check, after, context)

    async def GetTrace(self, context: Context) -> None:
        async with self._reader(context) as (key, after):
            self._services.explorer.check()
            request = _parse(usage_pb2.GetTraceRequest, await message_of(context))
            await self._send_trace(context, key, request, after)

    async def _send_trace(
        self, context: Context, key: Key, request: usage_pb2.GetTraceRequest, after: str | None
    ) -> None:
        services = self._services
        params = [("projectId", request.project_id)] if request.HasField("project_id") else []
        params += [("extra", "none")] if request.without_extra else []
        params += [("after", after)] if after is not None else []
        inquiry = Inquiry(key.project, params, services.clock(), services.identity)
        question = structs.replace(parse_trace(inquiry, request.trace_id), format="pieces")
        try:
            download = await services.explorer.stream(question)
        except Refused as refused:
            await services.throttle.pace(questions_of(question.project), refused)
            raise
        async with aclosing(download.chunks) as chunks:
            async for response in trace_messages.responses(chunks):
                await context.write(response)
                await asyncio.sleep(0)  # a response takes milliseconds to make, and writing one may not wait

    @asynccontextmanager
    async def _reader(self, context: Context) -> AsyncIterator[tuple[Key, str | None]]:
        """The key of a call that reads, and the position that it wants; the call is under way until the block ends."""
        metadata = metadata_of(context)
        try:
            key = _authenticate(self._services, metadata, "read")
        except Refused as refused:
            await pace_stranger(self._services, context, refused)
            raise
        self._connections.know(context.peer())
        with self._shares.call(key.organization):
            yield key, metadata.get("x-ingest-position")


# --- requests --------------------------------------------------------------------------------------------------------


def _preferred(metadata: dict[str, str]) -> Handling | None:
    return prefer.handling([metadata.get("prefer", "")])


def _authenticate(services: Services, metadata: dict[str, str], scope: Scope) -> Key:
    authorization = metadata.get("authorization") if scope == "read" else None
    return services.authenticate(secret_of(metadata.get("x-api-key"), authorization), scope)


_M = TypeVar("_M", bound=Message)


def _parse(kind: type[_M], raw: bytes) -> _M:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise Refused("bad_request", f"The message is not a valid {kind.DESCRIPTOR.name}") from None


_NAMES: Final = {"project_id": "projectId"}
_IN_PATH: Final = {"user_id"}


def _params(request: Message) -> dict[str, str]:
    """Return the fields that are set, as the query parameters that they are over HTTP."""
    found = {}
    for field, value in request.ListFields():
        if field.name not in _IN_PATH and value is not False:
            found[_NAMES.get(field.name, field.name)] = "true" if value is True else str(value)
    return found


# --- responses -------------------------------------------------------------------------------------------------------

_INTERNAL: Final = grpc_status(Refused("internal", "Internal server error"))


class _Around(NamedTuple):
    """What every call is wrapped with."""

    logged: bool
    connections: ConnectionWatch


def _unary(method: Callable[[Context], Awaitable[Message]], around: _Around) -> "grpc.RpcMethodHandler[Any, Any]":
    """Make a handler of a `method` that reads its message itself (`message_of`); to clients it is a unary one."""

    async def behavior(_: object, context: Context) -> Message:
        return await _with_status(method(context), context, around)

    return grpc.stream_unary_rpc_method_handler(behavior, response_serializer=_serialize)


def _stream(method: Callable[[Context], Awaitable[None]], around: _Around) -> "grpc.RpcMethodHandler[Any, Any]":
    async def behavior(_: object, context: Context) -> None:
        await _with_status(method(context), context, around)

    return grpc.stream_stream_rpc_method_handler(behavior, response_serializer=_serialize)


def _server_stream(method: Callable[[Context], Awaitable[None]], around: _Around) -> "grpc.RpcMethodHandler[Any, Any]":
    """The same of a `method` that writes serialized messages, which many subscribers may share."""

    async def behavior(_: object, context: Context) -> None:
        await _with_status(method(context), context, around)

    return grpc.stream_stream_rpc_method_handler(behavior)


_T = TypeVar("_T")
_SERVICES: Final = {"Export": otlp_servicer.TRACES}


async def _with_status(answer: Awaitable[_T], context: Context, around: _Around) -> _T:
    """Return the answer, or end the call with the status of a refusal. Log unexpected errors, and calls if wanted."""
    peer = context.peer()
    with around.connections.call(peer):
        if not (around.logged or tracing.is_on()):
            return await _answer(answer, context)
        began, metadata = time.monotonic(), metadata_of(context)
        method = getattr(answer, "__name__", "")

        def code() -> grpc.StatusCode:
            found: Any = context.code()  # nothing yet, where all went well
            return found or grpc.StatusCode.OK

        answered = _answer(answer, context)
        if tracing.is_on():
            service = INGEST if method.startswith("Ingest") else _SERVICES.get(method, USAGE)
            answered = request_traces.trace_call(service, method, metadata, code, answered)
        try:
            return await answered
        finally:
            if around.logged:
                access_log.log_call(method, code(), began, peer, metadata.get("x-api-key"))


async def _answer(answer: Awaitable[_T], context: Context) -> _T:
    try:
        return await answer
    except Refused as refused:
        status = grpc_status(refused, DETAILS_ROOM)
        if isinstance(refused, NotServed):
            status.code = grpc.StatusCode.UNIMPLEMENTED.value[0]
    except Exception:
        log.exception("grpc_call_failed")
        status = _INTERNAL
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError  # abort_with_status does not return


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
