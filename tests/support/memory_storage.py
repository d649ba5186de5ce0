"""The files of an event store in memory."""

import io
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from processor.event_store.segment_storage import DRAFT, Stored, checked


class MemoryStorage:
    """`SegmentStorage` that lasts as long as the object. `fail_after` commits of so many files an `OSError` is raised,
    before the next file has its name."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.fail_after: int | None = None

    def put(self, names: Sequence[str]) -> "_Files":
        """See `SegmentStorage`."""
        return _Files(self, [checked(name) for name in names])

    def get(self, name: str) -> BinaryIO:
        """See `SegmentStorage`."""
        if checked(name) not in self.contents:
            raise FileNotFoundError(name)
        return io.BytesIO(self.contents[name])

    def list(self) -> Iterator[Stored]:
        """See `SegmentStorage`."""
        yield from [Stored(name, len(content), 0.0) for name, content in self.contents.items()]

    def delete(self, name: str) -> None:
        """See `SegmentStorage`."""
        self.contents.pop(checked(name), None)

    def commit_one(self, name: str, content: bytes) -> None:
        """Put one file, or fail."""
        if self.fail_after is not None:
            if not self.fail_after:
                raise OSError("it fails here")
            self.fail_after -= 1
        self.contents[name] = content
        self.contents.pop(name + DRAFT, None)


class _Files:
    def __init__(self, storage: MemoryStorage, names: Sequence[str]) -> None:
        self._storage = storage
        self._names = names
        self.files: list[BinaryIO] = [io.BytesIO() for _ in names]
        storage.contents.update({name + DRAFT: b"" for name in names})

    def commit(self) -> None:
        for name, file in zip(self._names, self.files, strict=True):
            file.seek(0)
            self._storage.commit_one(name, file.read())

    def discard(self) -> None:
        for name in self._names:
            self._storage.contents.pop(name + DRAFT, None)
