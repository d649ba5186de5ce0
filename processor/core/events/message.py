"""The log's event message: many requests' events for one partition, in columns, with their original bytes.

    value = msgpack [version, [block, ...], zstd(msgpack [[record, ...] of each block])]
    block = [source, users, dims, rows]        rows: 72 bytes an event, as in `columns.ROW`

The blocks alone are enough for the tables; the records are only opened to export, verify or look at events.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec
import numpy as np
import zstandard
from msgspec import Struct

from processor.core.clock import LAST
from processor.core.events.codec import PayloadFormat, decode_event
from processor.core.events.columns import ROW, Columns, Dim, Rows, numbered
from processor.core.events.event import Event, Handling
from processor.core.events.lines import SEPARATOR, Lines
from processor.core.partitioning import Places, partitions_of

VERSION: Final = 4
"""The one version that this program writes and reads; before it there was none in use."""
MAX_VERSION: Final = 1000
"""A list that begins with a larger number is no message of any version."""
MAX_RECORDS_BYTES: Final = 64 * 1024 * 1024
"""Bound of a message's records when they are inflated."""


StoredFormat = Literal["json", "proto"]
"""A payload format as messages and exported lines spell it."""

STORED: Final[dict[PayloadFormat, StoredFormat]] = {"json": "json", "protobuf": "proto"}
_PAYLOADS: Final[dict[StoredFormat, PayloadFormat]] = {stored: payload for payload, stored in STORED.items()}


class Source(Struct, array_like=True, frozen=True, gc=False):
    """Where a request's events came from: who pays for them, when and how they arrived."""

    organization: str
    project: str
    key_id: str
    arrival: int
    """Microseconds since the epoch: quotas go by it."""
    stored_format: StoredFormat
    """Of the events' original bytes."""
    handling: Handling
    lease: str = ""
    """The API process through whose lease of the quota this is paid for (`processor.leases`); empty: none is needed."""

    @property
    def payload(self) -> PayloadFormat:
        """How the events' original bytes are encoded."""
        return _PAYLOADS[self.stored_format]


class Block(Struct, array_like=True, gc=False):
    """The events of one request in one partition."""

    source: Source
    users: list[str | None]
    dims: list[Dim]
    rows: bytes
    """`columns.ROW`, one after the other."""

    def __len__(self) -> int:
        return len(self.rows) // ROW.itemsize

    def columns(self) -> Rows:
        """The rows as an array, which cannot be changed."""
        return np.frombuffer(self.rows, ROW)


class _Stored(Struct, array_like=True, gc=False):
    """One record of the topic `events`."""

    version: int
    blocks: list[Block]
    records: bytes


class Message(Struct):
    """A message that has been read and checked."""

    blocks: list[Block]
    records: bytes
    """Compressed; see `events`."""
    rows: Rows
    """The rows of all blocks, one array: what is done to the events is done to all at once."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def arrival(self) -> int:
        """The largest of its blocks."""
        return max(block.source.arrival for block in self.blocks)


class MessageError(ValueError):
    """The bytes are not a message this version can read."""


class UnknownVersion(MessageError):
    """A message of another version: not damaged, and not this program's to judge."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"event message of version {version}; this program reads {VERSION}. "
            + (
                "It was written by a newer spendstream: use that one for every API and worker"
                if version > VERSION
                else "It is older than what this program opens: export it with the spendstream that wrote it"
            )
        )
        self.version = version


def build_blocks(source: Source, columns: Columns, partitions: int) -> dict[int, tuple[Block, Sequence[bytes]]]:
    """One request's events by partition, each with the events' original bytes."""
    rows = columns.rows
    if partitions == 1:
        return {0: (Block(source, columns.users, columns.dims, rows.tobytes()), columns.records)}
    homes = partitions_of(rows["id"], partitions)
    return {home: _part(source, columns, np.flatnonzero(homes == home)) for home in dict.fromkeys(homes.tolist())}


def _part(source: Source, columns: Columns, chosen: Places) -> tuple[Block, Sequence[bytes]]:
    rows = columns.rows[chosen]
    codes, users = numbered(rows["user"].tolist(), len(rows))
    rows["user"] = codes
    codes, dims = numbered(rows["dim"].tolist(), len(rows))
    rows["dim"] = codes
    block = Block(source, [columns.users[n] for n in users], [columns.dims[n] for n in dims], rows.tobytes())
    return block, [columns.records[n] for n in chosen.tolist()]


_encode = msgspec.msgpack.Encoder().encode
_decode_message = msgspec.msgpack.Decoder(_Stored).decode
_decode_parts = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_number = msgspec.msgpack.Decoder(int).decode
_decode_records = msgspec.msgpack.Decoder(list[list[bytes] | bytes]).decode


_idle: Final[list[zstandard.ZstdCompressor]] = []
"""Compressors that no thread uses: making one takes as long as the events of half a request."""


def encode(parts: Iterable[tuple[Block, Sequence[bytes]]]) -> bytes:
    """Encode one message of any number of requests' blocks. The compression releases the GIL."""
    blocks, each = zip(*parts, strict=True)
    records = [found.text if isinstance(found, Lines) else found for found in each]
    compressor = _idle.pop() if _idle else zstandard.ZstdCompressor(level=1)
    packed = compressor.compress(_encode(records))
    _idle.append(compressor)
    return _encode(_Stored(VERSION, list(blocks), packed))


def decode(value: bytes) -> Message:
    """Decode a message; raises `MessageError`, as `UnknownVersion` where it may be sound all the same."""
    try:
        found = _decode_message(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        version = _version_of(value)
        if version is not None and version != VERSION:
            raise UnknownVersion(version) from None
        raise MessageError(f"not an event message: {error}") from None
    if found.version != VERSION:
        raise UnknownVersion(found.version)
    return opened(found.blocks, found.records)


def _version_of(value: bytes) -> int | None:
    """The version of a message that is built in another way; None: it is no message of any version."""
    try:
        parts = _decode_parts(value)
        version = _decode_number(parts[0]) if len(parts) > 1 else 0
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return version if 0 < version < MAX_VERSION else None


def opened(blocks: list[Block], records: bytes = b"") -> Message:
    """A message of these blocks; raises `MessageError` for rows that are cut off or point to no user or dim."""
    if not blocks or any(len(block.rows) % ROW.itemsize for block in blocks):
        raise MessageError("event message with torn rows")
    rows = np.frombuffer(b"".join([block.rows for block in blocks]), ROW)
    sizes = list(map(len, blocks))
    for name, dictionaries in (
        ("user", [len(block.users) for block in blocks]),
        ("dim", [len(block.dims) for block in blocks]),
    ):
        if (rows[name] >= np.repeat(dictionaries, sizes)).any():
            raise MessageError(f"event message with a row of no {name}")
    return Message(blocks, records, rows)


def events(message: Message) -> list[tuple[Block, list[Event]]]:
    """The events of a message in full, decoded again from their original bytes, with the input tokens that they were
    counted with. Raises `MessageError`.

    Whether their own time lies in the future was decided when they arrived, also by a clock that the arrival does not
    tell.
    """
    try:
        return [(block, _events(block, raws)) for block, raws in zip(message.blocks, records(message), strict=True)]
    except MessageError:
        raise
    except ValueError as error:
        raise MessageError(f"event message with unreadable records: {error}") from None


def _events(block: Block, raws: Sequence[bytes]) -> list[Event]:
    payload, handling = block.source.payload, block.source.handling
    found = [decode_event(payload, raw, handling, LAST, as_counted=True) for raw in raws]
    for event, counted in zip(found, block.columns()["input"].tolist(), strict=True):
        event.input_tokens = counted  # lenient handling may have added the cached ones, by the rules of its time
    return found


def records(message: Message) -> list[list[bytes]]:
    """The original bytes of each block's events. Raises `MessageError`."""
    try:
        packed = zstandard.ZstdDecompressor().decompress(message.records, max_output_size=MAX_RECORDS_BYTES)
        return [found.split(SEPARATOR) if isinstance(found, bytes) else found for found in _decode_records(packed)]
    except (zstandard.ZstdError, msgspec.MsgspecError) as error:
        raise MessageError(f"event message with unreadable records: {error}") from None
