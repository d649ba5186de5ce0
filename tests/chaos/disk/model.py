"""A disk that loses power: what of the recorded writes is durable, and what a cut may leave of the rest.

The rules are those of a file system that promises only what POSIX does. What was written to a file is durable after an
fsync of that file; a name, a rename or a removal after an fsync of its directory. What was not: any of it may be there,
in any order, a write torn at a sector; of the names a first part, for file systems write them in order. What an fsync
that failed should have written is gone, until the same page is written again: the kernel marks its pages clean
(LSFMM 2018, "PostgreSQL's fsync() surprise").
"""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

SECTOR: Final = 512
PAGE: Final = 4096

CREATE, WRITE, TRUNCATE, SYNC, SYNC_DIRECTORY, RENAME, UNLINK, MKDIR, SYNC_FAILED = range(1, 10)

_HEAD: Final = struct.Struct("<IIQQQ")


class Op(NamedTuple):
    """One record of the journal."""

    code: int
    inode: int
    offset: int
    """Of a write; the new size of a truncation."""
    paths: tuple[str, ...]
    data: bytes
    end: int
    """Bytes of the journal up to its end."""


def read(journal: Path) -> Iterator[Op]:
    """The records of a journal; a last one that is cut off is left out."""
    whole = memoryview(journal.read_bytes())
    at = 0
    while at + _HEAD.size <= len(whole):
        code, path_length, inode, offset, length = _HEAD.unpack_from(whole, at)
        at += _HEAD.size
        if at + path_length + length > len(whole):
            return
        paths = tuple(bytes(whole[at : at + path_length]).decode().split("\0")[:-1])
        at += path_length
        data = bytes(whole[at : at + length])
        at += length
        yield Op(code, inode, offset, paths, data, at)


class _Change(NamedTuple):
    """Something that a file's next fsync makes durable: bytes at an offset, or with no bytes a new size."""

    offset: int
    data: bytes | None


class _Renaming(NamedTuple):
    """A name that comes (no old one), goes (no new one) or changes, at once."""

    old: str | None
    new: str | None
    inode: int


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    cache: bytearray = field(default_factory=bytearray)
    """As programs see it."""
    pending: list[_Change] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    """Pages that the cache has and nobody will write: their fsync has failed."""


def _apply(content: bytearray, change: _Change) -> None:
    if change.data is None:
        if change.offset < len(content):
            del content[change.offset :]
        else:
            content.extend(bytes(change.offset - len(content)))
        return
    if len(content) < change.offset:
        content.extend(bytes(change.offset - len(content)))
    content[change.offset : change.offset + len(change.data)] = change.data


class Disk:
    """The state of a directory after some of the records."""

    def __init__(self, root: Path) -> None:
        """Begin with what is in `root` now, all of it durable."""
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {}
        """Durable names -> inode; 0: a directory."""
        self._seen: dict[str, int] = {}
        """Names as programs see them."""
        self._pending: dict[str, list[_Renaming]] = {}
        """By directory, the changes of names that its next fsync makes durable."""
        for path in sorted(root.rglob("*")):
            name = f"/{path.relative_to(root)}"
            inode = 0
            if path.is_file():
                inode = path.stat().st_ino
                content = path.read_bytes()
                self._files[inode] = _File(bytearray(content), bytearray(content))
            self._names[name] = self._seen[name] = inode

    def feed(self, op: Op) -> None:
        """Take in the next record."""
        if op.code == CREATE:
            self._files[op.inode] = _File()
            self._name(_Renaming(None, op.paths[0], op.inode))
        elif op.code == MKDIR:
            self._name(_Renaming(None, op.paths[0], 0))
        elif op.code == UNLINK:
            self._name(_Renaming(op.paths[0], None, 0))
        elif op.code == RENAME:
            self._name(_Renaming(op.paths[0], op.paths[1], self._seen.get(op.paths[0], 0)))
        elif op.code == SYNC_DIRECTORY:
            for change in self._pending.pop(op.paths[0].rstrip("/") or "/", []):
                _rename(self._names, change)
        else:
            self._change(self._files.setdefault(op.inode, _File()), op)

    def _name(self, change: "_Renaming") -> None:
        _rename(self._seen, change)
        self._pending.setdefault(str(PurePosixPath(change.new or change.old or "/").parent), []).append(change)

    def _change(self, file: _File, op: Op) -> None:
        if op.code == SYNC:
            for change in file.pending:
                _apply(file.durable, change)
            file.pending.clear()
        elif op.code == SYNC_FAILED:
            for change in file.pending:
                if change.data is not None:
                    file.lost.update(range(change.offset // PAGE, (change.offset + len(change.data) - 1) // PAGE + 1))
            file.pending = [change for change in file.pending if change.data is None]
        elif op.code == TRUNCATE:
            change = _Change(op.offset, None)
            _apply(file.cache, change)
            file.pending.append(change)
        elif op.code == WRITE:
            change = _Change(op.offset, op.data)
            _apply(file.cache, change)
            again = file.lost & set(range(op.offset // PAGE, (op.offset + len(op.data) - 1) // PAGE + 1))
            file.pending += [_Change(page * PAGE, bytes(file.cache[page * PAGE : (page + 1) * PAGE])) for page in again]
            file.lost -= again
            file.pending.append(change)

    def cut(self, target: Path, rng: random.Random, keep: str) -> None:
        """Write to `target` what the disk may have after a cut now.

        `keep`, of what was not made durable: "nothing", "all", "first" (a first part of each file's) or "some" (any of
        it, torn at sectors).
        """
        names = dict(self._names)
        for changes in self._pending.values():
            count = {"nothing": 0, "all": len(changes)}.get(keep, rng.randint(0, len(changes)))
            for change in changes[:count]:
                _rename(names, change)
        target.mkdir(parents=True, exist_ok=True)
        for name, inode in sorted(names.items()):
            path = target / name.lstrip("/")
            if any(str(parent) != "/" and str(parent) not in names for parent in PurePosixPath(name).parents):
                continue  # its directory was never made durable
            if inode == 0:
                path.mkdir(exist_ok=True, mode=0o700)
            else:
                path.write_bytes(_left(self._files.get(inode, _File()), rng, keep))
                path.chmod(0o600)


def _rename(names: dict[str, int], change: _Renaming) -> None:
    if change.new is not None:
        names[change.new] = change.inode
    if change.old is not None:
        names.pop(change.old, None)


def _left(file: _File, rng: random.Random, keep: str) -> bytearray:
    """What a cut leaves of a file."""
    content = bytearray(file.durable)
    if keep == "nothing":
        return content
    pending = list(file.pending)
    if keep == "first":
        pending = pending[: rng.randint(0, len(pending))]
    elif keep == "some":
        pending = [piece for change in pending for piece in _pieces(change) if rng.random() < 0.5]
    for change in pending:
        _apply(content, change)
    return content


def _pieces(change: _Change) -> list[_Change]:
    """A write in sectors."""
    if change.data is None:
        return [change]
    ends = [*range(SECTOR - change.offset % SECTOR, len(change.data), SECTOR), len(change.data)]
    starts = [0, *ends[:-1]]
    return [_Change(change.offset + start, change.data[start:end]) for start, end in zip(starts, ends, strict=True)]
