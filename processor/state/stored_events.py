"""Compare the events in the event store with those of the log: row by row, and by user, day and model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from processor.core.events.message import Message
from processor.core.partitioning import U64
from processor.core.tables.apply import Tables
from processor.core.tables.row_sums import SUMS, RowSums
from processor.event_store import row_places, stored_sums
from processor.event_store.catalog import Catalog
from processor.event_store.directory_storage import DirectoryStorage
from processor.event_store.manifest import Segment
from processor.event_store.row_places import RowPlaces
from processor.event_store.stored_sums import DamagedSegment, Place
from processor.ids.index import IdIndex
from processor.log.port import LogReader, polls
from processor.log.records import TopicPartition
from processor.log.topics import SEGMENTS

ATTEMPTS: Final = 5
"""How often to begin again when segments are replaced while they are read."""

FORGET: Final = 500
"""Messages after which the list of changed rows, which is not needed, is dropped."""


class StoredEvents:
    """What the event store holds of one partition, as of now, beside what it should hold.

    `before`: messages from this offset on are not compared. `ids` has every id that was counted, with the offset of the
    message that did, once the messages are given to `add`.
    """

    def __init__(self, log: LogReader, number: int, directory: Path, ids: IdIndex, first: int, before: int) -> None:
        self._log = log
        self._number = number
        self._directory = directory
        live = self._live()
        kept = max((each.end for each in live if each.is_absent), default=0)
        self.start = max(kept, first)
        """The first message whose events the store has to hold."""
        self.end = min(live[-1].end if live else 0, before)
        """The offset after the last message that is compared."""
        self._ids = ids
        self._expected = Tables(number, log.salt, ids)
        self._expected_rows = RowPlaces()
        self._messages = 0

    def _live(self) -> list[Segment]:
        if SEGMENTS not in self._log.topics():
            return []
        catalog = Catalog()
        for records in polls(self._log.read, TopicPartition(SEGMENTS, 0)):
            for record in records:
                catalog.apply(record.offset, record.key, record.value)
        return catalog.live(self._number)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compare."""
        return self.start >= self.end

    def add(self, offset: int, decoded: Message) -> None:
        """Note what a message counts, after its ids have been claimed."""
        if self.start <= offset < self.end:
            keys = self._expected.prepare(decoded)
            self._expected.apply(offset, decoded, keys)
            rows = _kept_rows(keys, self._ids.find(keys)[0] == offset)
            self._expected_rows.add(np.full(len(rows), offset), rows)
            self._messages += 1
            if self._messages % FORGET == 0:
                self._expected.drain_changes()

    def differences(self) -> Iterator[str]:
        """Yield what differs, a sentence each."""
        read = self._found()
        if isinstance(read, str):
            yield read
            return
        found, rows = read
        for first, last, there, wanted in rows.differences(self._expected_rows):
            what = (
                f"{there} rows instead of {wanted}"
                if there != wanted
                else f"{there} rows, not all of them the right ones"
            )
            yield f"the event store has of the messages {self._number}:{first} to {last}: {what}"
        for place, row in self._expected.users.rows():
            key = (place.project, place.user, place.day, place.provider, place.model, place.environment)
            expected = RowSums(*(getattr(row, name) for name in SUMS))
            stored = found.pop(key, RowSums())
            if stored != expected:
                yield _difference(key, stored, expected)
        for key, stored in found.items():
            yield _difference(key, stored, RowSums())

    def _found(self) -> tuple[dict[Place, RowSums], RowPlaces] | str:
        missing = ""
        for _ in range(ATTEMPTS):
            live = [each for each in self._live() if each.has_files and each.start < self.end]
            try:
                for each in live:
                    stored_sums.check(DirectoryStorage(self._directory), each)
                sums = stored_sums.add_up(self._directory, live, self.start, self.end)
                return sums, row_places.of_segments(self._directory, live, self.start, self.end)
            except FileNotFoundError as error:
                missing = str(error.filename)
            except DamagedSegment as error:
                return f"{self._directory}/{error}"
        return f"the event store lacks {missing}: restart the store, which makes the partition anew from the log"


def _kept_rows(keys: U64, is_claimed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the rows of a message that are kept: the first one with each of the keys that it has claimed."""
    rows = np.flatnonzero(is_claimed)
    order = np.lexsort((keys[rows, 0], keys[rows, 1]))  # stable: of equal keys the first row comes first
    ordered = keys[rows[order]]
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return rows[order[is_first]]


def _difference(place: Place, stored: RowSums, expected: RowSums) -> str:
    pairs = [(name, getattr(stored, name), getattr(expected, name)) for name in SUMS]
    what = ", ".join(f"{name} {found} instead of {wanted}" for name, found, wanted in pairs if found != wanted)
    return f"the event store has for {' '.join('(none)' if part is None else str(part) for part in place)}: {what}"
