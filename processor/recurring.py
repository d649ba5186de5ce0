"""A failure that comes again and again: the log says when it begins, once a minute that it goes on, when it ends."""

import time
from collections.abc import Callable
from typing import Any, Final

from processor.structured_log import get_logger

EVERY: Final = 60.0
"""Seconds between two warnings of one failure that goes on."""


class Recurring:
    """One kind of failure. `event` and `over` are the names of the log's lines. For one thread at a time."""

    def __init__(self, event: str, over: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._event = event
        self._over = over
        self._monotonic = monotonic
        self._failures = 0
        """Since it began; 0: it does not fail."""
        self._said = 0.0

    def failed(self, **fields: Any) -> None:
        """It has failed, once more or for the first time."""
        self._failures += 1
        now = self._monotonic()
        if self._failures == 1 or now - self._said >= EVERY:
            self._said = now
            get_logger().warning(self._event, failures=self._failures, **fields)

    def worked(self, **fields: Any) -> None:
        """It has not failed."""
        if self._failures:
            get_logger().info(self._over, failures=self._failures, **fields)
            self._failures = 0
