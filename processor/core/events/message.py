"""The log's event message: many requests' events for one partition, in columns, with their original bytes.

    value     = msgpack [version, checksum, columns, originals]
    checksum  = XXH3-64 of columns and originals as they are encoded
    columns   = [[[source, events of it], ...], users, dims, cost sources, rows]       rows: 72 bytes an event, `ROW`
    originals = [zstd(msgpack [[record, ...] or text or nil of each request]), [[coding, body] or nil of each request]]

The rows are in the order of the requests; what they point to are dictionaries of the whole message. The columns alone
are enough for the tables; the originals are only opened to export, verify or look at events. Those of a request are its
events one by one, or the lines of its body as one text, or its body as it came: then line n, blank ones not counted, is
row n of the request.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec
import numpy as np
import xxhash
import zstandard
from msgspec import Raw, Struct

from processor.core.clock import LAST
from processor.core.events import compiled_rows, message_v4, ndjson
from processor.core.events.codec import decode_event
from processor.core.events.columns import (
    CLIENT,
    ROW,
    UNPRICED_FLAG,
    Columns,
    Dim,
    Rows,
    concatenated,
    join_dictionaries,
    one_dictionary,
    pointed_to,
)
from processor.core.events.content_coding import Coding, inflate
from processor.core.events.event import Event
from processor.core.events.ndjson import Lines, by_home, size_of
from processor.core.events.source import Request, Source
from processor.core.partitioning import partitions_of

VERSION: Final = 5
"""The version that this program writes. It reads 4, too (`message_v4`); before that there was none in use."""
MAX_VERSION: Final = 1000
"""A list that begins with a larger number is no message of any version."""
MAX_RECORDS_BYTES: Final = 64 * 1024 * 1024
"""Bound of a message's records when they are inflated; that of a body is the one of requests (`content_coding`)."""


class Body(NamedTuple):
    """A request's body as it came, if it was packed and each of its lines is an event that was taken."""

    coding: Coding
    data: bytes
    size: int
    """Bytes that come out of it."""


class Block(Struct, gc=False):
    """Events for one partition on their way into the log: what `encode` makes a message of."""

    requests: list[Request]
    users: list[str | None]
    dims: list[Dim]
    cost_sources: list[str]
    rows: Rows
    originals: list[Sequence[bytes] | Body]
    """Of each request."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        """Bytes of the events as they were sent, not packed."""
        return sum(each.size if isinstance(each, Body) else size_of(each) for each in self.originals)

    @property
    def arrival(self) -> int:
        """The latest of its requests."""
        return max(request.source.arrival for request in self.requests)


class _StoredBody(Struct, array_like=True, frozen=True, gc=False):
    coding: Coding
    data: bytes


class _StoredColumns(Struct, array_like=True, gc=False):
    requests: list[Request]
    users: list[str | None]
    dims: list[Dim]
    cost_sources: list[str]
    rows: bytes


class _ReadColumns(Struct, array_like=True, gc=False):
    """The same on its way out."""

    requests: list[Request]
    users: Raw
    dims: Raw
    cost_sources: list[str]
    rows: bytes


class _StoredOriginals(Struct, array_like=True, gc=False):
    """The events' original bytes as a message has them."""

    records: bytes
    """Compressed; nil for the requests whose bodies are kept."""
    bodies: list[_StoredBody | None]
    """Of each request."""


class Message(Struct):
    """A message that has been read and checked."""

    requests: list[Request]
    users: Sequence[str | None]
    """Each once, of all requests, like `dims`: what the rows point to."""
    dims: Sequence[Dim]
    cost_sources: list[str]
    rows: Rows
    """The rows of all requests, one array: what is done to the events is done to all at once."""
    originals: Raw
    """`_StoredOriginals`, not opened yet; see `events` and `records`."""
    version: int = VERSION
    """The one it is stored with."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def arrival(self) -> int:
        """The latest of its requests."""
        return max(request.source.arrival for request in self.requests)

    @property
    def counts(self) -> list[int]:
        """Events of each request."""
        return [request.count for request in self.requests]

    def by_request(self) -> Iterator[tuple[Request, Rows]]:
        """Each request with its rows."""
        ends = accumulate(self.counts)
        for request, end in zip(self.requests, ends, strict=True):
            yield request, self.rows[end - request.count : end]


class MessageError(ValueError):
    """The bytes are not a message this version can read."""


class UnknownVersion(MessageError):
    """A message of another version: not damaged, and not this program's to judge."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"event message of version {version}; this program reads {VERSION - 1} and {VERSION}. "
            + (
                "It was written by a newer spendstream: use that one for every API and worker"
                if version > VERSION
                else "It is older than what this program opens: export it with the spendstream that wrote it"
            )
        )
        self.version = version


# --- what goes into a message ----------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """A request on its way into blocks."""

    request: Request
    records: Sequence[bytes]
    """Of each of its events."""
    body: Body | None
    """What it sent, if all of its lines are among the events; it is kept where they are all in one partition."""


def build_blocks(source: Source, columns: Columns, partitions: int, body: Body | None = None) -> dict[int, Block]:
    """One request's events by partition, see `split_blocks`."""
    found, _ = split_blocks([Sent(Request(source, len(columns.rows)), columns.records, body)], columns, partitions)
    return found


def split_blocks(
    requests: Sequence[Sent], columns: Columns, partitions: int
) -> tuple[dict[int, Block], list[tuple[int, ...]]]:
    """The events of some requests by partition, and the partitions of each request."""
    if partitions == 1:
        originals = [sent.body or sent.records for sent in requests]
        block = _block([sent.request for sent in requests], originals, columns, columns.rows)
        return {0: block}, [(0,)] * len(requests)
    return _split_by_home(requests, columns, partitions) if len(columns.rows) else ({}, [()] * len(requests))


def _split_by_home(
    requests: Sequence[Sent], columns: Columns, partitions: int
) -> tuple[dict[int, Block], list[tuple[int, ...]]]:
    """The same for several partitions, and at least one event."""
    sizes = [sent.request.count for sent in requests]
    homes = partitions_of(columns.rows["id"], partitions)
    order = np.argsort(homes, kind="stable")
    rows = columns.rows.take(order)
    # A run is what a partition gets of a request; those of a partition stand together, in the order of the requests.
    sorted_homes, members = homes[order], np.repeat(np.arange(len(sizes)), sizes)[order]
    changes = (sorted_homes[1:] != sorted_homes[:-1]) | (members[1:] != members[:-1])
    starts = np.concatenate(([0], 1 + np.flatnonzero(changes), [len(order)]))
    runs = zip(sorted_homes[starts[:-1]].tolist(), members[starts[:-1]].tolist(), np.diff(starts).tolist(), strict=True)
    pieces: list[Iterator[Sequence[bytes]]] = [
        iter(by_home(sent.records, homes[end - size : end], partitions))
        for sent, size, end in zip(requests, sizes, accumulate(sizes), strict=True)
    ]
    taken: dict[int, tuple[list[Request], list[Sequence[bytes] | Body]]] = {}
    where: list[list[int]] = [[] for _ in requests]
    for home, member, count in runs:
        sent, piece = requests[member], next(pieces[member])
        chosen, originals = taken.setdefault(home, ([], []))
        chosen.append(Request(sent.request.source, count))
        originals.append(sent.body if sent.body is not None and count == sizes[member] else piece)
        where[member].append(home)
    found: dict[int, Block] = {}
    start = 0
    for home, (chosen, originals) in taken.items():
        end = start + sum(request.count for request in chosen)
        found[home] = _used(_block(chosen, originals, columns, rows[start:end]))
        start = end
    return found, list(map(tuple, where))


def _block(requests: list[Request], originals: list[Sequence[bytes] | Body], columns: Columns, rows: Rows) -> Block:
    return Block(requests, columns.users, columns.dims, columns.cost_sources, rows, originals)


def _used(block: Block) -> Block:
    """A block with what its rows point to, and nothing else: what is shared with other blocks would be in each."""
    block.users = pointed_to(block.rows, "user", block.users)
    block.dims = pointed_to(block.rows, "dim", block.dims)
    return block


_encode = msgspec.msgpack.Encoder().encode
_decode_parts = msgspec.msgpack.Decoder(list[Raw]).decode
_decode_number = msgspec.msgpack.Decoder(int).decode
_decode_columns = msgspec.msgpack.Decoder(_ReadColumns).decode
_decode_originals = msgspec.msgpack.Decoder(_StoredOriginals).decode
_decode_records = msgspec.msgpack.Decoder(list[list[bytes] | bytes | None]).decode


_FAST: Final = zstandard.ZstdCompressionParameters.from_level(1, hash_log=12, min_match=6)
"""Level 1 with a table of 16 KiB, which stays in the processor's first cache: as small within two hundredths, and for
a thousand events a sixth faster than with the table that the level would take for them."""
_idle: Final[list[zstandard.ZstdCompressor]] = []
"""Compressors that no thread uses: making one takes as long as the events of half a request."""


def encode(blocks: Iterable[Block]) -> bytes:
    """Encode one message of any number of blocks, at least one. The compression releases the GIL."""
    whole = joined(list(blocks))
    columns = _encode(_StoredColumns(whole.requests, whole.users, whole.dims, whole.cost_sources, whole.rows.tobytes()))
    originals = _encode(_stored(whole.originals))
    return _encode([VERSION, _checksum(columns, originals), Raw(columns), Raw(originals)])


def _stored(originals: Sequence[Sequence[bytes] | Body]) -> _StoredOriginals:
    records = [
        None if isinstance(each, Body) else each.text if isinstance(each, Lines) else list(each) for each in originals
    ]
    bodies = [_StoredBody(each.coding, each.data) if isinstance(each, Body) else None for each in originals]
    compressor = _idle.pop() if _idle else zstandard.ZstdCompressor(compression_params=_FAST)
    packed = compressor.compress(_encode(records))
    _idle.append(compressor)
    return _StoredOriginals(packed, bodies)


def _checksum(columns: bytes | memoryview, originals: bytes | memoryview) -> int:
    found = xxhash.xxh3_64(columns)
    found.update(originals)
    return found.intdigest()


def joined(blocks: Sequence[Block]) -> Block:
    """All blocks, at least one, as one: their dictionaries become one of each kind."""
    rows = concatenated([block.rows for block in blocks])
    sizes = list(map(len, blocks))
    users = one_dictionary(rows, "user", [block.users for block in blocks], sizes)
    dims = one_dictionary(rows, "dim", [block.dims for block in blocks], sizes)
    cost_sources = blocks[0].cost_sources
    if any(block.cost_sources != cost_sources for block in blocks):
        every = [[None, *block.cost_sources] for block in blocks]
        cost_sources = [name for name in join_dictionaries(rows["cost_source"], every, sizes) if name is not None]
    return Block(
        [request for block in blocks for request in block.requests],
        users,
        dims,
        cost_sources,
        rows,
        [each for block in blocks for each in block.originals],
    )


# --- what comes out of one -------------------------------------------------------------------------------------------


def decode(value: bytes, *, packed_users: bool = False) -> Message:
    """Decode a message; raises `MessageError`, as `UnknownVersion` where it may be sound all the same. `packed_users`:
    for whoever needs no object for each user."""
    try:
        parts = _decode_parts(value)
        version = _decode_number(parts[0]) if len(parts) > 1 else 0
        if version != VERSION:
            return _read_other(version, value)
        _, checksum, columns, originals = parts
        if _decode_number(checksum) != _checksum(memoryview(columns), memoryview(originals)):
            raise MessageError("event message with a wrong checksum: its bytes are not those that were written")
        found = _decode_columns(columns)
        users = compiled_rows.read_users(found.users, stay_packed=packed_users)
        dims = compiled_rows.read_dims(found.dims)
        return _checked(found.requests, users, dims, found.cost_sources, found.rows, originals)
    except MessageError:
        raise
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MessageError(f"not an event message: {error}") from None


def _read_other(version: int, value: bytes) -> Message:
    """A message of another version."""
    if version == message_v4.VERSION:
        return _read_v4(value)
    if not 0 < version < MAX_VERSION:
        raise MessageError("not an event message: it names no version")
    raise UnknownVersion(version)


def _read_v4(value: bytes) -> Message:
    requests, users, dims, rows, packed = message_v4.read(value)
    originals = Raw(_encode(_StoredOriginals(packed, [None] * len(requests))))
    return _checked(requests, users, dims, [CLIENT], rows, originals, message_v4.VERSION)


def _checked(
    requests: list[Request],
    users: Sequence[str | None],
    dims: Sequence[Dim],
    cost_sources: list[str],
    stored_rows: bytes | bytearray,
    originals: Raw,
    version: int = VERSION,
) -> Message:
    """A message of these parts; raises `MessageError` for rows that are cut off or point to nothing."""
    if len(stored_rows) % ROW.itemsize or not requests or min(request.count for request in requests) <= 0:
        raise MessageError("event message with torn rows")
    rows = np.frombuffer(stored_rows, ROW)
    if sum(request.count for request in requests) != len(rows):
        raise MessageError("event message with torn rows")
    for name, size in (("user", len(users)), ("dim", len(dims)), ("cost_source", 1 + len(cost_sources))):
        if rows[name].max() >= size:
            raise MessageError(f"event message with a row of no {name}")
    return Message(requests, users, dims, cost_sources, rows, originals, version)


def opened(blocks: Iterable[Block]) -> Message:
    """The message that `decode` makes of what `encode` makes of these blocks."""
    return decode(encode(blocks))


def records(message: Message) -> list[Sequence[bytes]]:
    """The original bytes of each request's events. Raises `MessageError`."""
    try:
        stored = _decode_originals(message.originals)
        packed = zstandard.ZstdDecompressor().decompress(stored.records, max_output_size=MAX_RECORDS_BYTES)
        found: list[Sequence[bytes]] = []
        for request, body, each in zip(message.requests, stored.bodies, _decode_records(packed), strict=True):
            if body is not None:
                found.append(ndjson.split(inflate(body.data, body.coding), request.count)[0])
            elif each is not None:
                found.append(ndjson.lines_of(each) if isinstance(each, bytes) else each)
            else:
                raise MessageError("event message without the records of a request")
    except MessageError:
        raise
    except (zstandard.ZstdError, ValueError) as error:  # those of msgspec, too
        raise MessageError(f"event message with unreadable records: {error}") from None
    return found


def events(message: Message) -> list[tuple[Request, list[Event]]]:
    """The events of a message in full, decoded again from their original bytes, with what was decided when they
    arrived: cost, where that is from, counted input tokens. Raises `MessageError`.

    Whether their own time lies in the future was decided then, too, also by a clock that the arrival does not tell.
    """
    found = []
    try:
        for (request, rows), raws in zip(message.by_request(), records(message), strict=True):
            source = request.source
            payload, handling, rules = source.payload, source.handling, source.rules
            decoded = [decode_event(payload, raw, handling, LAST, as_counted=True, rules=rules) for raw in raws]
            for event, row in zip(decoded, rows, strict=True):
                if event.is_span:
                    continue  # nothing was to be decided
                event.input_tokens = int(row["input"])
                event.cost = int(row["cost"])
                event.priced = not row["flags"] & UNPRICED_FLAG
                event.cost_source = [None, *message.cost_sources][row["cost_source"]]
            found.append((request, decoded))
    except MessageError:
        raise
    except ValueError as error:
        raise MessageError(f"event message with unreadable records: {error}") from None
    return found
