"""The thread that keeps a view up to date with the changelog, and who waits in an event loop for what it brings."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from processor.core.tables import table_rows
from processor.core.tables.row_block import RowBlock
from processor.log.address import LogAddress
from processor.log.embedded.newest import FOLD, KeptRecords, collector_off
from processor.log.following import FollowerThread
from processor.log.records import Record, TopicPartition, pairs_of
from processor.log.topics import ROWS
from processor.memory import BURST, Trimming
from processor.view.changelog_batch import Change
from processor.view.view import View


class Arrivals:
    """Lets coroutines of one event loop wait until a view contains a position.

    All methods belong to that loop's thread but `notify_from_thread`, which the follower calls after each flush it
    applied.
    """

    def __init__(self, view: View, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """`loop` is for `notify_from_thread`."""
        self._view = view
        self._loop = loop
        self._waiters: list[tuple[Mapping[int, int], asyncio.Future[None]]] = []
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each flush, in the loop's thread; it must be brief and must not raise."""
        self._listeners.append(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        """Call `listener` no more."""
        self._listeners.remove(listener)

    def notify_from_thread(self) -> None:
        """`notify`, in the loop's thread; does nothing once the loop has ended. For any thread."""
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop has ended before the follower
            self._loop.call_soon_threadsafe(self.notify)

    def notify(self) -> None:
        """Wake the coroutines whose position the view contains by now, and call the listeners."""
        waiting = []
        for position, future in self._waiters:
            if future.done():
                continue
            if self._view.contains(position):
                future.set_result(None)
            else:
                waiting.append((position, future))
        self._waiters = waiting
        for listener in self._listeners:
            listener()

    async def wait_for(self, position: Mapping[int, int], timeout: float) -> bool:  # noqa: ASYNC109 - a bound, not an error
        """Wait until the view contains `position` and return True; False if it does not within `timeout` seconds."""
        if self._view.contains(position):
            return True
        future = asyncio.get_running_loop().create_future()
        self._waiters.append((position, future))
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            return self._view.contains(position)
        return True


FEW: Final = 1000
"""Records of one round of reading that say that its end is near."""


class ViewFollower(FollowerThread):
    """Tails the tables' changelog into what this process answers from.

    `notify` is called in this thread after each round that brought something.
    """

    def __init__(
        self,
        address: LogAddress,
        partitions: int,
        view: View,
        clock: Callable[[], int],
        notify: Callable[[], None],
    ) -> None:
        super().__init__("follower", address.tail([TopicPartition(ROWS, number) for number in range(partitions)]))
        self.heals = address.kafka is None  # by a start of the worker
        self._view = view
        self._clock = clock
        self._notify = notify
        self._has_begun = False
        self._kept = {number: KeptRecords(number) for number in range(partitions)}
        """By partition, what was read at the start and is not in the view yet."""
        self._held: dict[int, Change] = {}
        """By partition, progress that the view does not say to have made yet."""
        self._trimming = Trimming()

    def read_on(self) -> None:
        if not self.read_all.is_set():
            self._catch_up()
            return
        at = self._clock()
        brought = False
        for tp, records in self._tail.poll():
            self._apply_records(tp, records)
            self._view.tidy()  # a backlog may keep this round going for long
            brought = True
            if self._stopping.is_set():
                return
        for number, progress in self._held.items():
            self._view.apply(number, [progress])
        self._held.clear()
        if brought:
            self._notify()
        else:
            self._trimming.rested()
        self._view.tidy()
        if self._tail.is_current:
            self._view.mark_current(at - at % 1000)

    def _catch_up(self) -> None:
        """At the start most of the changelog is long replaced: only the newest record of each row is applied."""
        at = self._clock()
        brought = 0
        if not self._has_begun:
            self._has_begun = True
            if not self._apply_newest():
                return
        for tp, records in self._tail.poll():
            self._kept[tp.partition].add(records)
            brought += len(records)
            if self._stopping.is_set():
                return
            if sum(map(len, self._kept.values())) >= FOLD:
                self._apply_kept()
        is_current = self._tail.is_current
        if brought < FEW or is_current:
            self._apply_kept()
        if is_current:
            self._view.tidy()
            self._view.mark_current(at - at % 1000)
            self._trimming.worked(BURST)  # reading all that there was at the start is one
            self.read_all.set()

    def _apply_newest(self) -> bool:
        """Apply what there is now; False if we are to end."""
        with collector_off():
            for tp, found in self._tail.newest():
                if found.keys:
                    self._view.apply_block(tp.partition, RowBlock(found.keys, found.hashes, found.values))
                self._kept[tp.partition].add(Record(row.offset, 0, row.key, row.value) for row in found.others)
                if self._stopping.is_set():
                    return False
        return True

    def _apply_kept(self) -> None:
        for partition, kept in self._kept.items():
            if kept:
                self._view.apply(partition, pairs_of(kept.drain()))
        self._notify()

    def _apply_records(self, tp: TopicPartition, records: Sequence[Record]) -> None:
        """Apply rows first, and how far they go only when all is there that they may have been replaced by: a row that
        was compacted while this process stood still would be missing from what the view says to contain."""
        self._trimming.worked(sum(len(record.value or b"") for record in records))
        number = tp.partition
        progress = table_rows.encode_key(number, "progress")
        changes: list[Change] = pairs_of(records)
        held = [change for change in changes if change[0] == progress]
        if held:
            self._held[number] = held[-1]
            changes = [change for change in changes if change[0] != progress]
        if number in self._held and not self._tail.has_more(tp):
            changes.append(self._held.pop(number))
        self._view.apply(number, changes)
