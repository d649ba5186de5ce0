"""A slow check of all files of a store: each is read once in a period and compared with its digest, so that bytes that
a disk has changed are found and made anew while the log still has what they are made of.

Nothing else would notice: readers trust the files, and Parquet hands out most wrong bytes as values.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from processor.core.clock import SECOND
from processor.event_store import stored_sums
from processor.event_store.manifest import Segment
from processor.event_store.scrub_round import Round, Rounds
from processor.event_store.store import Store
from processor.event_store.stored_sums import DamagedSegment
from processor.event_store.upkeep import Upkeep
from processor.structured_log import get_logger

LOOK: Final = 10.0
"""Most seconds between two looks whether a segment is due."""

T = TypeVar("T")

PAUSE: Final = 0.1
"""Seconds after each mebibyte: no more than ten of them a second are read, also after a time without a store."""


class Scrub:
    """Checks the segments of the partitions that `store` owns; `upkeep` makes those anew that are damaged."""

    def __init__(self, store: Store, upkeep: Upkeep, period: float, pause: float = PAUSE) -> None:
        """`period`: seconds in which all segments are checked once."""
        self._store = store
        self._upkeep = upkeep
        self._period = round(period * SECOND)
        self._pause = pause
        self._rounds = Rounds(store.directory.storage)
        self._thread = ThreadPoolExecutor(1, "store-scrub")

    async def run(self) -> None:
        """Check for ever. What fails is tried again."""
        while True:
            try:
                wait = await self.check_next()
            except OSError as error:
                get_logger().warning("store.waits", error=str(error))
                wait = LOOK
            await asyncio.sleep(wait)

    async def check_next(self) -> float:
        """Check one segment that is due, or end a round that is over; return the seconds until the next look.

        Raises `OSError`.
        """
        wait = LOOK
        for number in sorted(self._store.owned):
            now = self._store.clock()
            live = await self._live(number)
            found = await self._call(self._rounds.of, number, now, self._period)
            due = found.due(live, self._period)
            if due <= now:
                await self._call(self._rounds.keep, await self._checked(found, live, now))
                return 0.0
            wait = min(wait, (due - now) / SECOND)
        return wait

    async def _live(self, number: int) -> list[Segment]:
        return [each for each in await self._store.call(self._upkeep.live, number) if each.has_files]

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def _checked(self, found: Round, live: Sequence[Segment], now: int) -> Round:
        """Check the next segment; return the round behind it, or the next round."""
        segment = found.next(live)
        if segment is None:
            get_logger().info("store.scrubbed", partition=found.partition, segments=len(live), damaged=found.damaged)
            return found.ended(now, self._period)
        is_damaged = segment.id not in self._store.lacking and await self._call(self._is_damaged, segment)
        if is_damaged:
            is_live = any(each.id == segment.id for each in await self._live(segment.partition))
            is_damaged = is_live and await self._upkeep.remove_damaged([segment])
        return found.behind(segment, is_damaged=is_damaged)

    def _is_damaged(self, segment: Segment) -> bool:
        try:
            stored_sums.check(self._store.directory.storage, segment, lambda: time.sleep(self._pause))
        except (DamagedSegment, FileNotFoundError):
            return True
        return False
