"""Stands between senders of OTLP and a server, over HTTP and gRPC: each new request meets the next fault of a plan.

A request that is sent again, byte for byte, passes: so each batch of a sender meets one fault at most, and whatever the
sender still has in the end is the server's doing, or the sender's.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import aiohttp
import grpc
from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from tests.support.clients import CHANNEL
from tests.support.patience import PROCESS_PATIENCE

Fault = Literal["none", "refuse-429", "refuse-503", "lose-answer", "kill-before-answer", "kill-after-answer"]
"""Refused ones do not reach the server; of the others the server's answer, if there is one, does not reach the sender.
`kill-before-answer` kills at a random moment up to `SPREAD` after the request was sent on."""

EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SPREAD: Final = 0.012
HEADERS: Final = ("x-api-key", "content-type", "content-encoding")


def _too_fast() -> bytes:
    """The details of a refusal that is to be retried: without them exporters drop what was refused."""
    status = Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="Too fast")
    status.details.add().Pack(RetryInfo(retry_delay=Duration(nanos=200_000_000)))
    return status.SerializeToString()


TOO_FAST: Final = _too_fast()


class FaultyProxy:
    """The proxy's state; `met` counts the faults, `refusals` what the server itself refused."""

    def __init__(self, http: str, grpc_at: str, plan: Iterator[Fault], kill: Callable[[], object]) -> None:
        """`http` and `grpc_at` are host:port of the server; `kill` ends it at once, and something starts it again."""
        self.http = ""
        self.grpc = ""
        self.met: Counter[Fault] = Counter()
        self.refusals: Counter[int] = Counter()
        self._url = f"http://{http}"
        self._channel = grpc.aio.insecure_channel(grpc_at, options=CHANNEL)
        self._plan = plan
        self._kill = kill
        self._seen: set[bytes] = set()
        self._rng = random.Random(7)
        self._session: aiohttp.ClientSession | None = None

    def _next(self, body: bytes) -> Fault:
        if body in self._seen:
            return "none"
        self._seen.add(body)
        fault: Fault = next(self._plan, "none")
        self.met[fault] += 1
        return fault

    async def _with_fault(self, fault: Fault, forward: Awaitable[Any]) -> Any:
        """The server's answer; None where the sender is not to see it."""
        sent = asyncio.ensure_future(forward)
        if fault == "kill-before-answer":
            await asyncio.sleep(self._rng.uniform(0, SPREAD))
            self._kill()
        try:
            answer = await sent
        except (aiohttp.ClientError, grpc.RpcError, OSError):
            if fault == "none":
                raise
            return None
        if fault == "kill-after-answer":
            self._kill()
        return answer if fault == "none" else None

    async def over_http(self, request: web.Request) -> web.StreamResponse:
        """Any path."""
        body = await request.read()
        fault = self._next(body)
        if fault == "refuse-429":
            return web.Response(status=429, headers={"Retry-After": "1"})
        if fault == "refuse-503":
            return web.Response(status=503)
        headers = {name: request.headers[name] for name in HEADERS if name in request.headers}
        try:
            answer = await self._with_fault(fault, self._post(request.path, body, headers))
        except (aiohttp.ClientError, OSError):
            return web.Response(status=503)  # as a load balancer says of a server that is away
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=503)  # to nobody
        status, text, kind = answer
        if status != 200:
            self.refusals[status] += 1
        return web.Response(status=status, body=text, headers={"Content-Type": kind})

    async def _post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, str]:
        """The server's answer. While it is away a request waits, as at a load balancer: clients give up after seconds,
        and a server that has just been killed several times comes back after as many."""
        assert self._session is not None
        deadline = asyncio.get_running_loop().time() + PROCESS_PATIENCE
        while True:
            try:
                async with self._session.post(f"{self._url}{path}", data=body, headers=headers) as answer:
                    return answer.status, await answer.read(), answer.headers.get("Content-Type", "")
            except aiohttp.ClientConnectorError:  # nothing was sent
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def over_grpc(self, body: bytes, context: Any) -> bytes:
        """TraceService/Export."""
        fault = self._next(body)
        if fault == "refuse-429":
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "Too fast", (("grpc-status-details-bin", TOO_FAST),)
            )
        if fault == "refuse-503":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Away")
        metadata = [(name, value) for name, value in context.invocation_metadata() if name == "x-api-key"]
        export: Any = self._channel.unary_unary(EXPORT)
        answer: Any = None
        try:
            answer = await self._with_fault(
                fault, export(body, metadata=metadata, timeout=PROCESS_PATIENCE, wait_for_ready=True)
            )
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details())
        if answer is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return bytes(answer)

    async def start(self) -> None:
        """Listen on two free ports of this machine."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(2 * PROCESS_PATIENCE),
        )
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self.over_http)
        self._runner = web.AppRunner(app, access_log=None, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.http = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._grpc = grpc.aio.server()
        handler: Any = grpc.unary_unary_rpc_method_handler(self.over_grpc)
        service, _, method = EXPORT.strip("/").partition("/")
        self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.grpc = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        await self._grpc.start()

    async def stop(self) -> None:
        """Leave nothing running."""
        assert self._session is not None
        await self._grpc.stop(0)
        await self._runner.cleanup()
        await self._session.close()
        await self._channel.close()


@asynccontextmanager
async def faulty_proxy(
    http: str, grpc_at: str, plan: Iterator[Fault], kill: Callable[[], object]
) -> AsyncIterator[FaultyProxy]:
    """A proxy for the length of the block."""
    made = FaultyProxy(http, grpc_at, plan, kill)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
