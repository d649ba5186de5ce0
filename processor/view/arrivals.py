"""Wait, in an event loop, until a follower thread has applied a position to the view."""

import asyncio
from collections.abc import Callable, Mapping

from processor.view.view import View


class Arrivals:
    """Lets coroutines of one event loop wait until a view contains a position.

    All methods belong to that loop's thread; the follower thread calls `loop.call_soon_threadsafe(arrivals.notify)`
    after each flush it applied.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._waiters: list[tuple[Mapping[int, int], asyncio.Future[None]]] = []
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each flush, in the loop's thread; it must be brief and must not raise."""
        self._listeners.append(listener)

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
