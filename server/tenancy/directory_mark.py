"""How far this process has read the directory, kept in a file: the next start notices if the directory lost its end.

A broker that stopped without a flush may come back with less than it acknowledged. Lost keys, revocations and quotas
cannot be computed from anything else, and only a process that has read them can notice that they are missing.

    8 bytes: the log's name       8 bytes: the last offset that was read       8 bytes: the digest of that record
"""

import os
import struct
from pathlib import Path
from typing import Final

from processor.core.tables.history import DIRECTORY, Loss, digest_of, unrecorded
from processor.core.tables.table_rows import NEVER
from processor.log import losses
from processor.log.port import LogWriter
from processor.log.records import Record
from processor.structured_log import get_logger

_FORM: Final = struct.Struct("<8sqq")


class DirectoryMark:
    """The last record of the directory that was read. For one thread at a time."""

    def __init__(self, path: Path, identity: str) -> None:
        """Open the file. A missing file or one of another log is empty; for one that cannot be written a warning is
        logged."""
        self._name = identity.encode()[:8].ljust(8)
        self._offset, self._digest = NEVER, 0
        self._file: int | None = None
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            found = os.pread(self._file, _FORM.size, 0)
        except OSError as error:
            self._go_without(error)
            return
        if len(found) == _FORM.size:
            name, offset, digest = _FORM.unpack(found)
            if name == self._name:
                self._offset, self._digest = offset, digest

    def check(self, log: LogWriter, at: int) -> None:
        """Report records that an earlier run of this process has read and the log no longer has.

        `at` is now, in microseconds since the epoch. Raises `LogUnavailable`.
        """
        start = self._offset if self._is_another(log) else log.end(losses.HOME)
        loss = Loss(start, self._offset + 1, counted=False, reason="the log lost its end", topic=DIRECTORY)
        if start > self._offset:
            return
        for each in losses.report(log, 0, unrecorded([loss], losses.of_partition(log, 0)), at):
            get_logger().error("directory.lost", first=each.start, last=each.end - 1, text=each.text)
        self._offset = NEVER
        self._write()

    def _is_another(self, log: LogWriter) -> bool:
        """Return whether there is another record at the offset of the last one. If there is none, it was compacted."""
        if self._offset == NEVER:
            return False
        found = log.read(losses.HOME, self._offset, 1)
        return bool(found) and found[0].offset == self._offset and _digest(found[0]) != self._digest

    def advance(self, record: Record) -> None:
        """Note that this record has been read."""
        self._offset, self._digest = record.offset, _digest(record)
        self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            os.pwrite(self._file, _FORM.pack(self._name, self._offset, self._digest), 0)
        except OSError as error:
            self._go_without(error)

    def _go_without(self, error: OSError) -> None:
        """Continue without the file, as the disk is full or failing."""
        get_logger().warning("directory.mark_not_kept", error=str(error))
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _digest(record: Record) -> int:
    return digest_of(record.key, record.value)
