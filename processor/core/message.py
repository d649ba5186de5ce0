"""The log's event message: many requests' events for one partition, in columns, with their original bytes.

    value = msgpack [version, [block, ...], zstd(msgpack [[record, ...] of each block])]

The blocks alone are enough for the tables; the records are only opened to export, verify or look at events.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np
import zstandard
from msgspec import Struct

from processor.core import dedupe
from processor.core.codec import Dim, Hot, Wire, decode_event
from processor.core.event import Event, Handling

VERSION: Final = 1
MAX_RECORDS_BYTES: Final = 64 * 1024 * 1024
"""Bound of a message's records when they are inflated."""


class Source(Struct, array_like=True, frozen=True, gc=False):
    """Where a request's events came from: who pays for them, when and how they arrived."""

    organization: str
    project: str
    key_id: str
    arrival: int
    """Microseconds since the epoch: quotas go by it."""
    wire: Wire
    handling: Handling


class Block(Struct, array_like=True, gc=False):
    """The events of one request in one partition, in columns of equal length."""

    source: Source
    ids: bytes
    """16 bytes an event."""
    digests: bytes
    """8 bytes an event, little-endian."""
    dims: list[Dim]
    codes: list[int]
    """Index into `dims`."""
    times: list[int]
    input_tokens: list[int]
    output_tokens: list[int]
    cached_tokens: list[int]
    costs: list[int]
    flags: list[int]

    def __len__(self) -> int:
        return len(self.codes)


class Message(Struct, array_like=True, gc=False):
    """One record of the topic `events`."""

    version: int
    blocks: list[Block]
    records: bytes


class MessageError(ValueError):
    """The bytes are not a message this version can read."""


def build_blocks(source: Source, hot: Sequence[Hot], partitions: int) -> dict[int, tuple[Block, list[bytes]]]:
    """Columns of one request's events by partition, each with the events' original bytes."""
    ids = bytes.fromhex("".join([event[0] for event in hot]).replace("-", ""))
    if partitions == 1:
        return {0: _block(source, hot, ids)}
    homes = dedupe.partitions_of(ids, partitions).tolist()
    split: dict[int, list[int]] = {}
    for position, home in enumerate(homes):
        split.setdefault(home, []).append(position)
    return {
        home: _block(source, [hot[i] for i in chosen], b"".join([ids[16 * i : 16 * i + 16] for i in chosen]))
        for home, chosen in split.items()
    }


def _block(source: Source, hot: Sequence[Hot], ids: bytes) -> tuple[Block, list[bytes]]:
    _, dims, times, inputs, outputs, cached, costs, flags, digests, records = zip(*hot, strict=True)
    numbers: dict[Dim, int] = {}
    codes = [numbers.setdefault(dim, len(numbers)) for dim in dims]
    block = Block(
        source,
        ids,
        np.array(digests, "<u8").tobytes(),
        list(numbers),
        codes,
        list(times),
        list(inputs),
        list(outputs),
        list(cached),
        list(costs),
        list(flags),
    )
    return block, list(records)


_encode = msgspec.msgpack.Encoder().encode
_decode_message = msgspec.msgpack.Decoder(Message).decode
_decode_records = msgspec.msgpack.Decoder(list[list[bytes]]).decode


def encode(parts: Iterable[tuple[Block, list[bytes]]]) -> bytes:
    """Encode one message of any number of requests' blocks. The compression releases the GIL."""
    blocks, records = zip(*parts, strict=True)
    packed = zstandard.ZstdCompressor(level=1).compress(_encode(records))
    return _encode(Message(VERSION, list(blocks), packed))


def decode(value: bytes) -> Message:
    """Decode a message; raises `MessageError`."""
    try:
        message = _decode_message(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MessageError(f"not an event message: {error}") from None
    if message.version != VERSION:
        raise MessageError(f"event message of version {message.version}; this program reads {VERSION}")
    for block in message.blocks:
        _check_lengths(block)
    return message


def _check_lengths(block: Block) -> None:
    columns = (block.times, block.input_tokens, block.output_tokens, block.cached_tokens, block.costs, block.flags)
    count = len(block)
    if (
        len(block.ids) != 16 * count
        or len(block.digests) != 8 * count
        or any(len(column) != count for column in columns)
        or not all(0 <= code < len(block.dims) for code in block.codes)
    ):
        raise MessageError("event message with columns of unequal length")


def events(message: Message) -> list[tuple[Block, list[Event]]]:
    """The events of a message in full, decoded again from their original bytes. Raises `MessageError`."""
    try:
        return [
            (
                block,
                [decode_event(block.source.wire, raw, block.source.handling, block.source.arrival) for raw in raws],
            )
            for block, raws in zip(message.blocks, records(message), strict=True)
        ]
    except MessageError:
        raise
    except ValueError as error:
        raise MessageError(f"event message with unreadable records: {error}") from None


def records(message: Message) -> list[list[bytes]]:
    """The original bytes of each block's events. Raises `MessageError`."""
    try:
        packed = zstandard.ZstdDecompressor().decompress(message.records, max_output_size=MAX_RECORDS_BYTES)
        return _decode_records(packed)
    except (zstandard.ZstdError, msgspec.MsgspecError) as error:
        raise MessageError(f"event message with unreadable records: {error}") from None
