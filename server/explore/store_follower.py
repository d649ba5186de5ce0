"""The thread that follows the manifests of segments, and notes how far the log goes."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from processor.event_store.catalog import Catalog
from processor.event_store.first_build import BuildReport, FirstBuild
from processor.event_store.manifest import ManifestError, Segment
from processor.event_store.segments_topic import SLEPT, awake
from processor.leases.stated_arrivals import STATED, StatedArrivals
from processor.log import under_way
from processor.log.address import LogAddress
from processor.log.following import FollowerThread
from processor.log.records import Record, TopicPartition
from processor.log.topics import EVENTS, SEGMENTS
from processor.structured_log import get_logger
from server.explore.completeness import Completeness

LOOK: Final = 0.05
"""Seconds between two looks for new manifests."""
NOTE_EVERY: Final = 0.1
"""Seconds between two looks at the ends of the log."""


class StoreState(Struct, frozen=True):
    """The store at one moment."""

    segments: tuple[Segment, ...] = ()
    """The live ones, by partition and start."""
    reached: Mapping[int, int] = {}
    """Partition -> first offset that is in no segment."""
    arrivals: Mapping[int, int] = {}
    """Partition -> newest arrival in the store."""

    @classmethod
    def of(cls, catalog: Catalog) -> "StoreState":
        """Return the present state of a catalog."""
        segments = tuple(catalog.live())
        arrivals: dict[int, int] = {}
        for each in segments:
            arrivals[each.partition] = max(each.arrival_max, arrivals.get(each.partition, 0))
        return cls(segments, dict(catalog.reached), arrivals)


_TOPIC: Final = TopicPartition(SEGMENTS, 0)


class StoreFollower(FollowerThread):
    """Tails `spendstream.segments`. `notify` is called in this thread whenever `state` has changed.

    After `SLEPT` seconds without a round, by `awake`, it reads the topic anew; until it has, `state` is the old one.
    """

    def __init__(
        self,
        address: LogAddress,
        partitions: int,
        clock: Callable[[], int],
        notify: Callable[[], None],
        awake: Callable[[], float] = awake,
    ) -> None:
        super().__init__("segments", address.tail([_TOPIC], LOOK))
        self.state = StoreState()
        self.completeness = Completeness()
        self.behind: Mapping[int, int] = {}
        """Partition -> messages of the log that are in no segment, at the last look."""
        self.building: BuildReport | None = None
        """How far a store is that has much to go through; None: it keeps up."""
        self._build = FirstBuild()
        self._address = address
        self._tps = [TopicPartition(EVENTS, number) for number in range(partitions)]
        self._clock = clock
        self._notify = notify
        self._catalog = Catalog()
        self._awake = awake
        self._looked = awake()
        self._version = -1
        self._is_behind = False
        """Whether the catalog has less than `state`."""
        self._noted = float("-inf")
        self._ends: Callable[[], tuple[int, dict[int, int]]] | None = None
        self._stated: StatedArrivals | None = None
        """Of API processes of all hosts; on the embedded log all are on this one."""
        if address.kafka is not None:
            self._stated = StatedArrivals(lambda: address.tail([STATED], LOOK), clock)

    def read_on(self) -> None:
        at = self._awake()
        if at - self._looked > SLEPT:
            self._begin_anew()
        self._looked = at
        self._note_ends()
        for _, records in self._tail.poll():
            for record in records:
                self._apply(record)
            if self._stopping.is_set():
                return
        has_changed = self._catalog.version != self._version
        if has_changed and (self._tail.is_current or not self._is_behind):
            self._is_behind = False
            self._version = self._catalog.version
            self.state = StoreState.of(self._catalog)
            self._notify()
        if self._tail.is_current and not self.read_all.is_set():
            self.read_all.set()
            self._notify()

    def _begin_anew(self) -> None:
        get_logger().warning("manifests.read_anew")
        self._tail.close()
        self._tail = self._address.tail([_TOPIC], LOOK)
        self._catalog = Catalog()
        self._version, self._is_behind = -1, True

    def _apply(self, record: Record) -> None:
        try:
            self._catalog.apply(record.offset, record.key, record.value)
        except ManifestError as error:
            get_logger().error("manifest.ignored", offset=record.offset, error=str(error))

    def _before_ends(self) -> int:
        """The latest arrival of which all is before ends that are asked for from now on: what is under way no more.
        Raises `LogUnavailable`, `OSError`."""
        at = self._clock() - 1  # another may come in this very microsecond
        first = under_way.earliest(self._address.data_dir)
        here = at if first is None else min(at, first - 1)
        return here if self._stated is None else min(here, self._stated.before())

    def _note_ends(self) -> None:
        if time.monotonic() - self._noted < NOTE_EVERY:
            return
        if self._ends is None:  # its connection is for the thread that makes it
            self._ends = self._address.ends_since(self._tps, self._before_ends)
        at, last = self._ends()
        ends = {partition: offset + 1 for partition, offset in last.items()}
        self.completeness.note(at, ends)
        self._noted = time.monotonic()
        reached = self.state.reached
        self.behind = {partition: max(end - reached.get(partition, 0), 0) for partition, end in ends.items()}
        if self.read_all.is_set():
            found = self._build.look(sum(self.behind.values()), self._noted)
            self.building = None if found is None or found.is_last else found
