"""Checkpoints of the embedded log on a thread of their own, so that no commit waits for one."""

import threading
from pathlib import Path
from typing import Final

from structlog.stdlib import get_logger

from processor.log.errors import Locked
from processor.log.locks import FileLock
from processor.log.store import Log

SOFT_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of write-ahead log from which a checkpoint runs beside the writers."""

HARD_LIMIT: Final = 128 * 1024 * 1024
"""Bytes of write-ahead log from which writers wait until it is empty: the cap on its size."""

INTERVAL: Final = 0.25
"""Seconds between two looks."""


class Checkpointer(threading.Thread):
    """Keeps the write-ahead log small. One process at a time does it; another takes over when that one ends."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(name="checkpointer", daemon=True)
        self._data_dir = data_dir
        self._stopping = threading.Event()
        self._log = get_logger()

    def run(self) -> None:
        lock = FileLock(self._data_dir / "checkpointer.lock")
        store = Log(self._data_dir, create=False)
        mine = False
        while not self._stopping.wait(INTERVAL):
            try:
                if not mine:
                    lock.take("another process checkpoints")
                    mine = True
                self._step(store)
            except Locked:
                continue
            except Exception as error:  # noqa: BLE001 - a full disk ends no process; the next look tries again
                self._log.warning("checkpoint.failed", error=str(error))
        store.close()
        lock.close()

    def _step(self, store: Log) -> None:
        try:
            size = store.wal_path.stat().st_size
        except FileNotFoundError:
            return
        if size < SOFT_LIMIT:
            return
        frames, moved = store.checkpoint()
        if size >= HARD_LIMIT or (frames == moved and size >= SOFT_LIMIT):
            store.checkpoint(reset=True)

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        self.join(timeout=5)
