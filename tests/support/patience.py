"""How long tests wait for what has to happen before they fail: a wait ends as soon as it has happened.

So patience costs nothing where all is well, and says nothing about speed. It is long enough for a process that is given
a tenth of a core, and shorter than the timeout of a test, which says less about what was waited for. What is promised
in seconds is tried several times (`mostly_within`).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

PATIENCE: Final = 60.0
"""Seconds for what happens in this process."""

PROCESS_PATIENCE: Final = 180.0
"""Seconds for what other processes do: servers, brokers, browsers, commands."""


async def until(condition: Callable[[], object]) -> None:
    """Wait until `condition()` holds, of things that nothing can be told by; raises `TimeoutError`."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def mostly_within(seconds: float, trial: Callable[[], Awaitable[float]], trials: int = 5) -> None:
    """Demand that most trials take less than so many seconds: a machine with other work may hold up a few of them."""
    slow: list[float] = []
    for done in range(1, trials + 1):
        if (took := await trial()) >= seconds:
            slow.append(took)
        assert 2 * len(slow) < trials, slow
        if 2 * (done - len(slow)) > trials:
            return
