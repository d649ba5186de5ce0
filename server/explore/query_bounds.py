"""The bounds of the query process, and what keeps them where DuckDB does not."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import pyarrow as pa
from msgspec import Struct

from processor import memory
from processor.structured_log import get_logger
from server.errors import Refused
from server.explore.engine import ADVICE, Engine

LOOK: Final = 0.05
"""Seconds between two looks."""
HUNG: Final = 5.0
"""Seconds past its time after which a question is held to hang in code that cannot be interrupted."""

EXIT_HUNG: Final = 76
"""The exit code where a question did not end, or memory was not freed; the parent starts the process again."""

MIN_FREE: Final = 2 << 30
"""Bytes that are left free on the disk of the spill directory, or 5 % of it where that is more."""

SOME: Final = 0.75
"""Of the memory bound: what the process may keep for later while no question runs."""

OVER: Final = 1.25
"""Of the memory bound: what the process takes at most, before it ends itself."""


class QueryBounds(Struct, frozen=True):
    """Bounds of the process and of each question."""

    memory: int
    """Bytes."""
    threads: int
    timeout: float
    """Seconds of one question, from when it is its turn."""
    min_free: int | None = None
    """Bytes that are left free on the disk of the spill directory; None: by `MIN_FREE`."""


class QueryGuard:
    """Ends questions that take more memory or disk than there is, and the process where that does not help."""

    def __init__(
        self,
        bounds: QueryBounds,
        running: Collection[Engine],
        spill: Path,
        *,
        taken: Callable[[], int] | None = None,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        """`taken` gives the process's memory in bytes; `end` ends the process with an exit code."""
        self._bounds = bounds
        self._running = running
        self._spill = spill
        self._taken = anonymous_memory if taken is None else taken
        self._end = end
        self._over_since: float | None = None

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await asyncio.sleep(LOOK)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Look once; `now` is in monotonic seconds."""
        engines = [*self._running]
        self._look_at_memory(engines, now)
        if any(engine.overdue() > HUNG for engine in engines):
            get_logger().critical("query.hung", questions=len(engines))
            self._end(EXIT_HUNG)
        if engines and self._spills_too_much():
            self._stop(engines, Refused("disk_full", "The disk has no room for large questions", retry_after=30))

    def _spills_too_much(self) -> bool:
        """Return whether questions have set something aside on a disk that has no room for it."""
        try:
            return _is_full(self._spill, self._bounds.min_free) and any(self._spill.iterdir())
        except FileNotFoundError:  # somebody has deleted the folder: nothing is in it
            return False

    def _look_at_memory(self, engines: list[Engine], now: float) -> None:
        taken, bound = self._taken(), self._bounds.memory
        if taken > SOME * bound and not engines:
            trim()
            taken = self._taken()
        if taken <= bound:
            self._over_since = None
            return
        if self._over_since is None:
            self._over_since = now
            get_logger().warning("query.memory", bytes=taken, bound=bound, questions=len(engines))
        if len(engines) > 1:  # which of them is too heavy cannot be told
            refused = Refused("queries_busy", "The questions under way need more memory than there is", retry_after=2)
        else:
            refused = Refused("query_too_heavy", f"The question needs more memory than it may use; {ADVICE}")
        self._stop(engines, refused)
        if taken > OVER * bound or now - self._over_since > HUNG:
            get_logger().critical("query.memory_exceeded", bytes=taken, bound=bound)
            self._end(EXIT_HUNG)

    @staticmethod
    def _stop(engines: list[Engine], refused: Refused) -> None:
        for engine in engines:
            engine.stop(refused)


def anonymous_memory() -> int:
    """Return the bytes of memory that this process takes, without mapped files; 0 where the system does not say."""
    if not sys.platform.startswith("linux"):
        return 0
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE")


def trim() -> None:
    """Give memory back that is free within this process."""
    pa.default_memory_pool().release_unused()
    memory.trim()


def _is_full(folder: Path, min_free: int | None) -> bool:
    found = os.statvfs(folder)
    reserve = max(MIN_FREE, found.f_blocks * found.f_frsize // 20) if min_free is None else min_free
    return found.f_bavail * found.f_frsize < reserve
