"""What the role `api` answers with, in the order in which it starts: the log, the tables, intake, alerts, reads."""

import asyncio
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry

from processor.core.events.content_coding import MAX_BODY
from processor.core.tables import row_block
from processor.log import losses
from processor.log.address import LogAddress
from processor.log.embedded.checkpointer import Checkpointer
from processor.log.under_way import ArrivalsUnderWay
from processor.view.view import View
from processor.view.view_follower import Arrivals, ViewFollower
from processor.wall_clock import latest, now
from server.alerts.budget_watch import Budgeter
from server.alerts.delivery import Alerter
from server.alerts.notices import BudgetNotices
from server.alerts.shelf import BudgetShelf, NotificationShelf
from server.alerts.webhook import Webhook
from server.explore.client import QueryClient
from server.explore.explorer import Explorer, OffExplorer
from server.health import LogHealth, Signals
from server.ingest.intake import Intake
from server.ingest.log_publisher import LogPublisher
from server.limits.build import Leases, make_quotas
from server.limits.cardinality import Cardinality
from server.limits.lease_client import LeaseHoldings, LeaseStatements
from server.limits.lease_follower import LeaseFollower
from server.limits.memory_budget import MemoryBudget
from server.live.event_feed import EventFeed
from server.live.feed import Feed
from server.otlp.span_export import SpanExport
from server.prices import price_lists, prices_setting
from server.processes.siblings import ApiSibling
from server.reads.read_service import ViewReads
from server.services import Services
from server.settings import ServerSettings
from server.telemetry.exposition import make_registry
from server.telemetry.meters import Meters
from server.telemetry.store_metrics import StoreMetrics
from server.tenancy.directory import Directory
from server.tenancy.directory_follower import DirectoryFollower, DirectoryFreshness
from server.tenancy.directory_mark import DirectoryMark
from server.tenancy.first_key import ensure_key

SETTLE_PATIENCE: Final = 5.0
"""Seconds to wait until the changelog is read to its end, when the events have lost theirs."""


class Start(NamedTuple):
    """What every step of a start goes by."""

    settings: ServerSettings
    stack: AsyncExitStack
    """Ends what has been started, the last first."""
    sibling: ApiSibling | None

    @property
    def process(self) -> int:
        """The number of this API process."""
        return 0 if self.sibling is None else self.sibling.number

    @property
    def is_first(self) -> bool:
        """Whether this process does what one of them has to do."""
        return self.sibling is None or self.sibling.is_first

    def run(self, task: Coroutine[Any, Any, None]) -> None:
        """Run a task for as long as the process lives."""
        self.stack.push_async_callback(stop_reporting, asyncio.create_task(task))


class OpenedLog(NamedTuple):
    """The log that was found, or made."""

    address: LogAddress
    seed: int
    """Of the hashes of rows' keys in it."""
    mark: DirectoryMark | None


class KnownState(NamedTuple):
    """What this process knows of the log, kept up to date from here on."""

    address: LogAddress
    publisher: LogPublisher
    view: View
    arrivals: Arrivals
    directory: Directory
    keys: DirectoryFollower
    leases: Leases | None
    health: LogHealth
    trust: DirectoryFreshness


async def build_services(
    settings: ServerSettings, stack: AsyncExitStack, sibling: ApiSibling | None
) -> tuple[Services, LogHealth, CollectorRegistry]:
    """Start everything behind both APIs; `stack` ends it. Returns once the tables are read. Raises `LogError`."""
    start = Start(settings, stack, sibling)
    known = await _follow(start, _open_log(start))
    intake = _make_intake(start, known)
    notices = _start_alerts(start, known)
    view, publisher, directory = known.view, known.publisher, known.directory
    feed = Feed(view, known.arrivals, publisher.identity, notices=notices)
    known.arrivals.listen(lambda: intake.meters.seen(view.position, time.monotonic()))
    explorer: Explorer = QueryClient(settings.data_dir) if settings.event_store else OffExplorer()
    event_feed = EventFeed(explorer, publisher.identity)
    signals = Signals(view, publisher, directory, known.health, intake.pending, (feed, event_feed), now)
    registry = make_registry(signals, intake.meters, settings.data_dir if known.address.kafka is None else None)
    if isinstance(explorer, QueryClient):
        store_metrics = StoreMetrics(explorer.status)
        registry.register(store_metrics)
        start.run(store_metrics.run())
    services = Services(
        intake,
        SpanExport(intake, settings.otlp_spans, settings.otlp_content),
        directory,
        ViewReads(view, known.arrivals, directory, publisher.identity, now),
        known.health,
        now,
        settings.handling,
        feed,
        trust=known.trust,
        access_log=settings.access_log,
        explorer=explorer,
        event_feed=event_feed,
        identity=publisher.identity,
    )
    return services, known.health, registry


def _open_log(start: Start) -> OpenedLog:
    """Open or make the log, and compare what this process has of it with it. Starts its checkpoints."""
    settings = start.settings
    address = LogAddress.of(settings)
    log = address.open(settings.partitions, create=True, upgrade=True)
    address.claim(log.identity, keeps=True)
    losses.check_directory(log)
    mark = None
    if address.kafka is not None:  # the embedded log is one file: it cannot lose its end unnoticed
        mark = DirectoryMark(settings.data_dir / f"directory-{start.process}", log.identity)
        start.stack.callback(mark.close)
        mark.check(log, now())
    ensure_key(log, settings.bootstrap_key, now(), make=False)
    log.close()
    if address.kafka is None:
        checkpointer = Checkpointer(settings.data_dir)
        checkpointer.start()
        start.stack.callback(checkpointer.stop)
    return OpenedLog(address, row_block.seed_of(log.salt), mark)


async def _follow(start: Start, log: OpenedLog) -> KnownState:
    """Start what writes to the log and what follows it; wait until directory and tables are read."""
    settings, stack, address = start.settings, start.stack, log.address
    directory, view = Directory(BudgetShelf(), NotificationShelf()), View(log.seed)
    arrivals = Arrivals(view, asyncio.get_running_loop())
    leases = await _state_leases(start, address) if address.kafka is not None else None
    guard = leases.holdings.check if leases is not None else lambda: None
    # Only a broker can come back with less than it has acknowledged.
    marks = settings.data_dir / f"acknowledged-{start.process}" if leases is not None else None
    publisher = LogPublisher(
        address, now, settings.max_pending_mib << 20, guard, lambda: dict(view.position), lambda: _settled(view), marks
    )
    stack.push_async_callback(asyncio.to_thread, publisher.close)
    keys = DirectoryFollower(address, directory, log.mark)
    follower = ViewFollower(address, publisher.partitions, view, now, arrivals.notify_from_thread)
    followers = [keys, follower]
    if leases is not None:
        followers.append(LeaseFollower(address, leases.holdings, arrivals.notify_from_thread))
    for each in followers:
        each.start()
        stack.push_async_callback(asyncio.to_thread, each.stop)
    for each in (keys, follower):
        await asyncio.to_thread(each.wait_read_all)
    await asyncio.to_thread(publisher.check_acknowledged)
    trust = DirectoryFreshness(lambda: keys.known_at, time.monotonic)
    damage = lambda: keys.damage or follower.damage  # noqa: E731
    health = LogHealth(publisher, view, settings.max_lag, time.monotonic, trust, damage=damage, lost=directory.lost)
    return KnownState(address, publisher, view, arrivals, directory, keys, leases, health, trust)


def _make_intake(start: Start, known: KnownState) -> Intake:
    """Make the intake, with all that bounds it."""
    settings, view = start.settings, known.view
    cardinality = Cardinality(
        view,
        settings.max_users,
        settings.max_models,
        settings.max_environments,
        settings.max_days,
        settings.max_rows,
    )
    quotas, name, background = make_quotas(
        view,
        known.arrivals,
        known.directory,
        known.publisher.log_end,
        start.sibling,
        known.leases,
        lambda: known.keys.end,
    )
    if background is not None:
        start.run(background())
    under_way = ArrivalsUnderWay(now, settings.data_dir)
    if known.leases is not None:
        known.leases.statements.under_way = under_way
    return Intake(
        known.publisher,
        quotas,
        now,
        MemoryBudget(max(settings.max_pending_mib << 20, 2 * MAX_BODY)),
        cardinality,
        name,
        Meters(lambda: view.position),
        latest=latest,
        pricer=price_lists.open_pricer(prices_setting.keep(settings.prices, settings.data_dir)),
        under_way=under_way,
    )


def _start_alerts(start: Start, known: KnownState) -> BudgetNotices:
    """Start to look for budgets and quotas that are reached; return the notices for the live feed."""
    settings, address, identity = start.settings, known.address, known.publisher.identity
    if settings.alert_webhook is not None and settings.alert_secret is not None and start.is_first:
        webhook = Webhook(settings.alert_webhook, settings.alert_secret, allow_private=settings.alert_allow_private)
        alerter = Alerter(webhook, address, identity, known.directory, known.view, now)
        alerter.start()
        start.stack.push_async_callback(alerter.stop)
    notices = BudgetNotices(now)
    jitter = 0.0 if address.kafka is None and start.is_first else 1.0
    budgeter = Budgeter(address, identity, known.directory, known.view, notices, now, jitter=jitter)
    budgeter.start()
    start.stack.push_async_callback(budgeter.stop)
    return notices


async def _state_leases(start: Start, address: LogAddress) -> Leases:
    """Start the statements of what this process needs, so that the grantor knows of it before its first event."""
    holdings = LeaseHoldings()
    statements = LeaseStatements(address, holdings, now)
    start.stack.push_async_callback(statements.leave)  # after everything is written
    await statements.state()
    start.run(statements.run())
    return Leases(holdings, statements)


def _settled(view: View) -> dict[int, int]:
    """Return what the tables contain (partition -> offset) once the changelog as of now is read; blocks for up to
    `SETTLE_PATIENCE` seconds, then returns what is known."""
    asked, deadline = now(), time.monotonic() + SETTLE_PATIENCE
    while view.as_of <= asked and time.monotonic() < deadline:
        time.sleep(0.02)
    return dict(view.position)


async def stop_reporting(task: "asyncio.Task[Any]") -> None:
    """End a task of the process."""
    task.cancel()
