"""The directory of the event store: the files of segments, a mark of the log they belong to, and the room that is left.

All stores and queries of a log on Kafka see one directory; on the embedded log it lies in the data directory.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from processor.event_store.manifest import ID_FORM, Segment
from processor.log.durable_names import sync_directory
from processor.log.errors import HistoryMismatch

MARK: Final = "log.id"
"""Has the identity of the log."""

SUFFIXES: Final = (".parquet", ".idx")
GIB: Final = 1 << 30
SHARE: Final = 0.05

UNNAMED_AGE: Final = 3600.0
"""Seconds after which a file without a manifest is deleted where other stores may be writing."""


class StoreDirectory:
    """Files of segments by their ids. Calls block; they raise `OSError`."""

    def __init__(self, path: Path, min_free: int | None = None) -> None:
        """`min_free`: bytes of the file system that the store leaves free; None: the larger of 2 GiB and 5 %."""
        self.path = path
        self.min_free = min_free

    def claim(self, identity: str, *, is_shared: bool, has_segments: bool) -> None:
        """Make the directory if there is none, and note that it belongs to the log of this identity.

        Raises `HistoryMismatch` if it belongs to another one; and, of a shared directory, if it has no mark though
        there are segments: another file system may have to be mounted there.
        """
        found = self._mark()
        if found not in (None, identity):
            raise HistoryMismatch(
                f"the event store in {self.path} belongs to the log {found}, and this is the log {identity}: name "
                "another SPENDSTREAM_STORE_DIR, or remove its content: the store is made anew from the log"
            )
        if found is None and is_shared and has_segments:
            raise HistoryMismatch(
                f"{self.path} is not the directory of this log's event store, which all stores and queries have to "
                f"see: {MARK} is not there. Mount it, or name it by SPENDSTREAM_STORE_DIR. If it is gone for good, "
                f"write {identity} into {self.path / MARK}: the store is made anew from the log then"
            )
        if found is None:
            self._write_mark(identity)

    @property
    def is_there(self) -> bool:
        """Whether the directory has its mark."""
        return (self.path / MARK).exists()

    def _mark(self) -> str | None:
        try:
            return (self.path / MARK).read_text().strip()
        except FileNotFoundError:
            return None

    def _write_mark(self, identity: str) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.path / f"{MARK}.{os.getpid()}.new"
        with draft.open("w") as file:
            file.write(f"{identity}\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path / MARK)
        sync_directory(self.path)
        sync_directory(self.path.parent)

    def parquet(self, name: str) -> Path:
        """Return the path of a segment's rows."""
        return self._path(name, ".parquet")

    def _path(self, name: str, suffix: str) -> Path:
        if not ID_FORM(name):
            raise ValueError(f"not the id of a segment: {name[:80]!r}")
        return self.path / f"{name}{suffix}"

    def lacks(self, segments: Iterable[Segment]) -> list[Segment]:
        """Return those of the segments of which a file is missing, or has another size."""
        return [each for each in segments if each.has_files and not self._is_whole(each)]

    def _is_whole(self, segment: Segment) -> bool:
        sizes = (segment.parquet_bytes, segment.index_bytes)
        try:
            found = [self._path(segment.id, suffix).stat().st_size for suffix in SUFFIXES]
        except FileNotFoundError:
            return False
        return tuple(found) == sizes

    def remove(self, name: str) -> None:
        """Delete the files of a segment, if there are any."""
        for suffix in SUFFIXES:
            self._path(name, suffix).unlink(missing_ok=True)

    def clear(self) -> int:
        """Delete the files of all segments, and leave the mark; return how many. The next store begins anew then."""
        paths = [path for suffix in SUFFIXES for path in self.path.glob(f"*{suffix}")]
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def unnamed(self, known: Iterable[str], partitions: Iterable[int], older: float = UNNAMED_AGE) -> Iterator[Path]:
        """Yield files of these partitions that belong to no known segment and are older than so many seconds."""
        names, owned = set(known), {f"{number:04d}" for number in partitions}
        before = time.time() - older
        for entry in os.scandir(self.path):
            name = entry.name.partition(".")[0]
            if name in names or name.partition("-")[0] not in owned or not ID_FORM(name):
                continue
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime <= before:
                    yield Path(entry.path)

    def reserve(self) -> int:
        """Return the bytes that the store leaves free."""
        if self.min_free is not None:
            return self.min_free
        found = os.statvfs(self.path)
        return max(2 * GIB, int(SHARE * found.f_blocks * found.f_frsize))

    def free(self) -> int:
        """Return the bytes that are free for this user."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def has_room(self, wanted: int = 0) -> bool:
        """Return whether `wanted` more bytes leave the reserve free."""
        return self.free() - wanted >= self.reserve()
