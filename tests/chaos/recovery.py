"""How long a failure is felt: from its beginning until events acknowledged after it are in the tables."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from tests.support.clients import Tally, Target

LOOK = 0.02
"""Seconds between two looks at what has been acknowledged."""
SILENT = 10.0


class Recovery:
    """Measures with the traffic that is under way: the next `x-ingest-position` after a failure is read back.

    A measurement that another failure comes into is given up: the new one starts.
    """

    def __init__(self, target: Target, tally: Tally, found: list[float]) -> None:
        self._target = target
        self._tally = tally
        self._found = found
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """The failure is now."""
        self.cancel()
        self._tally.position = ""
        self._task = asyncio.create_task(self._measure(time.monotonic()))

    async def settle(self, sending: asyncio.Task[None] | None = None, patience: float = 30.0) -> None:
        """Wait for the measurement under way, for as long as there is traffic to measure with."""
        if self._task is not None:
            others = {sending} if sending is not None else set()
            await asyncio.wait({self._task, *others}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)

    def cancel(self) -> None:
        """Give up what is being measured."""
        if self._task is not None:
            self._task.cancel()

    async def _measure(self, began: float) -> None:
        await self._visible()
        self._found.append(time.monotonic() - began)

    async def _visible(self) -> None:
        """Wait for the next acknowledgement, and until the tables have it."""
        while not self._tally.position:  # noqa: ASYNC110 - what is looked at may be set by a thread
            await asyncio.sleep(LOOK)
        position = self._tally.position
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=8)) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    url = f"http://{self._target.http}/v1/users?limit=1&after={position}"
                    async with session.get(url, headers={"x-api-key": self._target.key}) as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(LOOK)

    async def worst(self, over: asyncio.Event) -> None:
        """Until it is `over`, ask again and again; what is found is the longest time that the tables stood still.

        When nothing was acknowledged in the `SILENT` seconds after the end, nothing was being sent any more.
        """
        longest = 0.0
        began = time.monotonic()
        self.cancel()
        try:
            while not over.is_set():
                self._tally.position = ""
                began = time.monotonic()
                if not await self._acknowledged(over):
                    break
                await self._visible()
                longest = max(longest, time.monotonic() - began)
        except asyncio.CancelledError:  # no end was seen: at least so long
            longest = max(longest, time.monotonic() - began)
            raise
        finally:
            self._found.append(longest)

    async def _acknowledged(self, over: asyncio.Event) -> bool:
        end = float("inf")
        while not self._tally.position and time.monotonic() < end:
            if over.is_set() and end == float("inf"):
                end = time.monotonic() + SILENT
            await asyncio.sleep(LOOK)
        return bool(self._tally.position)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Find the longest standstill of the block, to its end though the block may end before."""
        over = asyncio.Event()
        watching = asyncio.create_task(self.worst(over))
        try:
            yield
            over.set()
            await asyncio.wait({watching}, timeout=30)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
