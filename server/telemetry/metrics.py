"""`GET /metrics`: the instruments of this process, and what is looked up at a scrape."""

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from processor.log.embedded.log import FILE_NAME
from server.telemetry.meters import Meters

NEAR: Final = 0.8
"""The share of a quota from which on an organization counts as near its end."""


class State(Protocol):
    """What is looked up at a scrape; counts are over all organizations and since ever."""

    def lag(self) -> Mapping[int, int]:
        """partition -> messages of the log that the tables do not contain yet."""
        ...

    def counted(self) -> tuple[int, int, int, int]:
        """Events in the tables, duplicates, conflicts, events without a price."""
        ...

    def sizes(self) -> tuple[int, int]:
        """Rows and users of the view."""
        ...

    def age(self) -> float:
        """Seconds since the view was last known to hold all there is; 0 or more."""
        ...

    def quotas(self) -> Sequence[float]:
        """The used share of each organization's quota, of those that have one."""
        ...

    def pending(self) -> int:
        """Bytes of batches that wait for the disk."""
        ...

    def subscribers(self) -> int:
        """Subscribers of the live stream."""
        ...

    def lost(self) -> Mapping[int, int]:
        """partition -> messages of events that are gone and in no table, of those partitions that lost any."""
        ...

    def unready(self) -> Sequence[str]:
        """Why the process is not ready."""
        ...


class StateCollector(Collector):
    """Asks `State` at every scrape. `log_dir`: of the embedded log."""

    def __init__(
        self, state: State, meters: Meters, log_dir: Path | None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._state = state
        self._meters = meters
        self._log_dir = log_dir
        self._monotonic = monotonic

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are checked in a test, not by asking for everything at the start."""
        return ()

    def collect(self) -> Iterator[Metric]:
        state = self._state
        yield _gauge("ready", "1 while events can be taken and the tables follow, else 0", int(not state.unready()))
        yield from self._lag()
        for name, text, value in zip(
            ("", "_duplicate", "_conflicting", "_unpriced"), _COUNTED, state.counted(), strict=True
        ):
            yield CounterMetricFamily(f"spendstream_table_events{name}", text, value=value)
        rows, users = state.sizes()
        yield _gauge("view_rows", "Rows of all kinds that this process answers from", rows)
        yield _gauge("view_users", "Users of all projects that this process answers from", users)
        yield _gauge("view_age_seconds", "Seconds since the view held all that was in the changelog", state.age())
        yield _gauge("pending_bytes", "Bytes of events that wait for the disk", state.pending())
        yield _gauge("subscribers", "Subscribers of the live stream, of both wires", state.subscribers())
        lost = _gauge("events_lost", "Messages of events that are gone and in no table", labels=["partition"])
        for partition, messages in sorted(state.lost().items()):
            lost.add_metric([str(partition)], messages)
        yield lost
        yield from _quotas(state.quotas())
        if self._log_dir is not None:
            yield self._log_size(self._log_dir)

    def _lag(self) -> Iterator[Metric]:
        lag, waiting = self._state.lag(), self._meters.waiting
        events, since, now = waiting.events(), waiting.since(), self._monotonic()
        messages = _gauge(
            "lag_messages", "Messages of the log that the tables do not contain yet", labels=["partition"]
        )
        mine = _gauge("lag_events", "Events acknowledged here that the tables do not contain yet", labels=["partition"])
        text = "Seconds for which the first event acknowledged here has waited for the tables"
        seconds = _gauge("lag_seconds", text, labels=["partition"])
        for partition, behind in sorted(lag.items()):
            label = [str(partition)]
            messages.add_metric(label, behind)
            mine.add_metric(label, events.get(partition, 0))
            seconds.add_metric(label, max(now - since.get(partition, now), 0.0))
        yield from (messages, mine, seconds)

    def _log_size(self, directory: Path) -> Metric:
        found = _gauge("log_size_bytes", "Bytes of the embedded log", labels=["file"])
        for name, file in (("log", FILE_NAME), ("wal", f"{FILE_NAME}-wal")):
            path = directory / file
            found.add_metric([name], path.stat().st_size if path.exists() else 0)
        return found


_COUNTED: Final = (
    "Unique events in the tables, all organizations",
    "Copies of events that were counted as duplicates, all organizations",
    "Duplicates that differ from the first copy, all organizations",
    "Events in the tables that came without a price, all projects",
)


def _gauge(name: str, text: str, value: float | None = None, labels: Sequence[str] | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"spendstream_{name}", text, value=value, labels=labels)


def _quotas(shares: Sequence[float]) -> Iterator[Metric]:
    """How full the quotas are, without a name: a label for each organization would have no bound."""
    counts = {
        "free": sum(share < NEAR for share in shares),
        "near": sum(NEAR <= share < 1 for share in shares),
        "used_up": sum(share >= 1 for share in shares),
    }
    text = "Organizations with a monthly quota: below 80 % of it, from there on, and at its end"
    found = _gauge("quota_organizations", text, labels=["state"])
    for state, count in counts.items():
        found.add_metric([state], count)
    yield found
    yield _gauge("quota_used_ratio_max", "The largest used share of a monthly quota", max(shares, default=0.0))


def make_registry(state: State, meters: Meters, log_dir: Path | None) -> CollectorRegistry:
    """Everything that `/metrics` shows: `meters`, `state`, and the process itself."""
    registry = meters.registry
    registry.register(StateCollector(state, meters, log_dir))
    for kind in (ProcessCollector, PlatformCollector, GCCollector):
        kind(registry=registry)
    return registry


Gather = Callable[[CollectorRegistry], Awaitable[CollectorRegistry]]
"""What is shown instead of the registry of this process: that of all."""


def add_routes(app: web.Application, registry: CollectorRegistry, gather: Gather | None = None) -> None:
    """Serve `/metrics`: the text format, or OpenMetrics if that is asked for."""

    async def metrics(request: web.Request) -> web.Response:
        encoder, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
        shown = registry if gather is None else await gather(registry)
        return web.Response(body=encoder(shown), headers={hdrs.CONTENT_TYPE: content_type})

    app.router.add_get("/metrics", metrics)
