"""How far this process has acknowledged events, kept in a file for its next start.

A broker that stopped without a flush may come back with less than it acknowledged. So the last acknowledged offsets are
kept beside the log, in a few bytes written before each answer. They are not flushed: they need not survive a power cut
of this machine, only the end of this process and of the broker.

    8 bytes: the log's name       8 bytes for each partition: the last offset that was acknowledged, -1: none
"""

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from processor.core.tables.table_rows import NEVER
from processor.structured_log import get_logger


class Acknowledged:
    """partition -> the last offset that was acknowledged; `NEVER`: none. For one thread at a time."""

    def __init__(self, path: Path | None, identity: str, partitions: int) -> None:
        """Read the file. Without a `path`, or if the file is of another log, begin with nothing."""
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
        """Note offsets (partition -> offset) that are about to be acknowledged."""
        for partition, offset in offsets.items():
            self._offsets[partition] = max(offset, self._offsets[partition])
        self._write()

    def forget(self, partition: int) -> None:
        """Forget a partition's offset: the log lost what was acknowledged, and that was reported."""
        self._offsets[partition] = NEVER
        self._write()

    def _go_without(self, error: OSError) -> None:
        """Continue in memory only, as the disk is full or failing."""
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
