"""`GET /metrics`: the instruments of this process, and the values that are looked up at a scrape."""

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from processor.core.kernel.loaded import RUNNING
from processor.log.embedded.log import FILE_NAME
from server.telemetry.meters import Meters

NEAR: Final = 0.8
"""The used share of a quota from which an organization counts as near its limit."""


class State(Protocol):
    """The values that are looked up at a scrape; counts are over all organizations and all time."""

    def lag(self) -> Mapping[int, int]:
        """Return partition -> messages of the log that the tables do not contain yet."""
        ...

    def counted(self) -> tuple[int, int, int, int]:
        """Return events in the tables, duplicates, conflicts, events without a price."""
        ...

    def sizes(self) -> tuple[int, int]:
        """Return the numbers of rows and users of the view."""
        ...

    def age(self) -> float:
        """Return the seconds since the view last contained the whole changelog; 0 or more."""
        ...

    def quotas(self) -> Sequence[float]:
        """Return the used share of each quota, for the organizations that have one."""
        ...

    def pending(self) -> int:
        """Return the bytes of batches that wait for the disk."""
        ...

    def subscribers(self) -> int:
        """Return the number of subscribers of the live streams."""
        ...

    def lost(self) -> Mapping[int, int]:
        """Return partition -> messages of events that are gone and in no table, for partitions that lost any."""
        ...

    def unready(self) -> Sequence[str]:
        """Return why the process is not ready; empty: it is."""
        ...


class StateCollector(Collector):
    """Asks `State` at every scrape. `log_dir`: the directory of the embedded log, if that is used."""

    def __init__(
        self, state: State, meters: Meters, log_dir: Path | None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._state = state
        self._meters = meters
        self._log_dir = log_dir
        self._monotonic = monotonic

    def describe(self) -> Iterable[Metric]:
        """Return nothing: else registering would look up all values; a test checks the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        state = self._state
        yield _gauge("ready", "1 while events can be accepted and the tables follow, else 0", int(not state.unready()))
        text = "1 if the compiled kernel runs, 0 if Python does its work"
        yield _gauge("compiled_kernel", text, int(RUNNING == "compiled"))
        yield from self._lag()
        for name, text, value in zip(
            ("", "_duplicate", "_conflicting", "_unpriced"), _COUNTED, state.counted(), strict=True
        ):
            yield CounterMetricFamily(f"spendstream_table_events{name}", text, value=value)
        rows, users = state.sizes()
        yield _gauge("view_rows", "Rows of all kinds that this process answers from", rows)
        yield _gauge("view_users", "Users of all projects that this process answers from", users)
        yield _gauge("view_age_seconds", "Seconds since the view contained the whole changelog", state.age())
        yield _gauge("pending_bytes", "Bytes of events that wait for the disk", state.pending())
        yield _gauge("subscribers", "Subscribers of the live streams, over HTTP and gRPC", state.subscribers())
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
    """Yield how full the quotas are, without names: a label for each organization would have no bound."""
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
    """Return a registry of everything that `/metrics` shows: `meters`, `state`, and the process itself."""
    registry = meters.registry
    registry.register(StateCollector(state, meters, log_dir))
    for kind in (ProcessCollector, PlatformCollector, GCCollector):
        kind(registry=registry)
    return registry


Gather = Callable[[CollectorRegistry], Awaitable[CollectorRegistry]]
"""Returns the registry that is shown instead of that of this process: one of all API processes."""


def add_routes(app: web.Application, registry: CollectorRegistry, gather: Gather | None = None) -> None:
    """Serve `/metrics` in the text format, or in OpenMetrics if the client asks for it."""

    async def metrics(request: web.Request) -> web.Response:
        encoder, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
        shown = registry if gather is None else await gather(registry)
        return web.Response(body=encoder(shown), headers={hdrs.CONTENT_TYPE: content_type})

    app.router.add_get("/metrics", metrics)
