"""The role `api`: builds both APIs and the view they answer from, in the order in which they start and stop."""

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
from typing import Any, Final, TypeVar

import grpc
from aiohttp import web
from prometheus_client import CollectorRegistry
from structlog.stdlib import get_logger

from processor.core.events.content_coding import MAX_BODY
from processor.core.kernel.loaded import RUNNING
from processor.core.tables import row_block
from processor.log import losses
from processor.log.address import LogAddress
from processor.log.embedded.checkpointer import Checkpointer
from processor.view.arrivals import Arrivals
from processor.view.view import View
from processor.view.view_follower import ViewFollower
from processor.wall_clock import latest, now
from server.alerts.budget_watch import Budgeter
from server.alerts.delivery import Alerter
from server.alerts.notices import BudgetNotices
from server.alerts.shelf import BudgetShelf, NotificationShelf
from server.alerts.webhook import Webhook
from server.explore.client import QueryClient
from server.explore.explorer import Explorer, OffExplorer
from server.grpc_api.servicers import make_server
from server.health import LogHealth, Signals
from server.http_api.connections import Budget, Runner, budget_of_process
from server.http_api.routes import create_app, make_runner
from server.ingest.intake import Intake
from server.ingest.log_publisher import LogPublisher
from server.limits.build import Leases, make_quotas
from server.limits.cardinality import Cardinality
from server.limits.connection_watch import ConnectionWatch
from server.limits.lease_client import LeaseHoldings, LeaseStatements
from server.limits.lease_follower import LeaseFollower
from server.limits.memory_budget import MemoryBudget
from server.live.event_feed import EventFeed
from server.live.feed import Feed
from server.prices import price_lists
from server.processes import listening_ports
from server.processes.listening_ports import split_bind
from server.processes.siblings import ApiSibling
from server.reads.read_service import ViewReads
from server.services import Services
from server.settings import ServerSettings
from server.supervisor import Child
from server.telemetry.meters import Meters
from server.telemetry.metrics import Gather, make_registry
from server.telemetry.scraping import Scraping
from server.telemetry.store_metrics import StoreMetrics
from server.tenancy.admin_service import AdminService
from server.tenancy.directory import Directory
from server.tenancy.directory_follower import DirectoryFollower
from server.tenancy.directory_mark import DirectoryMark
from server.tenancy.first_key import ensure_key
from server.tenancy.freshness import DirectoryFreshness

BIND_PATIENCE: Final = 3.0
"""Seconds to wait for a port that an earlier process is just releasing."""

GRACE: Final = 3.0
"""Seconds that requests under way get to finish when the process is told to stop."""

SETTLE_PATIENCE: Final = 5.0
"""Seconds to wait until the changelog is read to its end, when the events have lost theirs."""

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
        services, health, registry = await _build(settings, stack, sibling)
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
        stack.push_async_callback(_stop_reporting, asyncio.create_task(connections.run(grpc_port)))
        if budget.handshakes:
            handshakes = ConnectionWatch("http", budget.handshakes, counted=runner.admission.peers)
            stack.push_async_callback(_stop_reporting, asyncio.create_task(handshakes.run(port)))
        stack.push_async_callback(_close_apis, runner, server)
        stack.callback(services.feed.close)
        stack.callback(services.event_feed.close)
        stack.push_async_callback(_stop_reporting, asyncio.create_task(_watch(health)))
        caught_up = asyncio.create_task(_until(lambda: health.caught_up))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({caught_up, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            gc.collect()
            gc.freeze()  # these objects stay: collections need not walk them again
            gc.set_threshold(*COLLECT_AFTER)
            addresses = {"http": f"{http}:{port}", "grpc": f"{settings.grpc_bind.rpartition(':')[0]}:{grpc_port}"}
            get_logger().info("api.ready", **addresses, kernel=RUNNING)
            print(json.dumps({"event": "ready", "role": "api", **addresses}), flush=True)  # noqa: T201 - the ready line
            await stopped
        get_logger().info("api.draining")


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


async def _build(
    settings: ServerSettings, stack: AsyncExitStack, sibling: ApiSibling | None
) -> tuple[Services, LogHealth, CollectorRegistry]:
    directory = Directory(BudgetShelf(), NotificationShelf())
    loop = asyncio.get_running_loop()
    address = LogAddress.of(settings)
    log = address.open(settings.partitions, create=True)
    address.claim(log.identity, keeps=True)
    losses.check_directory(log)
    process = 0 if sibling is None else sibling.number
    mark = None
    if address.kafka is not None:  # the embedded log is one file: it cannot lose its end unnoticed
        mark = DirectoryMark(settings.data_dir / f"directory-{process}", log.identity)
        stack.callback(mark.close)
        mark.check(log, now())
    view = View(row_block.seed_of(log.salt))
    arrivals = Arrivals(view)
    ensure_key(log, settings.bootstrap_key, now(), make=False)
    log.close()
    if address.kafka is None:
        checkpointer = Checkpointer(settings.data_dir)
        checkpointer.start()
        stack.callback(checkpointer.stop)
    leases = marks = None
    if address.kafka is not None:
        leases = await _state_leases(address, stack)
        # Only a broker can come back with less than it has acknowledged.
        marks = settings.data_dir / f"acknowledged-{process}"
    guard = leases.holdings.check if leases is not None else lambda: None
    publisher = LogPublisher(
        address, now, settings.max_pending_mib << 20, guard, lambda: dict(view.position), lambda: _settled(view), marks
    )
    stack.push_async_callback(asyncio.to_thread, publisher.close)
    keys = DirectoryFollower(address, directory, mark)
    follower = ViewFollower(address, publisher.partitions, view, now, lambda: _notify(loop, arrivals))
    followers = [keys, follower]
    if leases is not None:
        followers.append(LeaseFollower(address, leases.holdings, lambda: _notify(loop, arrivals)))
    for each in followers:
        each.start()
        stack.push_async_callback(asyncio.to_thread, each.stop)
    for each in (keys, follower):
        await asyncio.to_thread(each.wait_read_all)
    await asyncio.to_thread(publisher.check_acknowledged)
    trust = DirectoryFreshness(lambda: keys.known_at, time.monotonic)
    health = LogHealth(
        publisher,
        view,
        settings.max_lag,
        time.monotonic,
        trust,
        damage=lambda: keys.damage or follower.damage,
        lost=directory.lost,
    )
    cardinality = Cardinality(
        view,
        settings.max_users,
        settings.max_models,
        settings.max_environments,
        settings.max_days,
        settings.max_rows,
    )
    pending = MemoryBudget(max(settings.max_pending_mib << 20, 2 * MAX_BODY))
    quotas, name, background = make_quotas(
        view, arrivals, directory, publisher.log_end, sibling, leases, lambda: keys.end
    )
    if background is not None:
        stack.push_async_callback(_stop_reporting, asyncio.create_task(background()))
    pricer = price_lists.open_pricer(price_lists.keep(settings.prices, settings.data_dir))
    meters = Meters(lambda: view.position)
    intake = Intake(publisher, quotas, now, pending, cardinality, name, meters, latest=latest, pricer=pricer)
    reads = ViewReads(view, arrivals, directory, publisher.identity, now)
    is_first = sibling is None or sibling.is_first
    if settings.alert_webhook is not None and settings.alert_secret is not None and is_first:
        webhook = Webhook(settings.alert_webhook, settings.alert_secret, allow_private=settings.alert_allow_private)
        alerter = Alerter(webhook, address, publisher.identity, directory, view, now)
        alerter.start()
        stack.push_async_callback(alerter.stop)
    notices = BudgetNotices(now)
    jitter = 0.0 if address.kafka is None and is_first else 1.0
    budgeter = Budgeter(address, publisher.identity, directory, view, notices, now, jitter=jitter)
    budgeter.start()
    stack.push_async_callback(budgeter.stop)
    feed = Feed(view, arrivals, publisher.identity, notices=notices)
    arrivals.listen(lambda: intake.meters.seen(view.position, time.monotonic()))
    explorer: Explorer = QueryClient(settings.data_dir) if settings.event_store else OffExplorer()
    event_feed = EventFeed(explorer, publisher.identity)
    signals = Signals(view, publisher, directory, health, pending, (feed, event_feed), now)
    registry = make_registry(signals, intake.meters, settings.data_dir if address.kafka is None else None)
    if isinstance(explorer, QueryClient):
        store_metrics = StoreMetrics(explorer.status)
        registry.register(store_metrics)
        stack.push_async_callback(_stop_reporting, asyncio.create_task(store_metrics.run()))
    asked = settings.access_log
    services = Services(
        intake,
        directory,
        reads,
        health,
        now,
        settings.handling,
        feed,
        trust=trust,
        access_log=asked,
        explorer=explorer,
        event_feed=event_feed,
        identity=publisher.identity,
        spans=settings.otlp_spans,
        content=settings.otlp_content,
    )
    return services, health, registry


async def _state_leases(address: LogAddress, stack: AsyncExitStack) -> Leases:
    """Start the statements of what this process needs, so that the grantor knows of it before its first event."""
    holdings = LeaseHoldings()
    statements = LeaseStatements(address, holdings, now)
    stack.push_async_callback(statements.leave)  # after everything is written
    await statements.state()
    stack.push_async_callback(_stop_reporting, asyncio.create_task(statements.run()))
    return Leases(holdings, statements)


def _settled(view: View) -> dict[int, int]:
    """Return what the tables contain (partition -> offset) once the changelog as of now is read; blocks for up to
    `SETTLE_PATIENCE` seconds, then returns what is known."""
    asked, deadline = now(), time.monotonic() + SETTLE_PATIENCE
    while view.as_of <= asked and time.monotonic() < deadline:
        time.sleep(0.02)
    return dict(view.position)


def _notify(loop: asyncio.AbstractEventLoop, arrivals: Arrivals) -> None:
    try:
        loop.call_soon_threadsafe(arrivals.notify)
    except RuntimeError:  # the event loop has ended before the follower
        return


async def _close_apis(runner: web.AppRunner, server: grpc.aio.Server) -> None:
    """Stop both at once: requests under way on either get the same time to finish."""
    await asyncio.gather(runner.cleanup(), server.stop(GRACE))


async def _serve_http(
    settings: ServerSettings,
    services: Services,
    desk: AdminService,
    registry: CollectorRegistry,
    gather: Gather | None,
    budget: Budget,
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
    """Log when the process becomes unready, and when it is ready again."""
    before: list[str] = []
    while True:
        await asyncio.sleep(1)
        reasons = list(health.unready())
        if bool(reasons) != bool(before):
            get_logger().warning("api.unready", reasons=reasons) if reasons else get_logger().info("api.ready_again")
        before = reasons


async def _stop_reporting(task: "asyncio.Task[Any]") -> None:
    task.cancel()
