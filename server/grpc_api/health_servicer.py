"""The health service `grpc.health.v1`, answered from `Health`, and server reflection."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection import aio
from grpc_status import rpc_status

from server.errors import Refused
from server.limits.connection_watch import ConnectionWatch
from server.services import Health
from server.status import grpc_status

WATCH_EVERY: Final = 0.5
"""Seconds between two checks of the health for a `Watch`."""

_Status = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):
    """The health service. `services` are the known names, besides the empty one for the whole server.

    Calls need no key, so `connections` may close connections with nothing but such calls.
    """

    def __init__(self, health: Health, services: tuple[str, ...], connections: ConnectionWatch) -> None:
        self._health = health
        self._connections = connections
        self._services = ("", *services)

    def _status(self) -> _Status:
        return _Status(status=_Status.NOT_SERVING if self._health.unready() else _Status.SERVING)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> _Status:
        with self._connections.call(context.peer()):
            if request.service not in self._services:
                message = f"There is no such service; the services are {', '.join(self._services[1:])}"
                status = grpc_status(Refused("not_found", message))
                await context.abort_with_status(rpc_status.to_status(status))
            return self._status()

    async def List(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        answer = health_pb2.HealthListResponse  # type: ignore[attr-defined] # its stubs are older than the method
        with self._connections.call(context.peer()):
            return answer(statuses=dict.fromkeys(self._services, self._status()))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[_Status]:
        known = request.service in self._services
        last: _Status | None = None
        with self._connections.call(context.peer(), is_spared=False):
            while True:
                status = self._status() if known else _Status(status=_Status.SERVICE_UNKNOWN)
                if status != last:
                    yield status
                    last = status
                await asyncio.sleep(WATCH_EVERY)


class Reflection(aio.ReflectionServicer):
    """gRPC reflection, v1alpha; its calls are reported to `connections`, as those of `HealthService`."""

    def __init__(self, services: tuple[str, ...], connections: ConnectionWatch) -> None:
        super().__init__(services)
        self._connections = connections

    async def ServerReflectionInfo(  # type: ignore[override] # its stubs take a generator for a coroutine
        self, request_iterator: AsyncIterable[Any], unused_context: Any
    ) -> AsyncIterator[Any]:
        answers: Any = super().ServerReflectionInfo(request_iterator, unused_context)
        with self._connections.call(unused_context.peer(), is_spared=False):
            async for answer in answers:
                yield answer
