"""The Faust transport over the embedded log: `spendstream-sqlite:///data/dir`.

One worker owns all partitions, so a "rebalance" happens once, when it subscribes; it is staged in Faust's own order, so
that its conductor, table manager and recovery work as they are. While it goes on only changelogs are fetched: Faust
resumes the source partitions before it seeks them, and would skip messages otherwise (faust-streaming issue 596).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar, cast

from faust.assignor.client_assignment import ClientAssignment
from faust.exceptions import ProducerSendError
from faust.transport import base
from faust.types import TP, ConsumerMessage, HeadersArg, RecordMetadata

from processor.log.errors import LogError
from processor.log.store import Append, Log, Record, TopicPartition
from processor.log.topics import EVENTS, GROUP

POLL: Final = 0.005
"""Seconds between two looks for new records."""

FETCH_RECORDS: Final = 64
FETCH_BYTES: Final = 8 * 1024 * 1024
"""Bounds of one fetch from one partition."""

T = TypeVar("T")


def data_dir(url: Any) -> Path:
    """The data directory a broker URL names."""
    return Path(url.path)


class Consumer(base.Consumer):
    """Reads the log on one thread; positions are kept here, committed offsets in the log."""

    consumer_stopped_errors: ClassVar[tuple[type[BaseException], ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._thread = ThreadPoolExecutor(1, "log-reader")
        self._store = Log(data_dir(self.transport.url[0]), create=False)
        self._assigned: set[TP] = set()
        self._positions: dict[TP, int] = {}
        self._ends: dict[TP, int] = {}
        self._generation = 0

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    # --- subscription -----------------------------------------------------------------------------------------------

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Take all partitions of `topics`. Returns at once: the rebalance is a task of its own."""
        counts = self._store.topics()
        self.add_future(self._rebalance({TP(topic, n) for topic in topics for n in range(counts[topic])}))

    async def _rebalance(self, assigned: set[TP]) -> None:
        app = cast(Any, self.app)
        app.on_rebalance_start()
        revoked, self._assigned = self._assigned, assigned
        await self.on_partitions_revoked(revoked)
        self._generation += 1
        app.consumer_generation_id = self._generation
        actives: dict[str, list[int]] = {}
        for tp in assigned:
            actives.setdefault(tp.topic, []).append(tp.partition)
        app.assignor._assignment = ClientAssignment(actives=actives, standbys={})
        await self.on_partitions_assigned(assigned, self._generation)

    def assignment(self) -> set[TP]:
        return set(self._assigned)

    def topic_partitions(self, topic: str) -> int | None:
        return self._store.topics().get(topic)

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        return partition

    async def create_topic(self, topic: str, partitions: int, replication: int, **kwargs: Any) -> None:
        _known(self._store, topic, partitions)

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:  # noqa: ASYNC109 - Faust's
        deadline = time.monotonic() + timeout
        while not self.should_stop and self.flow_active:
            wanted = self._fetchable(active_partitions)
            found = await self._call(self._fetch, wanted) if wanted else {}
            if found or time.monotonic() >= deadline:
                return found
            await asyncio.sleep(POLL)
        return {}

    def _fetchable(self, active: set[TP] | None) -> dict[TP, int]:
        tps = self._assigned if active is None else active & self._assigned
        if self.app.rebalancing:
            tps = {tp for tp in tps if self._is_changelog_tp(tp)}
        return {tp: self._positions[tp] for tp in tps if tp in self._positions}

    def _fetch(self, wanted: dict[TP, int]) -> dict[TP, list[Any]]:
        found: dict[TP, list[Any]] = {}
        for tp, position in wanted.items():
            records = self._store.read(TopicPartition(*tp), position, FETCH_RECORDS, FETCH_BYTES)
            if records and self._positions.get(tp) == position:
                found[tp] = records
                self._positions[tp] = self._ends[tp] = records[-1].offset + 1
        return found

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        found: Record = record
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            found.offset,
            found.at / 1e6,
            0,
            [],
            found.key,
            found.value,
            None,
            len(found.key or b""),
            len(found.value or b""),
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    # --- offsets ----------------------------------------------------------------------------------------------------

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Move every source partition to its committed offset, or to its beginning if there is none."""
        committed = await self._call(self._committed)
        self._positions.update(committed)
        return committed

    def _committed(self) -> dict[TP, int]:
        found = {}
        for tp in self._assigned:
            if tp.topic == EVENTS:
                stored = TopicPartition(*tp)
                found[tp] = self._store.committed(GROUP, stored) or self._store.first(stored)
        return found

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        await self._call(self._store.commit, GROUP, [(TopicPartition(*tp), at) for tp, at in offsets.items()])
        return True

    async def position(self, tp: TP) -> int | None:
        return self._positions.get(tp)

    async def seek_to_beginning(self, *partitions: TP) -> None:
        await self.seek_wait(await self.earliest_offsets(*partitions))

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        for tp, offset in partitions.items():
            await self._seek(tp, offset)
            if offset > 0:
                self._read_offset[tp] = offset
            else:
                self._read_offset.pop(tp, None)

    async def _seek(self, partition: TP, offset: int) -> None:
        self._positions[partition] = offset

    def highwater(self, tp: TP) -> int:
        return self._ends.get(tp, 0)

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return await self._call(lambda: {tp: self._store.first(TopicPartition(*tp)) for tp in partitions})

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return await self._call(lambda: {tp: self._store.end(TopicPartition(*tp)) for tp in partitions})

    async def on_stop(self) -> None:
        await super().on_stop()
        self._thread.shutdown()
        self._store.close()

    def close(self) -> None: ...


class Producer(base.Producer):
    """Appends to the log on one thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._thread = ThreadPoolExecutor(1, "log-writer")
        self._store = Log(data_dir(cast(Any, self.transport).url[0]), create=False)
        self._unsent: list[tuple[Append, asyncio.Future[RecordMetadata]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def append(self, appends: list[Append]) -> list[int]:
        """Append in bulk, all or nothing; durable on return. Raises `LogUnavailable`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._store.append, appends, time.time_ns() // 1000)

    async def compact(
        self, tp: TopicPartition, start: int, end: int, limit: int, is_live: Callable[[bytes, int], bool]
    ) -> tuple[int | None, int]:
        """`Log.compact` between two appends."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._store.compact, tp, start, end, limit, is_live)

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: HeadersArg | None,
        *,
        transactional_id: str | None = None,
    ) -> Awaitable[RecordMetadata]:
        """Queue one record; it is durable when the awaitable that is returned is done.

        What is queued while an append is under way goes into the next one together: Faust sends record by record.
        """
        if partition is None:
            raise ValueError("every record names its partition")
        future: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        self._unsent.append((Append(TopicPartition(topic, partition), [(key, value)]), future))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        return future

    async def _send(self) -> None:
        while self._unsent:
            batch, self._unsent = self._unsent, []
            try:
                offsets = await self.append([append for append, _ in batch])
            except LogError as error:
                for _, future in batch:
                    future.set_exception(ProducerSendError(str(error)))
                continue
            for (append, future), offset in zip(batch, offsets, strict=True):
                tp = TP(*append.to)
                if not future.done():
                    future.set_result(RecordMetadata(tp.topic, tp.partition, tp, offset))
        self._sending = None

    async def send_and_wait(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: HeadersArg | None,
        *,
        transactional_id: str | None = None,
    ) -> RecordMetadata:
        """Append one record; durable on return."""
        return await (await self.send(topic, key, value, partition, timestamp, headers))

    async def flush(self) -> None:
        """Wait until what Faust has buffered and sent is durable."""
        await self.buffer.flush()
        if self._sending is not None:
            await self._sending

    async def create_topic(self, topic: str, partitions: int, replication: int, **kwargs: Any) -> None:
        _known(self._store, topic, partitions)

    def key_partition(self, topic: str, key: bytes) -> TP:
        raise ValueError("every record names its partition")

    async def on_stop(self) -> None:
        await super().on_stop()
        self._thread.shutdown()
        self._store.close()


def _known(store: Log, topic: str, partitions: int) -> None:
    if store.topics().get(topic) != partitions:
        raise ValueError(f"the log has no topic {topic} of {partitions} partition(s)")


class Transport(base.Transport):
    """What the entry point `faust.transports` names."""

    Consumer: ClassVar[Any] = Consumer
    Producer: ClassVar[Any] = Producer

    driver_version = "spendstream-sqlite"
