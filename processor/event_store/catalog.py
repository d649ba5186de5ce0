"""The catalog: which segments count, from the records of `spendstream.segments` in the order of that topic.

The live segments of a partition follow each other without a gap from offset 0 to `reached`. A manifest counts only if

- it continues (`fresh`, `gap`): its start is where the partition has been reached;
- it replaces (`merged`, `expired`): the segments that it names are live, and cover exactly its range.

All others are ignored: they are of a store that was paused, lost its partition and woke up. So any number of stores may
write about a partition, and every reader accepts the same manifests.

The topic is compacted: the store deletes the records of replaced segments. A reader that begins later sees a
replacement without what it replaced, and accepts it where the partition has been reached; what it cannot accept yet
waits, and is tried again, in the order of the topic, when the partition gets further. For this to end with the same
segments, a store that has read all writes tombstones for the ignored records first, then for replaced ones in the order
of the topic: so an ignored record that a reader still sees comes after everything that tells why it is ignored.

A manifest of a higher generation than the present one, from offset 0 on, begins the partition anew: the segments before
it count no longer. A store writes one when files of live segments are missing.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import NamedTuple

from processor.event_store import manifest as manifests
from processor.event_store.manifest import APPENDING, Manifest, Segment


class ListedRecord(NamedTuple):
    """A record of the topic."""

    offset: int
    """Its offset in the topic of segments."""
    manifest: Manifest

    @property
    def segment(self) -> Segment:
        """The segment that it is about."""
        return self.manifest.segment


class Catalog:
    """The segments of all partitions. For one thread at a time."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self._homes: dict[bytes, int] = {}
        """Key of a record that is there -> its partition."""
        self.version = 0
        """Grows with every record, so whenever the live segments may have changed."""

    def apply(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        """Apply one record, in the order of the topic. Raises `ManifestError`, and has not changed then."""
        if value is None:
            home = self._homes.pop(key or b"", None)
            if home is not None:
                self._partitions[home].forget((key or b"").decode())
                self.version += 1
            return
        found = manifests.decode(key, value)
        self._homes[key or b""] = found.segment.partition
        self._partitions.setdefault(found.segment.partition, _Partition()).add(ListedRecord(offset, found))
        self.version += 1

    def live(self, partition: int | None = None) -> list[Segment]:
        """Return the segments that count, of one partition or of all, ordered by partition and start."""
        numbers = sorted(self._partitions) if partition is None else [partition]
        return [segment for number in numbers for segment in self._of(number).live]

    @property
    def reached(self) -> dict[int, int]:
        """Partition -> the first offset of the events that no segment covers; only partitions that have a segment."""
        current = {number: self._of(number).reached for number in self._partitions}
        return {number: offset for number, offset in current.items() if offset}

    def generation(self, partition: int) -> int:
        """Return the generation of a partition's live segments; 0 if there are none."""
        return self._of(partition).generation

    def ignored(self, partition: int | None = None) -> list[ListedRecord]:
        """Return the records that do not count and never did, in the order of the topic.

        For a reader that has read all of the topic. While it has not, some of them may still be accepted.
        """
        return self._listed(partition, _Partition.ignored)

    def replaced(self, partition: int | None = None) -> list[ListedRecord]:
        """Return the records of segments that others stand for, in the order of the topic."""
        return self._listed(partition, _Partition.replaced)

    def is_whole(self, partition: int) -> bool:
        """Return whether no record waits for one that is missing.

        False for a reader that has read all: records of the partition were lost, and it has to begin anew.
        """
        return self._of(partition).is_whole

    def _of(self, number: int) -> "_Partition":
        found = self._partitions.get(number)
        if found is None:
            return _Partition()
        found.refresh()
        return found

    def _listed(
        self, partition: int | None, select: "Callable[[_Partition], Iterable[ListedRecord]]"
    ) -> list[ListedRecord]:
        numbers = sorted(self._partitions) if partition is None else [partition]
        found = [each for number in numbers for each in select(self._of(number))]
        return sorted(found, key=lambda each: each.offset)


class _Partition:
    """The records of one partition that are there, and what follows from them."""

    def __init__(self) -> None:
        self._records: dict[str, ListedRecord] = {}
        """All that are there, in the order of the topic."""
        self._is_stale = False
        self._begin(0)
        self.waiting: dict[str, ListedRecord] = {}
        """Those that were not accepted."""

    def _begin(self, generation: int) -> None:
        self.generation = generation
        self.live: list[Segment] = []
        self.reached = 0

    def add(self, record: ListedRecord) -> None:
        """Apply a manifest."""
        name = record.segment.id
        if name in self._records:  # nobody writes one twice
            return
        self._records[name] = self.waiting[name] = record
        if not self._is_stale:
            self._accept_waiting(record)

    def forget(self, name: str) -> None:
        """Apply a tombstone.

        Of a record that counted: what follows from the others is found out anew, for the reader may have come through
        the topic while it was being compacted, and have missed what this one stands for.
        """
        if self._records.pop(name, None) is not None and self.waiting.pop(name, None) is None:
            self._is_stale = True

    def refresh(self) -> None:
        """Bring everything up to date after tombstones."""
        if self._is_stale:
            self._is_stale = False
            records, self._records, self.waiting = self._records, {}, {}
            self._begin(0)
            for record in records.values():
                self.add(record)

    def _accept_waiting(self, newest: ListedRecord) -> None:
        """Accept the newest record if it counts, then those that have waited for it: the earliest that can be, again
        and again."""
        if not self._accept(newest.manifest):
            return
        del self.waiting[newest.segment.id]
        while True:
            found = next((each for each in self.waiting.values() if self._accept(each.manifest)), None)
            if found is None:
                return
            del self.waiting[found.segment.id]

    def _accept(self, manifest: Manifest) -> bool:
        """Apply a manifest if it counts; return whether it does."""
        segment = manifest.segment
        if manifest.generation != self.generation:
            if manifest.generation < self.generation or segment.start:
                return False
            self._begin(manifest.generation)
        if segment.start == self.reached:
            self.live.append(segment)
            self.reached = segment.end
            return True
        if manifest.kind in APPENDING:
            return False
        first = bisect_left(self.live, segment.start, key=lambda each: each.start)
        end = bisect_left(self.live, segment.end, key=lambda each: each.start)
        covered = self.live[first:end]
        names = set(manifest.replaces)
        is_exact = bool(covered) and covered[0].start == segment.start and covered[-1].end <= segment.end
        if not is_exact or any(each.id not in names for each in covered):
            return False
        if covered[-1].end < segment.end and covered[-1].end != self.reached:  # what is missing can only be at the end
            return False
        self.live[first:end] = [segment]
        self.reached = max(self.reached, segment.end)
        return True

    @property
    def is_whole(self) -> bool:
        """See `Catalog.is_whole`: whoever wrote these records had seen the segments before them."""
        return not any(
            each.manifest.generation > self.generation
            or (each.manifest.generation == self.generation and self._needs(each.manifest) > self.reached)
            for each in self.waiting.values()
        )

    @staticmethod
    def _needs(manifest: Manifest) -> int:
        """Return how far the partition had been reached at least when the manifest was written."""
        return manifest.segment.start if manifest.kind in APPENDING else manifest.segment.end

    def _names_replaced(self) -> set[str]:
        accepted = (each for name, each in self._records.items() if name not in self.waiting)
        return {name for each in accepted for name in each.manifest.replaces}

    def ignored(self) -> Iterable[ListedRecord]:
        """Return the records that wait, but for those that others replace or that an earlier generation has left."""
        replaced = self._names_replaced()
        return [
            each
            for name, each in self.waiting.items()
            if name not in replaced and each.manifest.generation == self.generation
        ]

    def replaced(self) -> Iterable[ListedRecord]:
        """Return the records that were accepted and count no longer, and all of earlier generations."""
        live = {segment.id for segment in self.live}
        ignored = {each.segment.id for each in self.ignored()}
        return [
            each
            for name, each in self._records.items()
            if name not in live and name not in ignored and each.manifest.generation <= self.generation
        ]
