"""Manifests: the records of the topic `spendstream.segments`, one a segment, keyed by its id.

    value = JSON {"kind", "generation", "previous", "replaces", "segment": {...}}

A segment is the rows of one partition's messages from offset `start` on, before `end`: what `segment_id` names, and two
files in the store's directory, `<id>.parquet` and `<id>.idx`; one without rows has no files. Writing the manifest makes
a segment visible: `processor.event_store.catalog` says which manifests count.
"""

import re
import secrets
from typing import Final, Literal

import msgspec
from msgspec import Struct

FORMAT: Final = 1
"""Of a manifest's JSON."""

ID_FORM: Final = re.compile(r"[0-9a-f-]{1,80}").fullmatch
"""A segment's id has to match before a path is made of it."""

Kind = Literal["fresh", "merged", "expired", "gap"]
"""`fresh`: new messages. `merged`: one segment instead of several. `expired`: the same range without its rows, which
retention has removed. `gap`: messages that the log had deleted before the store read them."""

APPENDING: Final = frozenset({"fresh", "gap"})
"""Kinds that go on where the partition's last segment ends; the others replace segments."""


class ProjectSums(Struct, frozen=True, kw_only=True):
    """What one project has in a segment. Sums are of calls only, as in the cost tables; `rows` counts spans, too."""

    project: str
    rows: int
    calls: int
    errors: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: int
    """Picodollars."""
    unpriced: int
    time_min: int
    """Event times of its rows, microseconds since the epoch."""
    time_max: int
    first_row: int
    """The rows of a segment are sorted by project: those of this one are `rows` rows from here on."""


class Segment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a reader has to know of a segment. Times are microseconds since the epoch, 0 if there are no rows."""

    id: str
    partition: int
    start: int
    """First offset of its messages in the events topic."""
    end: int
    """The offset after the last one."""
    level: int = 0
    """How many times its rows were merged."""
    rows: int = 0
    calls: int = 0
    version: int = 1
    """Of the Parquet schema."""
    parquet_bytes: int = 0
    index_bytes: int = 0
    parquet_digest: str = ""
    """XXH3 of 128 bits over the file, hex."""
    index_digest: str = ""
    arrival_min: int = 0
    arrival_max: int = 0
    time_min: int = 0
    time_max: int = 0
    claims_from: int = 0
    """Offset in the claims topic from which on all claims of messages from `end` on are found."""
    projects: tuple[ProjectSums, ...] = ()
    is_absent: bool = False
    """Whether its rows are not kept: retention has removed them, or the log had deleted the messages before they were
    read. Else one without rows has messages that were not counted."""

    @property
    def has_files(self) -> bool:
        """Whether there are files of it."""
        return self.rows > 0


class Manifest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record of the topic."""

    kind: Kind
    segment: Segment
    generation: int = 0
    """A store that has lost its files begins anew with the next generation: see `catalog`."""
    previous: str | None = None
    """Of the kinds in `APPENDING`: the segment that ended at `start` when this was written; None: there was none."""
    replaces: tuple[str, ...] = ()
    """Of the other kinds: the ids of the segments it stands for, contiguous, in their order."""
    format: int = FORMAT


class ManifestError(ValueError):
    """The record is no manifest that this program can read."""


def segment_id(partition: int, start: int, end: int) -> str:
    """Return a new id for a segment: no two calls return the same."""
    return f"{partition:04d}-{start}-{end}-{secrets.token_hex(4)}"


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Manifest).decode


def encode(manifest: Manifest) -> bytes:
    """Return the record's value."""
    return _encode(manifest)


def decode(key: bytes | None, value: bytes) -> Manifest:
    """Return the manifest of a record. Raises `ManifestError` if it is none, or of a newer format."""
    try:
        found = _decode(value)
    except msgspec.MsgspecError as error:
        raise ManifestError(f"not a manifest of a segment: {error}") from None
    segment = found.segment
    if found.format > FORMAT:
        raise ManifestError(f"manifest of format {found.format}, this program reads {FORMAT}: use a newer spendstream")
    if key != segment.id.encode() or not ID_FORM(segment.id) or not 0 <= segment.start < segment.end:
        raise ManifestError(f"manifest of the segment {segment.id[:80]!r} contradicts itself or its key")
    return found
