"""How much of the event loop the feed may use, so that ingest keeps the rest however many subscribers there are."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

SHARE: Final = 0.15
"""Seconds of work a second, when the process has other things to do."""
MAX_SHARE: Final = 8.0
"""The same when it has not: by estimates that are rather too high, so more than one."""
BUSY: Final = 0.6
"""Of one core, what the process may use all in all for the feed to be given more: its threads share one interpreter."""
SPAN: Final = 0.1
"""Seconds between two looks at that."""
GROWTH, DECAY = 1.25, 0.6
BURST: Final = 0.1
"""Seconds of work that may come at once after a rest."""


class CpuShare:
    """A token bucket of seconds of work. Who asks first gets on first; who finds it empty waits, and nothing queues up:
    what changes meanwhile goes with the frame that is sent then.

    Its rate follows how busy the process is (`worked`: its processor time in seconds): quickly down when there is much
    to do, up again step by step.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        worked: Callable[[], float] = time.process_time,
        share: float = SHARE,
        burst: float = BURST,
    ) -> None:
        self._monotonic = monotonic
        self._worked = worked
        self._least = self._share = share
        self._looked = (monotonic(), worked())
        self._burst = burst
        self._level = burst
        self._at = monotonic()
        self._turn = asyncio.Lock()

    async def reserve(self, seconds: float) -> None:
        """Wait until there is room, then take it up, beyond what is there if need be: the next one waits for that."""
        if not self._turn.locked() and self._filled() > 0:
            self._level -= seconds
            return
        async with self._turn:
            while (level := self._filled()) <= 0:  # noqa: ASYNC110 - what it waits for is time itself
                await asyncio.sleep(min(SPAN, max(0.001, -level / self._share)))
            self._level -= seconds

    def _filled(self) -> float:
        now = self._monotonic()
        self._adapt(now)
        self._level = min(self._burst, self._level + (now - self._at) * self._share)
        self._at = now
        return self._level

    def _adapt(self, now: float) -> None:
        at, before = self._looked
        if now - at < SPAN:
            return
        worked = self._worked()
        self._looked = now, worked
        factor = GROWTH if worked - before < BUSY * (now - at) else DECAY
        self._share = min(MAX_SHARE, max(self._least, self._share * factor))
