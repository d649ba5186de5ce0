"""Reads event messages of version 4, which spendstream wrote before it wrote version 5.

    value = msgpack [4, [block, ...], zstd(msgpack [[record, ...] or text of each block])]
    block = [source, users, dims, rows]

A request had dictionaries of its own, and there was no checksum.
"""

from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from processor.core.events.codec import PayloadFormat
from processor.core.events.columns import ROW, UNPRICED_FLAG, Dim, concatenated, join_dictionaries
from processor.core.events.event import Handling
from processor.core.events.source import Api, Request, Source

VERSION: Final = 4

_PAYLOADS: Final[dict[str, tuple[PayloadFormat, Api]]] = {"json": ("json", "http"), "proto": ("protobuf", "grpc")}
"""What events were encoded as told what they had come in by."""


class _Source(Struct, array_like=True, frozen=True, gc=False):
    organization: str
    project: str
    key_id: str
    arrival: int
    stored_format: Literal["json", "proto"]
    handling: Handling
    lease: str = ""


class _Block(Struct, array_like=True, gc=False):
    source: _Source
    users: list[str | None]
    dims: list[Dim]
    rows: bytes


class _Stored(Struct, array_like=True, gc=False):
    version: int
    blocks: list[_Block]
    records: bytes


_decode = msgspec.msgpack.Decoder(_Stored).decode


class PartsV4(NamedTuple):
    """What version 5 has beside the cost sources, all of which are `columns.CLIENT` here, and the bodies."""

    requests: list[Request]
    users: list[str | None]
    dims: list[Dim]
    rows: bytes
    packed: bytes
    """The records of all requests, compressed."""


def read(value: bytes) -> PartsV4:
    """Raises `MsgspecError` and `ValueError`."""
    found = _decode(value)
    blocks = found.blocks
    if not blocks or any(len(block.rows) % ROW.itemsize for block in blocks):
        raise ValueError("torn rows")
    requests = [Request(_source(block.source), len(block.rows) // ROW.itemsize) for block in blocks]
    rows = concatenated([np.frombuffer(block.rows, ROW) for block in blocks])
    sizes = [request.count for request in requests]
    users = join_dictionaries(rows["user"], [block.users for block in blocks], sizes)
    dims = join_dictionaries(rows["dim"], [block.dims for block in blocks], sizes)
    rows["cost_source"] = (rows["flags"] & UNPRICED_FLAG) == 0
    rows["spare"] = 0
    return PartsV4(requests, users, dims, rows.tobytes(), found.records)


def _source(stored: _Source) -> Source:
    payload, api = _PAYLOADS[stored.stored_format]
    return Source(
        stored.organization,
        stored.project,
        stored.key_id,
        stored.arrival,
        payload,
        stored.handling,
        stored.lease,
        api,
        VERSION,
    )
