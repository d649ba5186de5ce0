"""The share of the event loop that the feed may use: ingest keeps the rest, however many subscribers there are."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

SHARE: Final = 0.15
"""Least share: seconds of work per second while the process is busy with other things."""
MAX_SHARE: Final = 8.0
"""Greatest share, while the process is idle. More than one second per second: the costs are estimated too high."""
BUSY: Final = 0.6
"""The share grows while the whole process uses less than this part of one core: its threads share one interpreter."""
SPAN: Final = 0.1
"""Seconds between two adaptations of the share."""
GROWTH, DECAY = 1.25, 0.6
"""Factors of one adaptation, up and down."""
BURST: Final = 0.1
"""Seconds of work that may be done at once after a pause."""


class CpuShare:
    """A token bucket of seconds of work, first come, first served.

    Nothing queues up behind an empty bucket: what changes while a frame waits goes along with it. The rate follows how
    busy the process is (`worked` gives its processor time in seconds): down fast under load, up again step by step.
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
        """Wait until the bucket is not empty, then take `seconds`. It may be in debt then: the next caller waits."""
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
