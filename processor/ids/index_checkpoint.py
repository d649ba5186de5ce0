"""`checkpoint.json` of an id index: which files belong to it, and up to where in the claims log they go.

    {"checkpoint": {...}, "checksum": XXH3 of 128 bits over the checkpoint as JSON with sorted keys, hex}

It is replaced as a whole. A start deletes all files that it does not name.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import xxhash
from msgspec import Struct

from processor.core.tables.history import OffsetRange
from processor.ids.id_segment import write_file
from processor.ids.journal import TailFile

NAME: Final = "checkpoint.json"
FORMAT: Final = 2
"""The version of the format. Version 1 had no number; its segments were changed in place."""


class Covered(NamedTuple):
    """Up to where an index and the claims log agree: the first `ids` ids of the index are exactly those of all records
    below `claims`."""

    claims: int = 0
    """The offset after the last claims record."""
    digest: str = ""
    """XXH3 of 128 bits over that record's value, hex; empty if there is none."""
    ids: int = 0


NOTHING: Final = Covered()


class NamedSegment(Struct):
    """A segment's file, as a checkpoint names it."""

    file: str
    digest: str
    filter: int = -1
    """The number of the filter that has its ids; -1: none."""
    bit: int = -1


class IndexCheckpoint(Struct):
    """The content of a checkpoint."""

    format: int
    log: str
    """The identity of the log with the claims."""
    covered: Covered
    segments: list[NamedSegment]
    tails: list[TailFile]
    filters: dict[str, str]
    """File -> digest under the bits of `segments`."""
    void: list[OffsetRange] = []
    """Offsets of events whose claims were skipped."""

    def write(self, directory: Path) -> None:
        """Replace the checkpoint of a directory; flushed, but not its directory entry. Raises `OSError`."""
        said = msgspec.to_builtins(self)
        text = json.dumps({"checkpoint": said, "checksum": _checksum(said)}, indent=1)
        write_file(directory / NAME, [text.encode()])


class Unusable(Exception):
    """The index on disk must be deleted; the message says why."""


def read(
    directory: Path, identity: str, digest_of: Callable[[int], str | None], void: Sequence[OffsetRange] = ()
) -> IndexCheckpoint | None:
    """Return the checkpoint of a directory; None: there is none. Raises `Unusable` if it is not of this claims log.

    `digest_of` returns the digest of the claims record at an offset, None if there is no such record. `void` are the
    offsets of events whose claims do not count.
    """
    try:
        text = (directory / NAME).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unusable(f"{NAME} cannot be read: {error}") from error
    found = _parse(text)
    if found.log != identity:
        raise Unusable(f"it belongs to another log ({found.log}, not {identity})")
    if sorted(found.void) != sorted(void):
        raise Unusable(f"it skipped the claims of the lost events {_text(found.void)}, but must skip {_text(void)}")
    claims, digest, _ = found.covered
    if claims:
        there = digest_of(claims - 1)
        if there is None:
            raise Unusable(f"it goes up to the claims record {claims - 1}, which the log does not have")
        if there != digest:
            raise Unusable(f"the claims record {claims - 1} of the log is not the one that it was made from")
    return found


def _parse(text: bytes) -> IndexCheckpoint:
    try:
        outer: dict[str, Any] = json.loads(text)
        if "checkpoint" not in outer and "claims" in outer:
            raise Unusable("it has the format of an older version")
        said = outer["checkpoint"]
        if outer["checksum"] != _checksum(said):
            raise Unusable(f"the checksum of {NAME} does not match")
        if said["format"] != FORMAT:
            raise Unusable(f"it has format {said['format']}, this program reads {FORMAT}")
        return msgspec.convert(said, IndexCheckpoint)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unusable(f"{NAME} cannot be read") from None


def _text(void: Sequence[OffsetRange]) -> str:
    return ", ".join(f"{each.start} to {each.end - 1}" for each in sorted(void)) or "(none)"


def _checksum(said: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(said, sort_keys=True).encode())
