"""The common part of both Faust transports: rebalances in Faust's order, and appending in bulk.

A rebalance follows Faust's own order, so that its conductor, table manager and recovery work unchanged. Meanwhile no
source message is fetched: Faust resumes the source partitions before it seeks them, and would skip messages otherwise
(faust-streaming issue 596; `tables/recovery.py`, on_recovery_completed). `docs/decisions` names the lines.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Final, TypeVar, cast

from processor.log.errors import LogError
from processor.log.faust_library import TP, ConsumerMessage, HeadersArg, ProducerSendError, RecordMetadata
from processor.log.faust_library import transport as base
from processor.log.records import Append, Record, TopicPartition

T = TypeVar("T")

DAMAGED: Final = "spendstream-damaged"
"""Header of a message whose record does not match its checksum."""


class _Wanted:
    """The partitions whose messages are delivered once they are fetched; both sets change while they are."""

    def __init__(self, active: set[TP], left_out: set[TP]) -> None:
        self._active = active
        self._left_out = left_out

    def __contains__(self, tp: TP) -> bool:
        return tp in self._active or tp in self._left_out


class Consumer(base.Consumer):
    """Partitions and their assignment; subclasses read records and keep offsets."""

    consumer_stopped_errors: ClassVar[tuple[type[BaseException], ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._thread = ThreadPoolExecutor(1, "log-reader")
        self._assigned: set[TP] = set()
        self._generation = 0
        self.counts: dict[str, int] = {}
        """topic -> partitions"""
        self._left_out: set[TP] = set()
        """Partitions that are not fetched until they are assigned anew."""
        self._goes_on = asyncio.Event()
        """Set when there is a partition to fetch: one was assigned, is left out no longer, or has room in its queue."""

    def leave_out(self, tp: TP) -> None:
        """Stop fetching a partition that this program cannot read."""
        self._left_out.add(tp)
        self.pause_partitions({tp})

    async def go_on(self, tp: TP) -> None:
        """Fetch a partition again that was left out, from after the last message that was fetched. Nothing is done for
        one that was given up meanwhile, or assigned anew."""
        if tp in self._left_out:
            self._left_out.discard(tp)
            self.resume_partitions({tp})

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Fetch partitions that were paused."""
        super().resume_partitions(tps)
        self._goes_on.set()

    def on_buffer_drop(self, tp: TP) -> None:
        """A partition has room again in the queue of its stream. Faust would fetch it even if it is paused."""
        super().on_buffer_drop(tp)
        self._get_active_partitions().difference_update(self._paused_partitions)
        self._goes_on.set()

    def _set_active_tps(self, tps: set[TP]) -> set[TP]:
        found: set[TP] = super()._set_active_tps(tps)
        self._goes_on.set()
        return found

    async def _wait_next_records(self, timeout: float) -> tuple[Any, Any]:  # noqa: ASYNC109 - Faust's
        """Fetch. What was fetched of a partition that is left out meanwhile is delivered, too: Faust would drop it, and
        `go_on` begins after what was fetched. And where nothing may be fetched, as all are left out or the queue of the
        stream is full, Faust sleeps for a second, in which the stream empties its queue and stands still."""
        if self.flow_active and not self._get_active_partitions():
            self._goes_on.clear()
            await self.wait(self._goes_on.wait(), timeout=timeout)
            return {}, set()
        records, active = await super()._wait_next_records(timeout)
        return records, None if active is None else _Wanted(active, self._left_out)

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def _change(self, assigned: set[TP]) -> None:
        """Do a rebalance: partitions that are no longer assigned are revoked first."""
        app = cast(Any, self.app)
        app.on_rebalance_start()
        await self.on_partitions_revoked(self._assigned - assigned)
        self._assigned = assigned
        self._left_out.clear()
        self._generation += 1
        app.consumer_generation_id = self._generation
        app.assignor.owned = frozenset(assigned)
        await self.on_partitions_assigned(assigned, self._generation)

    def assignment(self) -> set[TP]:
        return set(self._assigned)

    def topic_partitions(self, topic: str) -> int | None:
        return self.counts.get(topic)

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        return partition

    async def create_topic(self, topic: str, partitions: int, replication: int, **kwargs: Any) -> None:
        known(self.counts, topic, partitions)

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        found: Record = record
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            found.offset,
            found.at / 1e6,
            0,
            [(DAMAGED, b"")] if found.is_damaged else [],
            found.key,
            found.value,
            None,
            len(found.key or b""),
            len(found.value or b""),
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def seek_to_beginning(self, *partitions: TP) -> None:
        await self.seek_wait(await self.earliest_offsets(*partitions))

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        for tp, offset in partitions.items():
            await self._seek(tp, offset)
            if offset > 0:
                self._read_offset[tp] = offset
            else:
                self._read_offset.pop(tp, None)

    async def perform_seek(self) -> None:
        """Seek each partition to its next offset, which Faust then treats as committed.

        Faust also calls it when a fetch ends after the flow was stopped. At the end of the worker that would prevent
        the last commit: the next offset is that of messages that are acknowledged, but not committed.
        """
        if not cast(Any, self.app).should_stop:
            await super().perform_seek()

    async def on_stop(self) -> None:
        await super().on_stop()
        await asyncio.to_thread(self._thread.shutdown)

    def close(self) -> None: ...


class Producer(base.Producer):
    """Appends to the log in bulk, in threads of its own; also what Faust itself sends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unsent: list[tuple[Append, asyncio.Future[RecordMetadata]]] = []
        self._sending: asyncio.Task[None] | None = None
        self.counts: dict[str, int] = {}

    async def append(self, appends: list[Append]) -> list[int]:
        """Append in bulk, atomically in each partition; return the offset of each append's first record.

        Durable on return. Raises `LogUnavailable`.
        """
        raise NotImplementedError

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
        """Queue one record; it is durable when the returned awaitable is done.

        Records that are queued while an append is under way are appended together: Faust sends them one by one.
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
                    if not future.done():
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
        known(self.counts, topic, partitions)

    def key_partition(self, topic: str, key: bytes) -> TP:
        raise ValueError("every record names its partition")


def known(counts: Mapping[str, int], topic: str, partitions: int) -> None:
    """Check that the log has a topic, as the log makes them, not Faust. Raises `ValueError` if it has not."""
    if counts.get(topic) != partitions:
        raise ValueError(f"the log has no topic {topic} of {partitions} partition(s)")


def by_partition(appends: Iterable[Append]) -> dict[int, list[int]]:
    """Return partition number -> the appends to it."""
    found: dict[int, list[int]] = {}
    for number, append in enumerate(appends):
        found.setdefault(append.to.partition, []).append(number)
    return found
