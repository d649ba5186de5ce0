"""The health service `grpc.health.v1`, answered from `Health`, and server reflection."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.reflection import aio
from grpc_status import rpc_status

from server.errors import Refused
from server.grpc_api.call_metadata import Context, message_of
from server.limits.connection_watch import ConnectionWatch
from server.services import Health
from server.status import grpc_status

WATCH_EVERY: Final = 0.5
"""Seconds between two checks of the health for a `Watch`."""

MOST_STRANGERS: Final = 2048
"""Calls that need no key and are under way at once: a quarter of those that all clients share."""
MESSAGE_TIMEOUT: Final = 5.0
"""Seconds for the message of such a call."""

_Status = health_pb2.HealthCheckResponse


class Strangers:
    """The calls that need no key: `connections` may close connections with nothing but such calls, and only so many
    are under way."""

    def __init__(self, connections: ConnectionWatch) -> None:
        self._connections = connections
        self._count = 0

    @asynccontextmanager
    async def call(self, context: Context, *, is_spared: bool) -> AsyncIterator[None]:
        """Be one of them; ends the call if there are too many, or with the status of a `Refused`. `is_spared`: see
        `ConnectionWatch.call`."""
        self._count += 1
        try:
            if self._count > MOST_STRANGERS:
                raise Refused("unavailable", f"{MOST_STRANGERS} calls without a key are under way", retry_after=1)
            with self._connections.call(context.peer(), is_spared=is_spared):
                yield
        except Refused as refused:
            await context.abort_with_status(rpc_status.to_status(grpc_status(refused)))
        finally:
            self._count -= 1


class HealthService:
    """The health service. `services` are the known names, besides the empty one for the whole server."""

    def __init__(self, health: Health, services: tuple[str, ...], strangers: Strangers) -> None:
        self._health = health
        self._strangers = strangers
        self._services = ("", *services)

    def handlers(self) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
        """Its methods, which read their message themselves (`message_of`)."""
        return {
            "Check": grpc.stream_unary_rpc_method_handler(self._check, response_serializer=_serialize),
            "List": grpc.stream_unary_rpc_method_handler(self._list, response_serializer=_serialize),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch, response_serializer=_serialize),
        }

    def _status(self) -> _Status:
        return _Status(status=_Status.NOT_SERVING if self._health.unready() else _Status.SERVING)

    async def _check(self, _: object, context: Context) -> _Status:
        async with self._strangers.call(context, is_spared=True):
            if await _service_of(context) not in self._services:
                message = f"There is no such service; the services are {', '.join(self._services[1:])}"
                raise Refused("not_found", message)
            return self._status()
        raise AssertionError  # a refusal has ended the call

    async def _list(self, _: object, context: Context) -> Any:
        answer = health_pb2.HealthListResponse  # type: ignore[attr-defined] # its stubs are older than the method
        async with self._strangers.call(context, is_spared=True):
            await message_of(context, MESSAGE_TIMEOUT)
            return answer(statuses=dict.fromkeys(self._services, self._status()))
        raise AssertionError

    async def _watch(self, _: object, context: Context) -> None:
        last: _Status | None = None
        async with self._strangers.call(context, is_spared=False):
            known = await _service_of(context) in self._services
            while True:
                status = self._status() if known else _Status(status=_Status.SERVICE_UNKNOWN)
                if status != last:
                    await context.write(status)
                    last = status
                await asyncio.sleep(WATCH_EVERY)


async def _service_of(context: Context) -> str:
    raw = await message_of(context, MESSAGE_TIMEOUT)
    try:
        return health_pb2.HealthCheckRequest.FromString(raw).service
    except DecodeError:
        raise Refused("bad_request", "The message is not a valid HealthCheckRequest") from None


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


class Reflection(aio.ReflectionServicer):
    """gRPC reflection, v1alpha; its calls are counted with those of `HealthService`."""

    def __init__(self, services: tuple[str, ...], strangers: Strangers) -> None:
        super().__init__(services)
        self._strangers = strangers

    async def ServerReflectionInfo(  # type: ignore[override] # its stubs take a generator for a coroutine
        self, request_iterator: AsyncIterable[Any], unused_context: Any
    ) -> AsyncIterator[Any]:
        answers: Any = super().ServerReflectionInfo(request_iterator, unused_context)
        async with self._strangers.call(unused_context, is_spared=False):
            async for answer in answers:
                yield answer
