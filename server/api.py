"""The role `api`: both APIs, from their start to the end of the last request."""

import asyncio
import errno
import gc
import json
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import grpc
from aiohttp import web
from prometheus_client import CollectorRegistry

from processor.core.kernel.loaded import RUNNING
from processor.log.address import LogAddress
from processor.structured_log import get_logger
from processor.wall_clock import now
from server.api_services import build_services, stop_reporting
from server.grpc_api.servicers import make_server
from server.health import LogHealth
from server.http_api.connections import FileBudget, Runner, budget_of_process
from server.http_api.routes import create_app, make_runner
from server.limits.connection_watch import ConnectionWatch
from server.processes import listening_ports
from server.processes.listening_ports import split_bind
from server.processes.siblings import ApiSibling
from server.services import Services
from server.settings import ServerSettings
from server.supervisor import Child
from server.telemetry.exposition import Gather
from server.telemetry.scraping import Scraping
from server.tenancy.admin_service import AdminService

BIND_PATIENCE: Final = 3.0
"""Seconds to wait for a port that an earlier process is just releasing."""

GRACE: Final = 3.0
"""Seconds that requests under way get to finish when the process is told to stop."""

COLLECT_AFTER: Final = (50_000, 20, 20)
"""For `gc.set_threshold`. With Python's default (700, 10, 10) and four thousand connections, collections took 5 % of
the time: a hundred events make enough objects for one, and full ones walk all connections. Hardly any are cycles."""

T = TypeVar("T")


async def run(settings: ServerSettings, *, is_alone: bool = False) -> None:
    """Serve until SIGTERM or SIGINT. Raises `LogError`, or `OSError` if it cannot listen on a port.

    If `is_alone`, without a supervisor, it starts the process that answers questions about events by itself.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    sibling = ApiSibling.from_environment(os.environ, settings.data_dir)
    async with AsyncExitStack() as stack:
        if sibling is not None:
            stack.callback(os.close, sibling.hold())
        services, health, registry = await build_services(settings, stack, sibling)
        gather = None
        if sibling is not None:
            scraping = Scraping(sibling)
            await stack.enter_async_context(scraping.door(registry))
            gather = scraping.gather
        if is_alone and settings.event_store:
            await stack.enter_async_context(_query_process(settings))
        desk = AdminService(LogAddress.of(settings), services.directory, now)
        budget = budget_of_process(tls=settings.tls_cert is not None)
        runner, http, port = await _serve_http(settings, services, desk, registry, gather, budget)
        stack.push_async_callback(runner.cleanup)
        connections = ConnectionWatch("grpc", budget.grpc, others=lambda: len(runner.admission))
        server, grpc_port = await _serve_grpc(settings, services, connections, share=sibling is not None)
        stack.push_async_callback(stop_reporting, asyncio.create_task(connections.run(grpc_port)))
        if budget.handshakes:
            handshakes = ConnectionWatch("http", budget.handshakes, counted=runner.admission.peers, files=budget.files)
            runner.on_accepted = partial(handshakes.accepted, port)
            stack.push_async_callback(stop_reporting, asyncio.create_task(handshakes.run(port)))
        stack.push_async_callback(_close_apis, runner, server)
        stack.callback(services.feed.close)
        stack.callback(services.event_feed.close)
        stack.push_async_callback(stop_reporting, asyncio.create_task(_watch(health)))
        caught_up = asyncio.create_task(_until(lambda: health.caught_up))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({caught_up, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            _be_ready({"http": f"{http}:{port}", "grpc": f"{settings.grpc_bind.rpartition(':')[0]}:{grpc_port}"})
            await stopped
        get_logger().info("api.draining")


def _be_ready(addresses: dict[str, str]) -> None:
    """Say where each API is, and have collections cost little from here on."""
    gc.collect()
    gc.freeze()  # these objects stay: collections need not walk them again
    gc.set_threshold(*COLLECT_AFTER)
    get_logger().info("api.ready", **addresses, kernel=RUNNING)
    print(json.dumps({"event": "ready", "role": "api", **addresses}), flush=True)  # noqa: T201 - the ready line


@asynccontextmanager
async def _query_process(settings: ServerSettings) -> AsyncIterator[None]:
    """Keep a query process running beside this one."""
    read_end, write_end = os.pipe()
    child = Child("query", {"SPENDSTREAM_DATA_DIR": str(settings.data_dir)}, read_end)
    running = asyncio.create_task(child.run())
    try:
        yield
    finally:
        await child.stop()
        running.cancel()
        os.close(write_end)
        os.close(read_end)


async def _close_apis(runner: web.AppRunner, server: grpc.aio.Server) -> None:
    """Stop both at once: requests under way on either get the same time to finish."""
    await asyncio.gather(runner.cleanup(), server.stop(GRACE))


async def _serve_http(
    settings: ServerSettings,
    services: Services,
    desk: AdminService,
    registry: CollectorRegistry,
    gather: Gather | None,
    budget: FileBudget,
) -> tuple[Runner, str, int]:
    """Start the HTTP API; return its runner, host and port. With `gather` the port is shared by several processes."""
    runner = make_runner(create_app(services, desk, registry, gather), connections=budget.http)
    await runner.setup()
    host, port = split_bind(settings.http_bind)
    context = None
    if settings.tls_cert is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
        except OSError as error:  # also what OpenSSL says
            files = f"SPENDSTREAM_TLS_CERT ({settings.tls_cert}) and SPENDSTREAM_TLS_KEY ({settings.tls_key})"
            why = error.strerror or error
            raise OSError(error.errno, f"cannot use {files}: {why}; they are PEM files that go together") from error
    share = True if gather is not None else None

    async def start() -> None:  # a site that could not bind its port cannot be started again, so make a new one
        await web.TCPSite(runner, host, port, ssl_context=context, backlog=budget.backlog, reuse_port=share).start()

    await _patiently(start, settings.http_bind)
    return runner, settings.http_bind.rpartition(":")[0], runner.addresses[0][1]


async def _serve_grpc(
    settings: ServerSettings, services: Services, connections: ConnectionWatch, *, share: bool
) -> tuple[grpc.aio.Server, int]:
    tls = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
        tls = grpc.ssl_server_credentials([pair])

    async def start() -> tuple[grpc.aio.Server, int]:
        try:
            return await make_server(services, bind=settings.grpc_bind, tls=tls, share=share, connections=connections)
        except RuntimeError as error:  # gRPC raises this if it cannot bind the port
            raise OSError(errno.EADDRINUSE, str(error)) from None

    server, port = await _patiently(start, settings.grpc_bind)
    await server.start()
    return server, port


async def _patiently(start: Callable[[], Awaitable[T]], bind: str) -> T:
    deadline = time.monotonic() + BIND_PATIENCE
    while True:
        try:
            return await start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise OSError(error.errno, listening_ports.taken(bind, error)) from error
            await asyncio.sleep(0.1)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the view belongs to a thread
        await asyncio.sleep(0.02)


async def _watch(health: LogHealth) -> None:
    """Log when the process becomes unready, and when it is ready again; the same of tables that are behind."""
    before: list[str] = []
    while True:
        await asyncio.sleep(1)
        health.look()
        reasons = list(health.unready())
        if bool(reasons) != bool(before):
            get_logger().warning("api.unready", reasons=reasons) if reasons else get_logger().info("api.ready_again")
        before = reasons
