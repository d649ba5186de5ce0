"""A store without Faust and without Parquet: messages are read from the log, segments are JSON."""

import json
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from msgspec.structs import replace
from numpy.typing import NDArray

from processor.core.events import message
from processor.core.events.message import Message
from processor.event_store.catalog import Catalog
from processor.event_store.directory_storage import DirectoryStorage
from processor.event_store.manifest import ProjectSums, Segment
from processor.event_store.segment_storage import SegmentStorage
from processor.event_store.segments_topic import SegmentsTopic
from processor.event_store.store import Store
from processor.event_store.store_directory import StoreDirectory
from processor.log.address import LogAddress
from processor.log.records import TopicPartition
from processor.log.topics import EVENTS


class JsonWriter:
    """Rows are [project, offset, index, event id, arrival, cost], sorted."""

    def __init__(self, directory: Path, storage: SegmentStorage | None = None) -> None:
        self.directory = directory
        self.storage = storage or DirectoryStorage(directory)
        self.error: OSError | None = None
        """Raised instead of writing."""

    def table_of(self, found: Message, partition: int, offset: int, kept: NDArray[np.bool_]) -> Any:
        rows, index = [], 0
        for request, events in message.events(found):
            for event in events:
                if kept[index]:
                    source = request.source
                    rows.append([source.project, offset, index, event.event_id, source.arrival, event.cost])
                index += 1
        return rows

    def size_of(self, table: Any) -> int:
        return len(json.dumps(table))

    def write(self, tables: Sequence[Any], segment: Segment, payload_before: int) -> Segment:
        return self._write([row for table in tables for row in table], segment)

    def merge(
        self,
        parts: Sequence[Segment],
        segment: Segment,
        payload_before: int,
        between: Callable[[], None] = lambda: None,
    ) -> Segment:
        rows: list[Any] = []
        for part in parts:
            between()
            rows += read_rows(self.storage, part)
        return self._write(rows, segment)

    def _write(self, rows: list[Any], segment: Segment) -> Segment:
        if self.error is not None:
            raise self.error
        text = json.dumps(sorted(rows)).encode()
        made = self.storage.put([f"{segment.id}.idx", f"{segment.id}.parquet"])
        made.files[1].write(text)
        made.commit()
        arrivals = [row[4] for row in rows]
        return replace(
            segment,
            rows=len(rows),
            parquet_bytes=len(text),
            parquet_digest=xxhash.xxh3_128_hexdigest(text),
            index_digest=xxhash.xxh3_128_hexdigest(b""),
            arrival_min=min(arrivals),
            arrival_max=max(arrivals),
            projects=tuple(_sums(rows)),
        )


def _sums(rows: list[Any]) -> Iterator[ProjectSums]:
    for project in sorted({row[0] for row in rows}):
        found = [row for row in rows if row[0] == project]
        yield ProjectSums(
            project=project,
            rows=len(found),
            calls=len(found),
            errors=0,
            input_tokens=0,
            output_tokens=0,
            cached_tokens=0,
            cost=sum(row[5] for row in found),
            unpriced=0,
            time_min=0,
            time_max=0,
            first_row=0,
        )


def read_rows(place: Path | SegmentStorage, segment: Segment) -> list[Any]:
    if not segment.has_files:
        return []
    storage = DirectoryStorage(place) if isinstance(place, Path) else place
    with storage.get(f"{segment.id}.parquet") as file:
        found: list[Any] = json.load(file)
    return found


class _Delivered:
    key: bytes | None = None
    is_damaged = False

    def __init__(self, partition: int, offset: int, value: bytes | None, acks: list[tuple[int, int]]) -> None:
        self.partition = partition
        self.offset = offset
        self.value = value
        self._acks = acks

    def ack(self) -> None:
        self._acks.append((self.partition, self.offset))


class StoreInProcess:
    """A store over an embedded log, driven by hand."""

    def __init__(
        self,
        data_dir: Path,
        now: int = 0,
        payload_retention: int | None = None,
        writer: Callable[[Path], Any] = JsonWriter,
        storage: SegmentStorage | None = None,
    ) -> None:
        self.address = LogAddress(data_dir)
        self.path = data_dir / "events"
        self.writer = writer(self.path) if storage is None else JsonWriter(self.path, storage)
        self.now = now
        self.acks: list[tuple[int, int]] = []
        self.held: list[int] = []
        self.went_on: list[int] = []
        self.on_going_on: Callable[[], Awaitable[None]] | None = None
        """Awaited before a partition goes on."""
        self.directory = StoreDirectory(self.path, 0, storage)
        self.storage = self.directory.storage
        self.path.mkdir(parents=True, exist_ok=True)
        self.store = Store(
            self.address,
            self.directory,
            self.writer,
            lambda: self.now,
            payload_retention,
            self.held.append,
            self._go_on,
        )

    async def _go_on(self, number: int) -> None:
        if self.on_going_on is not None:
            await self.on_going_on()
        self.went_on.append(number)

    async def bring(self, numbers: Sequence[int]) -> None:
        await self.store.bring(numbers)

    def deliver(self, without: Collection[tuple[int, int]] = (), most: int = 1_000_000) -> None:
        """Deliver everything that the log has from where the store has to go on, or `most` messages of each partition,
        but some, by partition and offset."""
        with closing(self.address.open()) as log:
            for number in sorted(self.store.owned):
                for record in log.read(TopicPartition(EVENTS, number), self.store.reached(number), most, 1 << 40):
                    if (number, record.offset) not in without:
                        self.store.deliver(_Delivered(number, record.offset, record.value, self.acks))

    async def cut(self) -> None:
        """Cut until nothing is left that is complete."""
        while await self.store.cut():
            pass

    def catalog(self) -> Catalog:
        """The catalog as a reader that begins now sees it."""
        with closing(self.address.open()) as log:
            return SegmentsTopic(log, lambda: 0).read_on()

    def rows(self) -> list[Any]:
        """The rows of all live segments, sorted."""
        return sorted(row for segment in self.catalog().live() for row in read_rows(self.storage, segment))
