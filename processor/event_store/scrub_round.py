"""How far the check of a store's files is, partition by partition, over restarts: see `processor.event_store.scrub`.

A round goes through the segments of a partition in the order of their offsets, at an even pace of bytes. What is merged
meanwhile is compared with its digests then, and written anew.
"""

import re
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from processor.event_store.manifest import Segment
from processor.event_store.segment_storage import SegmentStorage

_FILE: Final = "scrub-{:04d}.json"
"""Beside the segments, one a partition."""
_IS_FILE: Final = re.compile(r"scrub-\d{4,}\.json").fullmatch


class Round(Struct, frozen=True, omit_defaults=True):
    """One round over a partition. Times are microseconds since the epoch."""

    partition: int
    began: int
    position: int = 0
    """The first offset whose segment has not been checked."""
    damaged: int = 0
    """Damaged segments that were found, in all rounds."""
    whole: int | None = None
    """When the last round began that went through all segments: none has gone unchecked since. None: no round has."""

    def due(self, live: Sequence[Segment], period: int) -> int:
        """Return when the next segment is to be checked, or the round is to end: `live` are all that have files, and a
        round takes `period`."""
        total = sum(map(_size, live))
        before = sum(_size(each) for each in live if each.start < self.position)
        return self.began + (period * before // total if total else period)

    def next(self, live: Sequence[Segment]) -> Segment | None:
        """Return the segment that comes next; None: the round has come to its end."""
        return next((each for each in live if each.start >= self.position), None)

    def behind(self, segment: Segment, *, is_damaged: bool) -> "Round":
        """Return the round behind a segment that was checked."""
        return replace(self, position=segment.end, damaged=self.damaged + is_damaged)

    def ended(self, now: int, period: int) -> "Round":
        """Return the next round: it begins a period after this one did, or now where that is past."""
        began = max(self.began + period, now)
        return Round(self.partition, began, damaged=self.damaged, whole=self.began)


def _size(segment: Segment) -> int:
    return segment.parquet_bytes + segment.index_bytes


class Rounds:
    """The rounds of the partitions of a store, in files beside it. Calls block, and raise `OSError`."""

    def __init__(self, storage: SegmentStorage) -> None:
        self._storage = storage

    def of(self, partition: int, now: int, period: int) -> Round:
        """Return the round of a partition; a new one where there is none, or a clock that was wrong has set its begin
        to where no round can begin."""
        found = _read(self._storage, _FILE.format(partition))
        if found is None:
            return Round(partition, now)
        return found if found.began <= now + period else replace(found, began=now)

    def keep(self, found: Round) -> None:
        """Write a round down."""
        put = self._storage.put([_FILE.format(found.partition)])
        try:
            put.files[0].write(msgspec.json.encode(found))
            put.commit()
        finally:
            put.discard()


def read_rounds(storage: SegmentStorage) -> list[Round]:
    """Return all rounds that were written down. Blocks; raises `OSError`."""
    found = [_read(storage, each.name) for each in storage.list() if _IS_FILE(each.name)]
    return [each for each in found if each is not None]


def _read(storage: SegmentStorage, name: str) -> Round | None:
    try:
        with storage.get(name) as file:
            return msgspec.json.decode(file.read(), type=Round)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def age(rounds: Sequence[Round], now: int) -> float | None:
    """Return within how many seconds every segment was checked or written; None: some were never."""
    begins = [each.whole for each in rounds]
    known = [each for each in begins if each is not None]
    return max(now - min(known), 0) / 1e6 if known and len(known) == len(begins) else None
