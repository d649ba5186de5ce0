"""A clock of an event loop by which each of the loop's rounds takes as long, and the wait for what is due no time.

A patience of 20 ms is then so many rounds, however busy the machine is. For tests in which nobody but the loop's own
coroutines does anything: no thread, no other process, no socket.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

ROUND: Final = 0.0001
"""Seconds. Not 0: coroutines that wake each other without end would never be interrupted."""


@contextmanager
def counted_time() -> Iterator[None]:
    """Let the running loop's time be that, within the block."""
    loop: Any = asyncio.get_running_loop()
    selector, select = loop._selector, loop._selector.select  # noqa: SLF001 - the loop runs: it has its selector
    now: float = loop.time()

    def pass_round(timeout: float | None = None) -> Any:
        nonlocal now
        found = select(None if timeout is None else 0)  # None: nothing will ever be due here
        now += ROUND if found or not timeout else max(timeout, ROUND)
        return found

    loop.time, selector.select = lambda: now, pass_round
    try:
        yield
    finally:
        del loop.time, selector.select
