"""Event messages taken apart and put together again."""

from collections.abc import Sequence
from typing import Any

import msgspec
import zstandard

from processor.core.events import message, message_v4
from processor.core.events.message import Block, Body, Message
from processor.core.events.ndjson import Lines


def blocks_of(found: Message) -> list[Block]:
    """What a message was made of: a block for each request, with the dictionaries of the whole message."""
    return [
        Block([request], list(found.users), list(found.dims), found.cost_sources, rows.copy(), [records])
        for (request, rows), records in zip(found.by_request(), message.records(found), strict=True)
    ]


def first_from(found: Message, **source: Any) -> bytes:
    """A message of the first request of another one, which came from elsewhere."""
    block = blocks_of(found)[0]
    [request] = block.requests
    changed = msgspec.structs.replace(request.source, **source)
    return message.encode([msgspec.structs.replace(block, requests=[msgspec.structs.replace(request, source=changed)])])


def ids_of(found: Message | Block) -> list[bytes]:
    """The ids of the events, in order."""
    return [event_id.tobytes() for event_id in found.rows["id"]]


def ids_by_request(value: bytes) -> list[list[bytes]]:
    """The ids of the events of each request of a message."""
    return [[event_id.tobytes() for event_id in rows["id"]] for _, rows in message.decode(value).by_request()]


def encode_v4(blocks: Sequence[Block]) -> bytes:
    """A message of these blocks, each of one request, as version 4 was written."""
    stored, records = [], []
    for block in blocks:
        [request], [originals] = block.requests, block.originals
        assert not isinstance(originals, Body)
        source = request.source
        rows = block.rows.copy()
        rows["cost_source"] = 0
        stored.append(
            [
                [
                    source.organization,
                    source.project,
                    source.key_id,
                    source.arrival,
                    "json" if source.payload == "json" else "proto",
                    source.handling,
                    source.lease,
                ],
                block.users,
                block.dims,
                rows.tobytes(),
            ]
        )
        records.append(originals.text if isinstance(originals, Lines) else list(originals))
    encode = msgspec.msgpack.Encoder().encode
    return encode([message_v4.VERSION, stored, zstandard.compress(encode(records))])
