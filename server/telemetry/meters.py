"""Counters and histograms of this process for `/metrics`: batches, events, refusals, acknowledgement and visibility.

Names follow the Prometheus guide: base units, `_total` for counters, and no label without a bound. No label names a
tenant: a scrape shows how much there is, not of which tenant.

Durations are counted by a histogram of our own, any number of equal ones in one step and without a lock:
`prometheus_client.Histogram` takes one at a time and two locks for each, 4 µs, a tenth of a small batch.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, get_args

import numpy as np
from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from processor.core.events.columns import UNPRICED_FLAG, Rows
from processor.core.events.event import Code
from processor.core.events.source import Api
from processor.core.tables.table_rows import NEVER
from server.errors import Reason, Refused


class _Series:
    """The observations of one value of the label."""

    __slots__ = ("counts", "seconds")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        """In each bucket by itself."""
        self.seconds = 0.0


class Durations(Collector):
    """Seconds, by the one label `label` with the `values` that it may have. For one event loop."""

    def __init__(
        self,
        name: str,
        text: str,
        bounds: Sequence[float],
        registry: CollectorRegistry,
        label: str | None = None,
        values: Sequence[str] = ("",),
    ) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._label = label
        self._series = {value: _Series(len(bounds) + 1) for value in values}
        registry.register(self)

    def observe(self, seconds: float, times: int = 1, value: str = "") -> None:
        """Count a duration, `times` times."""
        series = self._series[value]
        series.counts[bisect_left(self._bounds, seconds)] += times
        series.seconds += seconds * times

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        labels = [] if self._label is None else [self._label]
        family = HistogramMetricFamily(self._name, self._text, labels=labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for value, series in self._series.items():
            buckets = list(zip(names, map(float, accumulate(series.counts)), strict=True))
            family.add_metric([value] if labels else [], buckets, series.seconds)
        yield family


disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each one, which nobody asks for

ACK_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
VISIBLE_SECONDS: Final = (0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

NOT_OF_BATCHES: Final[frozenset[Reason]] = frozenset(
    {
        "range_too_wide",
        "too_deep",
        "method_not_allowed",
        "query_too_heavy",
        "internal",
        "event_store_off",
        "disk_full",
        "queries_busy",
        "event_store_missing",
    }
)
"""Reasons for which no batch is refused; they get no series."""

DROPPED: Final = ("http", "database", "rpc", "messaging", "other")
"""What spans were of that are dropped."""
BAD: Final = ("no_ids", "bad_time", "unreadable", "rejected")
"""Why spans could be no events; `rejected`: as an event they are not valid."""

MAX_WAITING: Final = 65_536
"""Batches of a partition that are remembered until they are visible; further ones are merged with the last one."""


class _Batch(Struct):
    offset: int
    events: int
    at: float
    count: int
    """Batches that became durable with it."""


class WaitingBatches:
    """Batches of this process that are durable but not in the tables yet, by partition."""

    def __init__(self) -> None:
        self._batches: dict[int, deque[_Batch]] = {}

    def add(self, partition: int, offset: int, events: int, at: float, count: int = 1) -> None:
        """Note that `events` of `count` batches are durable at `offset` since the instant `at` (monotonic seconds)."""
        batches = self._batches.setdefault(partition, deque())
        if len(batches) < MAX_WAITING:
            batches.append(_Batch(offset, events, at, count))
        else:
            batches[-1].offset = max(offset, batches[-1].offset)
            batches[-1].events += events

    def pop(self, position: Mapping[int, int]) -> Iterator[tuple[float, int]]:
        """Remove the batches that a view at `position` contains; yield the instants at which they became durable, and
        how many did."""
        for partition, batches in self._batches.items():
            held = position.get(partition, NEVER)
            while batches and batches[0].offset <= held:
                batch = batches.popleft()
                yield batch.at, batch.count

    def events(self) -> dict[int, int]:
        """Return partition -> events that are waiting."""
        return {partition: sum(each.events for each in batches) for partition, batches in self._batches.items()}

    def since(self) -> dict[int, float]:
        """Return partition -> since when the first batch is waiting; only partitions with any."""
        return {partition: batches[0].at for partition, batches in self._batches.items() if batches}


class Meters:
    """The instruments of one process, in a registry of their own. For one event loop.

    `position` returns what the tables contain now, partition -> offset.
    """

    def __init__(self, position: Callable[[], Mapping[int, int]] = dict) -> None:
        self._position = position
        self.registry = CollectorRegistry(auto_describe=True)
        self.waiting = WaitingBatches()
        taken = self._counter("events_accepted", "Events that were acknowledged, duplicates among them", "door")
        self._rejected = self._counter("events_rejected", "Events that were not valid", "door", "code")
        without = self._counter("events_without_cost", "Events that came without a cost, by what priced them", "price")
        self._listed, self._unpriced = without.labels("list"), without.labels("none")
        batches = self._counter("batches_accepted", "Batches of which at least one event was acknowledged", "door")
        self._refused = self._counter("batches_refused", "Batches that were refused whole", "door", "reason")
        apis: tuple[Api, ...] = get_args(Api)
        self._ack = Durations(
            "spendstream_ack_seconds",
            "Seconds from when a batch was read until it was durable and acknowledged",
            ACK_SECONDS,
            self.registry,
            "door",
            apis,
        )
        self._visible = Durations(
            "spendstream_visible_seconds",
            "Seconds from when a batch was durable until the tables contained it, in each partition it went to",
            VISIBLE_SECONDS,
            self.registry,
        )
        self._taken = {api: (batches.labels(api), taken.labels(api)) for api in apis}
        self._spans = self._counter("otlp_spans", "Spans that were taken, by what they became", "kind")
        self._dropped = self._counter(
            "otlp_spans_dropped", "Spans of nothing with models, by what they were of", "reason"
        )
        self._bad = self._counter("otlp_spans_bad", "Spans that could be no event", "reason")
        self._begin_at_zero(apis)

    def _begin_at_zero(self, apis: Iterable[Api]) -> None:
        """Have all series exist from the start: a rate needs an initial zero."""
        for kind in ("call", "span"):
            self._spans.labels(kind)
        for reason in DROPPED:
            self._dropped.labels(reason)
        for reason in BAD:
            self._bad.labels(reason)
        for api in apis:
            for code in get_args(Code):
                self._rejected.labels(api, code)
            for reason in sorted(set(get_args(Reason)) - NOT_OF_BATCHES):
                self._refused.labels(api, reason)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"spendstream_{name}", text, labels, registry=self.registry)

    def accepted(
        self,
        api: Api,
        offsets: Mapping[int, int],
        events: Mapping[int, int],
        began: float,
        at: float,
        count: int = 1,
        shares: Mapping[int, int] | None = None,
    ) -> None:
        """Count `count` batches that are durable since `at` (monotonic seconds, as `began`); mappings are by partition.

        `shares`: how many of the batches have events there; None: all.
        """
        batches, taken = self._taken[api]
        batches.inc(count)
        taken.inc(sum(events.values()))
        self._ack.observe(at - began, count, api)
        held = self._position()
        for partition, offset in offsets.items():
            there = count if shares is None else shares[partition]
            if offset <= held.get(partition, NEVER):  # visible already, before this coroutine ran
                self._visible.observe(0, there)
            else:
                self.waiting.add(partition, offset, events[partition], at, there)

    def priced(self, parts: Iterable[Rows]) -> None:
        """Count what came without a cost among acknowledged calls: what a price list has priced, and what none has."""
        for rows in parts:
            self._listed.inc(int(np.count_nonzero(rows["cost_source"] > 1)))  # 1 is the sender
            self._unpriced.inc(int(np.count_nonzero(rows["flags"] & UNPRICED_FLAG)))

    def rejected(self, api: Api, code: Code) -> None:
        """Count an event that was not valid."""
        self._rejected.labels(api, code).inc()

    def refused(self, api: Api, refused: Refused) -> None:
        """Count a batch that was refused with all its events."""
        self._refused.labels(api, refused.reason).inc()
        for item in refused.rejected:
            self.rejected(api, item.code)

    def spans(self, kind: str, count: int) -> None:
        """Count spans that are durable, as calls or as spans."""
        self._spans.labels(kind).inc(count)

    def dropped_spans(self, reason: str, count: int) -> None:
        """Count spans that were dropped."""
        self._dropped.labels(reason).inc(count)

    def bad_spans(self, reason: str, count: int) -> None:
        """Count spans that could be no event."""
        self._bad.labels(reason).inc(count)

    def seen(self, position: Mapping[int, int], at: float) -> None:
        """Observe the batches that became visible: the tables contain everything up to `position`."""
        for since, count in self.waiting.pop(position):
            self._visible.observe(at - since, count)
