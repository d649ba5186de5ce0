"""The files of the event store in a directory: the adapter of `processor.event_store.segment_storage`."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from processor.event_store.segment_storage import DRAFT, Stored, checked
from processor.log.durable_names import sync_directory


class DirectoryStorage:
    """`SegmentStorage` in a directory, which the first put makes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, names: Sequence[str]) -> "_Drafts":
        """See `SegmentStorage`. Files are drafts until they are committed."""
        paths = [self.path / checked(name) for name in names]
        if not self.path.is_dir():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(self.path.parent)
        return _Drafts(paths)

    def get(self, name: str) -> BinaryIO:
        """See `SegmentStorage`."""
        return (self.path / checked(name)).open("rb")

    def list(self) -> Iterator[Stored]:
        """See `SegmentStorage`."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    found = entry.stat()
                    if entry.is_file():
                        yield Stored(entry.name, found.st_size, found.st_mtime)

    def delete(self, name: str) -> None:
        """See `SegmentStorage`."""
        (self.path / checked(name)).unlink(missing_ok=True)


class _Drafts:
    """`Put`: drafts with names of their own, which no other process uses."""

    def __init__(self, paths: Sequence[Path]) -> None:
        mark = secrets.token_hex(4)
        self._paths = {path.with_name(f"{path.name}.{mark}{DRAFT}"): path for path in paths}
        self.files: list[BinaryIO] = []
        try:
            for draft in self._paths:
                self.files.append(draft.open("wb"))
        except OSError:
            self.discard()
            raise

    def commit(self) -> None:
        """See `Put`."""
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for draft, path in self._paths.items():
            draft.replace(path)
        sync_directory(next(iter(self._paths)).parent)

    def discard(self) -> None:
        """See `Put`."""
        for file in self.files:
            with contextlib.suppress(OSError):  # it wants to write what it has
                file.close()
        for draft in self._paths:
            draft.unlink(missing_ok=True)
