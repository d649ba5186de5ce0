"""The directory of the event store: the files of segments, a mark of the log they belong to, and the room that is left.

All stores and queries of a log on Kafka see one directory; on the embedded log it lies in the data directory.
"""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from processor.event_store.directory_storage import DirectoryStorage
from processor.event_store.manifest import ID_FORM, Segment
from processor.event_store.segment_storage import SegmentStorage
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

    def __init__(self, path: Path, min_free: int | None = None, storage: SegmentStorage | None = None) -> None:
        """`min_free`: bytes of the file system that the store leaves free; None: the larger of 2 GiB and 5 %.

        `storage` has the files; None: they lie in the directory `path`.
        """
        self.path = path
        self.min_free = min_free
        self.storage = storage or DirectoryStorage(path)

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

    def disclaim(self) -> None:
        """Take the mark away, as nothing is in the directory any more, until a store claims it."""
        self.storage.delete(MARK)

    @property
    def is_there(self) -> bool:
        """Whether the directory has its mark."""
        return self._mark() is not None

    def _mark(self) -> str | None:
        try:
            with self.storage.get(MARK) as file:
                return file.read().decode().strip()
        except FileNotFoundError:
            return None

    def _write_mark(self, identity: str) -> None:
        put = self.storage.put([MARK])
        try:
            put.files[0].write(f"{identity}\n".encode())
            put.commit()
        finally:
            put.discard()

    @staticmethod
    def _name(segment: str, suffix: str) -> str:
        if not ID_FORM(segment):
            raise ValueError(f"not the id of a segment: {segment[:80]!r}")
        return f"{segment}{suffix}"

    def lacks(self, segments: Iterable[Segment]) -> list[Segment]:
        """Return those of the segments of which a file is missing, or has another size."""
        sizes = {each.name: each.size for each in self.storage.list()}

        def is_whole(segment: Segment) -> bool:
            found = tuple(sizes.get(self._name(segment.id, suffix)) for suffix in SUFFIXES)
            return found == (segment.parquet_bytes, segment.index_bytes)

        return [each for each in segments if each.has_files and not is_whole(each)]

    def remove(self, name: str) -> None:
        """Delete the files of a segment, if there are any."""
        for suffix in SUFFIXES:
            self.storage.delete(self._name(name, suffix))

    def clear(self, number: int) -> int:
        """Delete the files of a partition's segments; return how many. The next store begins it anew then."""
        own = f"{number:04d}-"
        names = [
            each.name for each in self.storage.list() if each.name.startswith(own) and each.name.endswith(SUFFIXES)
        ]
        for name in names:
            self.storage.delete(name)
        return len(names)

    def unnamed(self, known: Iterable[str], partitions: Iterable[int], older: float = UNNAMED_AGE) -> Iterator[str]:
        """Yield names of files of these partitions that belong to no known segment and are older than so many seconds,
        and of what killed writers have left."""
        names, owned = set(known), {f"{number:04d}" for number in partitions}
        before = time.time() - older
        for each in self.storage.list():
            name = each.name.partition(".")[0]
            if name in names or name.partition("-")[0] not in owned or not ID_FORM(name):
                continue
            if each.changed <= before:
                yield each.name

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
