"""The end of an event loop, in every test: what was closed is gone, and what was left open fails the test that left it.

`close` of a transport, and so that of a client or a session, waits for a peer that does not read: if the loop ends
first, the socket stays open. Python finds it when it searches for garbage: in some later test, which fails for it.
"""

import asyncio
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Callable
from typing import Any


def transports(loop: asyncio.AbstractEventLoop) -> list[asyncio.Transport]:
    """Those of a loop whose socket is open."""
    made: Any = getattr(loop, "_transports", {})
    return [each for each in list(made.values()) if each.get_extra_info("socket").fileno() != -1]


async def end_transports() -> list[str]:
    """End those that are closing, and all others, too; return what the others are."""
    found = transports(asyncio.get_running_loop())
    left = [repr(each) for each in found if not each.is_closing()]
    for each in found:
        each.abort()
    await asyncio.sleep(0)
    return left


def _ending(close: Callable[[BaseSelectorEventLoop], None]) -> Callable[[BaseSelectorEventLoop], None]:
    def end_and_close(loop: BaseSelectorEventLoop) -> None:
        left: list[str] = []
        if not loop.is_closed() and not loop.is_running() and transports(loop):
            try:
                asyncio.get_running_loop()  # no other one may run in this thread meanwhile
            except RuntimeError:
                left = loop.run_until_complete(end_transports())
        close(loop)
        assert not left, f"left open: {', '.join(left)}"

    return end_and_close


BaseSelectorEventLoop.close = _ending(BaseSelectorEventLoop.close)  # type: ignore[method-assign,assignment]
