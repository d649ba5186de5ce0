"""The partitions of one worker among several: those it owns, and warm copies of the others for a fast takeover.

To take over a partition the worker fences the earlier owner, then reads the changelog to its end: from the position of
its warm copy, or from the beginning. A partition that is given up stays as a warm copy.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from processor import restart
from processor.log.address import LogAddress
from processor.log.errors import HistoryMismatch, LogBroken, LogError, LogUnavailable
from processor.log.kafka.member_name import instance
from processor.log.kafka.tail import KafkaTail
from processor.log.kafka.transport import Writers
from processor.log.records import TopicPartition
from processor.log.topics import CLAIMS, EVENTS, ROWS
from processor.state import loader
from processor.state.loader import Partition
from processor.state.recovery import refuse
from processor.structured_log import get_logger

IDLE: Final = 0.2
"""Seconds between two checks of which partitions to follow."""

SYNC_EVERY: Final = 30.0
"""Seconds between two checkpoints of the warm copies' id indexes."""

RETRY: Final = 0.5

EXIT_BROKEN: Final = 70


class Holder:
    """The keeper that the Kafka transport finds on the Faust app (`app.spendstream`), which makes its consumer."""

    def __init__(
        self,
        address: LogAddress,
        counts: dict[str, int],
        owned: dict[int, Partition],
        flush: Callable[[], Awaitable[None]],
        clock: Callable[[], int],
        *,
        standby: bool,
    ) -> None:
        assert address.kafka is not None
        self.access = address.kafka
        self.counts = counts
        self.topics = (EVENTS, ROWS)
        self.instance = instance(address.data_dir, "worker")
        self.writers = Writers(address.kafka)
        self._address = address
        self._owned = owned
        self._flush = flush
        self._clock = clock
        self._standby = standby
        self._warm: dict[int, Partition] = {}
        self._coming: set[int] = set()
        self._beginnings: dict[tuple[str, int], int] = {}
        """(topic, partition) -> its first offset when the partition was taken over."""
        self._hands = {number: threading.Lock() for number in range(max(counts.values()))}
        """Held while a partition's warm copy is updated."""

    # --- assignments of the group -----------------------------------------------------------------------------------

    async def bring(self, partitions: set[int]) -> None:
        """Become the only owner of these partitions and load all of their state. Waits while the log is away."""
        began = time.monotonic()
        self._coming = partitions
        try:
            brought = await asyncio.gather(*(asyncio.to_thread(self._bring, number) for number in sorted(partitions)))
            for partition in brought:
                self._owned[partition.number] = partition
        finally:
            self._coming = set()
        get_logger().info(
            "partitions.loaded",
            partitions=sorted(partitions),
            rows=sum(len(partition.tables) for partition in brought),
            ids=sum(len(partition.index) for partition in brought),
            seconds=round(time.monotonic() - began, 2),
        )

    def _bring(self, number: int) -> Partition:
        while True:
            try:
                self.writers.fence(number)
                return self._read_on(number)
            except HistoryMismatch as error:
                refuse(error)
            except LogUnavailable as error:
                get_logger().warning("partition.waits", partition=number, error=str(error))
                time.sleep(RETRY)

    def _read_on(self, number: int) -> Partition:
        log = self._address.open()
        try:
            with self._hands[number]:
                for topic in (ROWS, CLAIMS):  # before the comparison, so that what is deleted later is noticed
                    self._beginnings[topic, number] = log.first(TopicPartition(topic, number))
                append = partial(self.writers.append_to, number)
                return loader.bring(self._address, log, number, append, self._clock, self._warm)
        finally:
            log.close()

    async def release(self, partitions: set[int]) -> dict[int, int]:
        """Make what these partitions have applied durable and give them up.

        Returns partition -> next offset to read.
        """
        await self._flush()
        offsets = {}
        for number in partitions & self._owned.keys():
            partition = self._owned.pop(number)
            self.writers.release(number)
            offsets[number] = partition.tables.progress.offset + 1
            if len(partition.index) == partition.covered.ids:
                self._warm[number] = partition
            else:  # it has ids whose claims are not in the log; the next owner claims them itself
                partition.index.close()
        return offsets

    async def drop(self, partitions: set[int]) -> None:
        """Forget partitions that may belong to another worker by now, with all that was not durable."""
        for number in partitions & self._owned.keys():
            partition = self._owned.pop(number)
            self.writers.release(number)
            partition.index.distrust()
            partition.index.close()

    # --- warm copies ------------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Keep the warm copies up to date, for ever; without `standby` only drop those that did not come back."""
        tail: KafkaTail | None = None
        followed: set[int] = set()
        synced_at = time.monotonic()
        while True:
            wanted = self._hands.keys() - self._owned.keys() - self._coming if self._standby else set()
            if wanted != followed:
                if tail is not None:
                    await asyncio.to_thread(tail.close)
                try:
                    tail, followed = await asyncio.to_thread(self._open_tail, wanted) if wanted else (None, wanted)
                except LogError as error:  # see below
                    get_logger().warning("standby.waits", error=str(error))
                    tail, followed = None, set()
                    await asyncio.sleep(RETRY)
            if tail is None:
                await asyncio.sleep(IDLE)
            else:
                try:
                    await asyncio.to_thread(self._follow, tail)
                except LogBroken as error:  # the copies may have what the log has lost
                    get_logger().warning("standby.broken", error=str(error))
                    await asyncio.to_thread(self._let_go)
                    followed = set()
                except LogError as error:  # in a copy: the owner of the partition reports what to do
                    get_logger().warning("standby.waits", error=str(error))
                    await asyncio.to_thread(tail.close)
                    tail, followed = None, set()
                    await asyncio.sleep(RETRY)
            if time.monotonic() - synced_at > SYNC_EVERY:
                synced_at = time.monotonic()
                await asyncio.to_thread(self._look_after)
                await asyncio.to_thread(self._check_beginnings)

    def _open_tail(self, numbers: set[int]) -> tuple[KafkaTail | None, set[int]]:
        """Return a tail of those of these partitions that this worker is not taking over, and which they are; None: it
        is taking over all."""
        log = self._address.open()
        positions: dict[TopicPartition, int] = {}
        try:
            for number in numbers:
                with self._hands[number]:
                    if number in self._owned or number in self._coming:
                        continue
                    partition = self._warm.get(number)
                    if partition is None:
                        partition = self._warm[number] = loader.fresh(self._address, log, number)
                    positions[TopicPartition(ROWS, number)] = partition.rows_end
                    positions[TopicPartition(CLAIMS, number)] = partition.claims_end
        finally:
            log.close()
        return KafkaTail(self.access, positions) if positions else None, {tp.partition for tp in positions}

    def _follow(self, tail: KafkaTail) -> None:
        for tp, records in tail.poll():
            with self._hands[tp.partition]:
                partition = self._warm.get(tp.partition)
                if partition is None:
                    continue
                if tp.topic == ROWS:
                    loader.apply_rows(partition, records)
                else:
                    loader.apply_claims(partition, records)

    def _let_go(self) -> None:
        """Drop all warm copies, and their ids."""
        for number, hand in self._hands.items():
            with hand:
                partition = self._warm.pop(number, None)
                if partition is not None:
                    partition.index.distrust()
                    partition.index.close()

    def _check_beginnings(self) -> None:
        """End the process if records of rows or claims that it owns were deleted: the next start computes them anew.
        Until then all other processes would show or count without them."""
        try:
            log = self._address.open()
        except LogError as error:
            get_logger().warning("history.waits", error=str(error))
            return
        try:
            for number in list(self._owned):
                for topic in (ROWS, CLAIMS):
                    first = log.first(TopicPartition(topic, number))
                    if first > self._beginnings.setdefault((topic, number), first):
                        get_logger().critical("history.beheaded", topic=topic, partition=number, before=first)
                        restart.end(EXIT_BROKEN)
        except LogUnavailable as error:
            get_logger().warning("history.waits", error=str(error))
        finally:
            log.close()

    def _look_after(self) -> None:
        """Checkpoint the warm copies' ids, so that a restart reads little; without `standby` drop the copies."""
        for number, hand in self._hands.items():
            with hand:
                partition = self._warm.get(number)
                if partition is not None:
                    loader.sync_index(partition)
                    if not self._standby:
                        self._warm.pop(number).index.close()
