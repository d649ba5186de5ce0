"""A thread that follows partitions of the log and applies their records, for as long as the process lives."""

import os
import threading
import time
from typing import Final

from processor.log.errors import DamagedRecord, LogBroken
from processor.log.tail import Tail
from processor.structured_log import get_logger

EXIT_BROKEN: Final = 70


HEALING: Final = 5.0
"""Seconds that a starting worker has to make a damaged record anew."""
EXIT_DAMAGED: Final = 75
"""EX_TEMPFAIL of sysexits.h: rows are damaged, and a start of the worker would make them anew."""

PAUSE: Final = 1.0
"""Seconds after a failure until the next try."""


class FollowerThread(threading.Thread):
    """A thread that calls `read_on` again and again, whatever one raises."""

    def __init__(self, name: str, tail: Tail) -> None:
        super().__init__(name=name, daemon=True)
        self._tail = tail
        self._stopping = threading.Event()
        self.read_all = threading.Event()
        """Set once everything that the log had at the start has been read."""
        self.damage: DamagedRecord | None = None
        """A damaged record: it and everything after it cannot be read."""

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.read_on()
                if self.damage is not None and self._tail.is_current:
                    self.damage = None
            except LogBroken as error:  # what is known here may no longer be in the log
                get_logger().critical("follower.broken", error=str(error))
                os._exit(EXIT_BROKEN)
            except DamagedRecord as error:
                if self.damage is None:
                    get_logger().critical("record.damaged", error=str(error))
                self.damage = error
                self._stopping.wait(PAUSE)
            except Exception:  # noqa: BLE001 - what stands still is seen by /readyz; the next round may go well
                get_logger().exception("follower.failed")
                self._stopping.wait(PAUSE)
        self._tail.close()

    def read_on(self) -> None:
        """Apply what the log has now, or wait for some milliseconds where that is nothing new. Raises `LogError`."""
        raise NotImplementedError

    heals = False
    """Whether a start of the worker makes a damaged record anew."""

    def wait_read_all(self) -> None:
        """Block until everything that the log had at the start has been read. Raises `DamagedRecord`.

        If `heals`, and the record is not made anew within `HEALING` seconds, end the process: a worker that runs does
        not read its rows, so the supervisor has to restart it.
        """
        since: float | None = None
        while not self.read_all.wait(PAUSE / 2):
            if self.damage is None:
                since = None
            elif not self.heals:
                raise self.damage
            elif since is None:
                since = time.monotonic()
            elif time.monotonic() - since > HEALING:
                get_logger().critical("api.waits_for_repair", error=str(self.damage))
                os._exit(EXIT_DAMAGED)

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        self.join(timeout=5)
