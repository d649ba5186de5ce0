"""The port under the segments: named files that are put as a whole, read, listed and deleted.

A directory is behind it (`directory_storage`); an object store could be. Readers of the product take the files of a
directory by their paths, for DuckDB and memory maps: the port is what the store itself needs.
"""

import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple, Protocol

NAME_FORM: Final = re.compile(r"[0-9a-z][0-9a-z-]{0,80}(\.[0-9a-z]{1,16}){0,3}").fullmatch
"""A name has to match before a path is made of it."""

DRAFT: Final = ".new"
"""How the names end that a put which was killed may leave; nothing that was put has such a name."""


class Stored(NamedTuple):
    """A file that is there."""

    name: str
    size: int
    changed: float
    """When it was put, in seconds since the epoch by the clock of the storage."""


class Put(Protocol):
    """Files that are being written. `commit` or `discard` ends it; a process that is killed discards it."""

    @property
    def files(self) -> Sequence[BinaryIO]:
        """One for each name, to be written from the start on."""
        ...

    def commit(self) -> None:
        """Give all files their names, one after the other in their order: each is there as a whole, or not at all, and
        all are durable on return. Raises `OSError`: then some of the first may be there."""
        ...

    def discard(self) -> None:
        """Leave nothing behind of what was not committed. May be called again, and after `commit`."""
        ...


class SegmentStorage(Protocol):
    """Names are those that `NAME_FORM` matches; others raise `ValueError`. Calls block, and raise `OSError`."""

    def put(self, names: Sequence[str]) -> Put:
        """Begin to write files. One that is there already is replaced; who reads it goes on with what it was."""
        ...

    def get(self, name: str) -> BinaryIO:
        """Open a file for reading. It can be read to its end even when it is deleted meanwhile.

        Raises `FileNotFoundError`.
        """
        ...

    def list(self) -> Iterator[Stored]:
        """Return all files, in no order, and what killed puts have left (`DRAFT`)."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        ...


def checked(name: str) -> str:
    """Return the name. Raises `ValueError` if it is none."""
    if not NAME_FORM(name):
        raise ValueError(f"not the name of a file of the event store: {name[:100]!r}")
    return name
