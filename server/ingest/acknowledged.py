"""How far this process has acknowledged events: a file, so that its next life knows it.

A broker that stopped without a flush may come back with less than it acknowledged. What was given to senders is kept
beside the log, then, in a few bytes written before each answer: not to the disk, for it need not outlive a power cut of
this machine, only the end of this process and of the broker.

    8 bytes: the log's name       8 bytes for each partition: the last offset that was acknowledged, -1: none
"""

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from structlog.stdlib import get_logger

from processor.core.tables.table_rows import NEVER


class Acknowledged:
    """partition -> the last offset that was acknowledged; `NEVER`: none. One thread at a time."""

    def __init__(self, path: Path | None, identity: str, partitions: int) -> None:
        """Without a `path` it begins anew with each process, as it does for another log."""
        self._name = identity.encode()[:8].ljust(8)
        self._form = f"<8s{partitions}q"
        self._offsets = [NEVER] * partitions
        self._file: int | None = None
        if path is None:
            return
        size = struct.calcsize(self._form)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            found = os.pread(self._file, size + 1, 0)
            if len(found) == size:
                name, *offsets = struct.unpack(self._form, found)
                if name == self._name:
                    self._offsets = offsets
            os.pwrite(self._file, struct.pack(self._form, self._name, *self._offsets), 0)
            os.ftruncate(self._file, size)
        except OSError as error:
            self._go_without(error)

    def __getitem__(self, partition: int) -> int:
        return self._offsets[partition]

    def advance(self, offsets: Mapping[int, int]) -> None:
        """These are acknowledged next."""
        for partition, offset in offsets.items():
            self._offsets[partition] = max(offset, self._offsets[partition])
        self._write()

    def forget(self, partition: int) -> None:
        """The log lost what was acknowledged, and that was reported."""
        self._offsets[partition] = NEVER
        self._write()

    def _go_without(self, error: OSError) -> None:
        """A disk that is full, or failing: this life of the process keeps it in memory."""
        get_logger().warning("acknowledged.not_kept", error=str(error))
        self.close()

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            os.pwrite(self._file, struct.pack(self._form, self._name, *self._offsets), 0)
        except OSError as error:
            self._go_without(error)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
