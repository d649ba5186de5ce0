"""Checkpoints of the embedded log on a thread of their own, so that no commit waits for one; and its watchdog."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from processor.log.embedded.log import IN_THE_WAY, Log
from processor.log.errors import Locked, LogBroken, RecoveryNeeded
from processor.log.file_lock import FileLock
from processor.recurring import Recurring
from processor.structured_log import get_logger

SOFT_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of write-ahead log from which a checkpoint runs beside the writers."""

HARD_LIMIT: Final = 128 * 1024 * 1024
"""Bytes of write-ahead log from which writers wait until it is empty: the cap on its size."""

INTERVAL: Final = 0.25
"""Seconds between two looks."""

MAX_PAUSE: Final = 8.0
"""Most seconds after a reader was in the way until the write-ahead log may start anew: each try keeps writers waiting
for a tenth of a second, and a reader may stand still for long."""

EXIT_BROKEN: Final = 74
"""The process ends with it (EX_IOERR of sysexits.h) when it must not use the log any more. Its supervisor ends all
others that use the log before it starts one again."""


def end_process(error: LogBroken) -> None:
    """End this process at once. Nothing is lost: what was acknowledged is durable, and the next start recovers it."""
    get_logger().critical("log.broken", error=str(error))
    os._exit(EXIT_BROKEN)


def _take(lock: FileLock) -> bool:
    try:
        lock.acquire("another process checkpoints")
    except Locked:
        return False
    return True


class Checkpointer(threading.Thread):
    """Keeps the write-ahead log small. One process at a time does it; another takes over when that one ends.

    In each process it also watches over the log's files: `on_broken` is called in this thread when they must not be
    used any more.
    """

    def __init__(self, data_dir: Path, on_broken: Callable[[LogBroken], None] = end_process) -> None:
        super().__init__(name="checkpointer", daemon=True)
        self._data_dir = data_dir
        self._on_broken = on_broken
        self._stopping = threading.Event()
        self._failing = Recurring("checkpoint.failed", "checkpoint.works_again")
        self._failure: str | None = None
        """What was in the way in this look; None: nothing."""
        self._store: Log | None = None
        self._lock: FileLock | None = None
        self._mine = False
        self._pause = 0.0
        self._may_reset_at = 0.0
        """Monotonic seconds."""

    def run(self) -> None:
        """Look each `INTERVAL`. Nothing but a log that must not be used ends it: what else fails is tried again."""
        try:
            while not self._stopping.wait(INTERVAL):
                self._guarded(self._look)
            self._guarded(self._finish)
        except LogBroken as error:
            self._on_broken(error)
        except RecoveryNeeded as error:  # this process has it open, too
            self._on_broken(LogBroken(str(error)))
        finally:
            if self._store is not None:
                self._store.close()
            if self._lock is not None:
                self._lock.close()

    def _guarded(self, work: Callable[[], None]) -> None:
        self._failure = None
        try:
            work()
        except (LogBroken, RecoveryNeeded):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the watchdog goes on
            self._failure = repr(error)
        if self._failure is None:
            self._failing.worked()
        else:
            self._failing.failed(error=self._failure)

    def _open(self) -> Log:
        if self._store is None:
            self._store = Log(self._data_dir, create=False)
        return self._store

    def _is_mine(self) -> bool:
        """Whether it is this process that checkpoints."""
        if self._lock is None:
            self._lock = FileLock(self._data_dir / "checkpointer.lock")
        self._mine = self._mine or _take(self._lock)
        return self._mine

    def _look(self) -> None:
        store = self._open()
        store.check()
        store.check_lock()
        if self._is_mine():
            self._step(store)

    def _step(self, store: Log) -> None:
        if store.needs_recovery:
            self._checkpoint(store, reset=True)
            return
        size = store.wal_size()
        if size < SOFT_LIMIT:
            return
        frames, moved = self._checkpoint(store, reset=False)
        if (size >= HARD_LIMIT or frames == moved) and time.monotonic() >= self._may_reset_at:
            is_a_reader_there = self._checkpoint(store, reset=True) == IN_THE_WAY and self._failure is None
            self._pause = min(max(2 * self._pause, INTERVAL), MAX_PAUSE) if is_a_reader_there else 0.0
            self._may_reset_at = time.monotonic() + self._pause

    def _finish(self) -> None:
        """At the end everything goes into the file: who copies it alone then has it all."""
        store = self._open()
        store.check()
        if self._is_mine() and store.wal_size():
            frames, moved = self._checkpoint(store, reset=False)
            if frames == moved:
                self._checkpoint(store, reset=True)

    def _checkpoint(self, store: Log, *, reset: bool) -> tuple[int, int]:
        """A checkpoint. Raises `LogBroken` when it fails in a way after which there must be no other.

        SQLite counts pages as written before their fsync; when that fails, the kernel may have dropped them, and the
        next checkpoint would write only the rest. So it is left to a start that knows nothing of this one.
        """
        try:
            return store.checkpoint(reset=reset)
        except apsw.Error as error:
            if store.has_no_room(error):  # the next look tries again
                self._failure = str(error)
                return IN_THE_WAY
            raise store.broken(f"a checkpoint of {store.path} failed: {error}") from error

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        self.join(timeout=5)
