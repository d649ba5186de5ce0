"""The event store in `/metrics`: how far it is behind, and how far its first build is."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

EVERY: Final = 2.0
"""Seconds between two looks."""


class Building(Struct, frozen=True, rename="camel"):
    """How far a store is that has much to go through; counts are of messages."""

    done: int
    of: int
    seconds_left: int | None = None
    """None: it is too early to tell."""


class Scrubbed(Struct, frozen=True, rename="camel"):
    """What the slow check of the store's files has found."""

    damaged: int = 0
    """Segments, since the store's directory was made."""
    age_seconds: float | None = None
    """Within how many seconds each file was checked or written; None: some have never been checked."""


class StoreStatus(Struct, frozen=True, rename="camel"):
    """The event store as a query process sees it."""

    lag_seconds: float
    lag_messages: Mapping[int, int]
    """Partition -> messages of the log that are in no segment."""
    building: Building | None = None
    """None: the store keeps up."""
    scrubbed: Scrubbed = Scrubbed()
    skips: int = 0
    """Times that messages were skipped on their way to the store, since its directory was made."""


Ask = Callable[[], Awaitable[StoreStatus | None]]
"""Returns the present status; None: nobody knows it just now."""


class StoreMetrics(Collector):
    """Shows what `ask` has said last; `run` asks, again and again."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.status: StoreStatus | None = None

    async def run(self, every: float = EVERY) -> None:
        """Ask for ever."""
        while True:
            self.status = await self._ask()
            await asyncio.sleep(every)

    def describe(self) -> Iterable[Metric]:
        """Return nothing, as `StateCollector` does."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield gauges, without samples where nothing is known."""
        status = self.status
        lag = GaugeMetricFamily("spendstream_store_lag_seconds", "Seconds that the event store is behind", labels=())
        text = "Messages of the log that the event store does not contain yet"
        messages = GaugeMetricFamily("spendstream_store_lag_messages", text, labels=("partition",))
        if status is not None:
            lag.add_metric((), status.lag_seconds)
            for partition, behind in sorted(status.lag_messages.items()):
                messages.add_metric([str(partition)], behind)
        yield from (lag, messages)
        yield from _scrub(None if status is None else status.scrubbed)
        text = "Times that messages did not arrive at the event store though the log had them, and it started again"
        skips = GaugeMetricFamily("spendstream_store_skips", text, labels=())
        if status is not None:
            skips.add_metric((), status.skips)
        yield skips
        building = None if status is None else status.building
        yield from _build(Building(0, 0, 0) if building is None and status is not None else building)


def _scrub(found: Scrubbed | None) -> Iterator[Metric]:
    text = "Segments that the check of the store's files has found damaged, and had made anew"
    damaged = GaugeMetricFamily("spendstream_store_scrub_damaged_segments", text, labels=())
    text = "Seconds within which every file of the event store was checked or written"
    age = GaugeMetricFamily("spendstream_store_scrub_age_seconds", text, labels=())
    if found is not None:
        damaged.add_metric((), found.damaged)
        if found.age_seconds is not None:
            age.add_metric((), found.age_seconds)
    yield from (damaged, age)


def _build(building: Building | None) -> Iterator[Metric]:
    """Yield how far a first build is; all 0: there is none."""
    done, of, left = (None, None, None) if building is None else (building.done, building.of, building.seconds_left)
    for name, text, value in (
        ("done_messages", "Messages that a first build has gone through", done),
        ("of_messages", "Messages that it has to go through; 0: the event store keeps up", of),
        ("left_seconds", "Seconds that it is going to take", left),
    ):
        found = GaugeMetricFamily(f"spendstream_store_build_{name}", text, labels=())
        if value is not None:
            found.add_metric((), value)
        yield found
