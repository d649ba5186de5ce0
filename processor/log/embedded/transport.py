"""The Faust transport over the embedded log: `spendstream-sqlite:///data/dir`.

One worker owns all partitions, so a "rebalance" happens once, when it subscribes.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Final, TypeVar, cast

from processor.log import faust_transport
from processor.log.embedded.log import Log
from processor.log.faust_library import TP
from processor.log.faust_library import transport as base
from processor.log.records import Append, TopicPartition
from processor.log.tail import IDLE_AFTER
from processor.log.topics import EVENTS
from processor.wall_clock import now

T = TypeVar("T")

POLL: Final = 0.005
"""Seconds between two checks for new records."""

IDLE_POLL: Final = 0.01
"""Seconds between two checks, once nothing has been committed to the log for `IDLE_AFTER`."""

HELD: Final = 0.5
"""Most seconds for which the log's thread waits for new records; it stops waiting when something else needs it."""

FETCH_RECORDS: Final = 64
FETCH_BYTES: Final = 8 * 1024 * 1024
"""Most records and bytes of one fetch from one partition."""


class Consumer(faust_transport.Consumer):
    """Reads the log on one thread; positions are kept here, committed offsets in the log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._store: Log = cast(Any, self.app).open_log()
        self.counts = self._store.topics()
        self._positions: dict[TP, int] = {}
        self._ends: dict[TP, int] = {}
        self._nothing: tuple[int, dict[TP, int]] = (-1, {})
        """The version of the log in which there was nothing at these positions."""
        self._changed = time.monotonic()
        """When that version, or another one, was seen first (monotonic seconds)."""
        self._waiting = 0
        """How many calls wait for the log's thread, or have it, beside a fetch."""

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Subscribe to all partitions of `topics`. Returns at once: the rebalance is a separate task."""
        self.add_future(self._change({TP(topic, n) for topic in topics for n in range(self.counts[topic])}))

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:  # noqa: ASYNC109 - Faust's
        deadline = time.monotonic() + timeout
        while not self.should_stop and self.flow_active:
            self._goes_on.clear()
            tps = self._assigned if active_partitions is None else active_partitions & self._assigned
            if self.app.rebalancing:
                tps = {tp for tp in tps if self._is_changelog_tp(tp)}
            wanted = {tp: self._positions[tp] for tp in tps if tp in self._positions}
            left = deadline - time.monotonic()
            found = await super()._call(self._fetch, wanted, min(left, HELD)) if wanted else {}
            if found or time.monotonic() >= deadline:
                return found
            await asyncio.sleep(POLL)
        return {}

    def _fetch(self, wanted: dict[TP, int], patience: float) -> dict[TP, list[Any]]:
        """Blocks for at most `patience` seconds, while nothing is committed to the log and nothing else is to be done:
        no commit says that there is more of a partition whose queue has room again.

        A thread that asks for the log's version costs a fourth of an event loop that has a thread read nothing.
        """
        until = time.monotonic() + patience
        while (version := self._store.version(), wanted) == self._nothing:
            at = time.monotonic()
            if at >= until or self._waiting or self._goes_on.is_set() or self.should_stop or not self.flow_active:
                return {}
            time.sleep(POLL if at - self._changed < IDLE_AFTER else IDLE_POLL)
        if version != self._nothing[0]:
            self._changed = time.monotonic()
        found: dict[TP, list[Any]] = {}
        for tp, position in wanted.items():
            records = self._store.read(TopicPartition(*tp), position, FETCH_RECORDS, FETCH_BYTES, keep_damaged=True)
            if records and self._positions.get(tp) == position:
                found[tp] = records
                self._positions[tp] = self._ends[tp] = records[-1].offset + 1
        if not found:
            self._nothing = version, wanted
        return found

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        """A fetch that waits for new records ends at once."""
        self._waiting += 1
        try:
            return await super()._call(function, *args)
        finally:
            self._waiting -= 1

    # --- offsets ----------------------------------------------------------------------------------------------------

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek every source partition to its next offset (see `Application.resume_at`)."""
        committed = await self._call(self._committed)
        self._positions.update(committed)
        return committed

    def _committed(self) -> dict[TP, int]:
        found = {}
        for tp in self._assigned:
            if tp.topic == EVENTS:
                resume: int | None = cast(Any, self.app).resume_at(tp.partition)
                found[tp] = self._store.first(TopicPartition(*tp)) if resume is None else resume
        return found

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        group = cast(Any, self.app).conf.id
        await self._call(self._store.commit, group, [(TopicPartition(*tp), at) for tp, at in offsets.items()])
        return True

    async def position(self, tp: TP) -> int | None:
        return self._positions.get(tp)

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
        self._store.close()


class Producer(faust_transport.Producer):
    """Appends to the log on one thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._thread = ThreadPoolExecutor(1, "log-writer")
        self._store: Log = cast(Any, self.app).open_log()
        self.counts = self._store.topics()

    async def append(self, appends: list[Append]) -> list[int]:
        """Append in bulk, all or nothing; durable on return. Raises `LogUnavailable`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._store.append, appends, now())

    async def delete(self, tp: TopicPartition, offsets: list[int]) -> None:
        """Call `Log.delete` between two appends."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._store.delete, tp, offsets)

    async def on_stop(self) -> None:
        await super().on_stop()
        self._thread.shutdown()
        self._store.close()


class Transport(base.Transport):
    """The transport of applications whose log is the embedded one."""

    Consumer: ClassVar[Any] = Consumer
    Producer: ClassVar[Any] = Producer

    driver_version = "spendstream-sqlite"
