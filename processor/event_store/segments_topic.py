"""The topic of segments, and the catalog that follows from it, for a store that writes it."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from processor.event_store import manifest as manifests
from processor.event_store.catalog import Catalog
from processor.event_store.manifest import Manifest
from processor.log.errors import LogUnavailable
from processor.log.port import LogWriter, polls
from processor.log.records import Append, TopicPartition
from processor.log.topics import SEGMENTS

TP: Final = TopicPartition(SEGMENTS, 0)

BURIED: Final = 60.0
"""Seconds for which a record and its tombstone stay in the embedded log: those who follow the topic have read both."""

SLEPT: Final = 45.0
"""Seconds without a read after which a reader of the topic begins anew: records that tell of a replacement, and their
tombstones, are deleted `BURIED` seconds after they were written."""


def awake() -> float:
    """Return seconds that go on also while the process is suspended or the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


PATIENCE: Final = 10.0
"""Seconds until what was appended must be there to be read."""

Delete = Callable[[TopicPartition, Sequence[int]], None]
"""`Log.delete` of the embedded log."""


class _Buried(NamedTuple):
    at: float
    offsets: tuple[int, ...]


class SegmentsTopic:
    """Reads the topic to its end whenever asked, and appends to it. For one thread at a time; calls block.

    `delete` compacts the embedded log; None: a broker does. `clock` gives seconds that grow also while the machine
    sleeps. All methods raise `LogError`, and may be repeated after `LogUnavailable`.
    """

    def __init__(
        self,
        log: LogWriter,
        now: Callable[[], int],
        delete: Delete | None = None,
        clock: Callable[[], float] = awake,
    ) -> None:
        self._log = log
        self._now = now
        self._delete = delete
        self._clock = clock
        self._read_at = clock()
        self._begin()

    def _begin(self) -> None:
        self.catalog = Catalog()
        self._position = 0
        self._offsets: dict[bytes, int] = {}
        """Key of a record without a tombstone -> its offset."""
        self._buried: deque[_Buried] = deque()

    def read_on(self) -> Catalog:
        """Read to the end of the topic; return the catalog."""
        at = self._clock()
        if at - self._read_at > SLEPT:
            self._begin()
        for records in polls(self._log.read, TP, self._position):
            for record in records:
                self.catalog.apply(record.offset, record.key, record.value)
                self._position = record.offset + 1
                key = record.key or b""
                if record.value is not None:
                    self._offsets.setdefault(key, record.offset)
                    continue
                known = self._offsets.pop(key, None)
                if self._delete is not None:
                    gone = (record.offset,) if known is None else (known, record.offset)
                    self._buried.append(_Buried(at, gone))
        self._read_at = at
        return self.catalog

    def known(self) -> set[str]:
        """Return the ids of all segments that have a record, whether they count or not."""
        return {key.decode() for key in self._offsets}

    def append(self, found: Iterable[Manifest]) -> Catalog:
        """Append manifests, in this order; return the catalog, which says which of them count.

        Raises `LogUnavailable`: then they may be in the topic, or still come. Never append one of them again.
        """
        return self._append([(each.segment.id.encode(), manifests.encode(each)) for each in found])

    def bury(self, names: Iterable[str]) -> None:
        """Append tombstones for the records of these segments, in this order (see `catalog`)."""
        self._append([(name.encode(), None) for name in names])

    def _append(self, records: Sequence[tuple[bytes, bytes | None]]) -> Catalog:
        """Append records, and read on until they have been read: a broker may show them a moment later."""
        if not records:
            return self.read_on()
        [first] = self._log.append([Append(TP, records)], self._now())
        deadline = time.monotonic() + PATIENCE
        while self.read_on() is not None and self._position < first + len(records):
            if time.monotonic() > deadline:
                raise LogUnavailable("what was appended to the topic of segments cannot be read")
            time.sleep(0.01)
        return self.catalog

    def compact(self) -> int:
        """Delete records of the embedded log that have had a tombstone for long enough; return how many."""
        due: list[int] = []
        while self._buried and self._clock() - self._buried[0].at > BURIED:
            due += self._buried.popleft().offsets
        if due and self._delete is not None:
            self._delete(TP, sorted(due))
        return len(due)
