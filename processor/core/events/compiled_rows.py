"""Columns of a request's events by the compiled kernel, where it runs: `codec` is its twin.

The kernel takes every event that is plainly valid, and gives up all others one by one: those the twin decides, and
here the rows of both are put together in the order of the request. What comes out is what the twin alone makes, byte
for byte.

The `Dim`s of a message that is read are decoded only where one is looked at (`PackedDims`): whoever applies messages
has met nearly all of them before, and knows them again by their bytes. The kernel checks that each is one, so that no
error is left for later. Users are packed like that for the event store only (`PackedUsers`): whoever keeps tables looks
at each of them.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from operator import itemgetter
from typing import Final, Literal, NamedTuple, overload

import msgspec
import numpy as np
from msgspec import Raw

from processor.core.events.columns import (
    CLIENT,
    FACTORS,
    RECENT_FACTORS,
    ROW,
    SPAN_FLAG,
    Columns,
    Dim,
    numbered,
)
from processor.core.events.event import MAX_EVENT_BYTES, MAX_NESTING
from processor.core.events.fields import FIELDS, MAX_INT, Field
from processor.core.events.latency import UPPER
from processor.core.events.ndjson import SEPARATOR, Lines
from processor.core.growing_arrays import I64, Records
from processor.core.hash_index import HASH
from processor.core.kernel.loaded import kernel
from processor.core.money import MAX_COST, PICO
from protos.spendstream.v1 import ingest_pb2 as pb

Found = tuple[bytes, list[str | None], list[Dim], list[int], bool]
"""What the kernel returns: rows, users, dims, the places of those it gives up, whether there are spans."""

MOST: Final = 65_536
"""Events that the kernel takes at a time: as many as `ROW` can number users of."""


class Taken(NamedTuple):
    """What the kernel made of a request's events."""

    columns: Columns
    """Of all events; the rows of those that are given up are 0."""
    given_up: list[int]
    """Places of events that the twin decides."""


def take(
    payload: Literal["json", "protobuf"], records: Sequence[bytes], latest: int, *, lenient: bool, beside: bool
) -> Taken | None:
    """Decode the events of a request by today's rules; `latest` is the last instant that one may have, `lenient` and
    `beside` as in `codec`. None: there is no kernel, or it does not take such requests."""
    if kernel is None or not 0 < len(records) <= MOST:
        return None
    found: Found | None
    latest = min(latest, 2**63 - 1)
    if payload == "json":
        texts = records.texts if isinstance(records, Lines) else records
        found = kernel.json_rows(SEPARATOR.join([*texts, kernel.PAD]), len(records), latest, lenient, beside)
    else:
        messages = list(records)
        found = kernel.protobuf_rows(b"".join([*messages, kernel.PAD]), messages, latest, lenient, beside)
    if found is None:
        return None
    rows, users, dims, given_up, has_spans = found
    return Taken(Columns(np.frombuffer(rows, ROW), users, dims, records, [CLIENT], has_spans), given_up)


def merged(taken: Taken, others: Columns, lost: Sequence[int]) -> Columns | None:
    """The columns of what the kernel took and of the others, which the twin has taken of those given up; `lost` are the
    places of the rest, which has faults. None if there are more users or dims than `ROW` can number."""
    columns, given_up = taken
    users, dims = [*columns.users, *others.users], [*columns.dims, *others.dims]
    if max(len(users), len(dims)) > MOST:
        return None
    rows, added = columns.rows.copy(), others.rows.copy()
    added["user"] += len(columns.users)
    added["dim"] += len(columns.dims)
    rows[sorted({*given_up} - {*lost})] = added
    records = columns.records
    if lost:
        rows = np.delete(rows, lost)
        records = [record for place, record in enumerate(records) if place not in {*lost}]
    # As the twin does it, in the order in which they come, and without those that are in no row.
    rows["user"], users = numbered(map(users.__getitem__, rows["user"].tolist()), len(rows))
    rows["dim"], dims = numbered(map(dims.__getitem__, rows["dim"].tolist()), len(rows))
    return Columns(rows, users, dims, records, [CLIENT], bool((rows["flags"] & SPAN_FLAG).any()))


def _row(field: Field) -> tuple[str, str, bool, bool, int, int | None, tuple[str, ...]]:
    """A field as the kernel knows it."""
    has_limit = field.most is not None and field.kind in {"text", "tags"} and not field.is_cut
    most = int(field.most) if has_limit and field.most is not None else None
    in_span = field.required and field.span is None
    return field.name, field.kind, field.required, in_span, field.least, most, field.values


if kernel is not None:
    kernel.configure(
        [_row(field) for field in FIELDS],
        [field.number for field in FIELDS],
        pb.Event.DESCRIPTOR.fields_by_name["extra_json"].number,
        MAX_INT,
        MAX_COST * PICO,
        MAX_EVENT_BYTES,
        MAX_NESTING,
        FACTORS.tolist(),
        RECENT_FACTORS,
        UPPER,
    )


Names = tuple[str, str, str, str, str]
"""A `Dim` without its hour: provider, model, environment, operation and status."""

_decode = msgspec.msgpack.Decoder(Dim).decode
_decode_all = msgspec.msgpack.Decoder(list[Dim]).decode
_decode_users = msgspec.msgpack.Decoder(list[str | None]).decode
_decode_names = msgspec.msgpack.Decoder(Names).decode
_FIVE: Final = b"\x95"
"""How a list of five begins."""
_NUMBER_SIZES: Final = np.ones(256, np.int64)
"""Bytes of an hour, by the first of them: those that the kernel lets pass."""
_NUMBER_SIZES[[0xCC, 0xCD, 0xCE]] = 2, 3, 5
_without_hour: Final = itemgetter(1, 2, 3, 4, 5)


@lru_cache(1024)
def _names_of(piece: bytes) -> Names:
    """Return the names of a `Dim` from what follows its hour: message after message has the same ones."""
    names: Names = _decode_names(_FIVE + piece)
    return names


class PackedDims(Sequence[Dim]):
    """A list of them in MessagePack."""

    __slots__ = ("_bounds", "_list", "_packed", "hashes")

    def __init__(self, packed: bytes, hashes: Records, bounds: I64) -> None:
        """`bounds`: where in `packed` each begins, and where the last one ends."""
        self._packed = packed
        self._bounds = bounds
        self._list: list[Dim] | None = None
        self.hashes = hashes
        """`HASH`, of the bytes of each: of others in every process."""

    def __len__(self) -> int:
        return len(self.hashes)

    def one(self, place: int) -> Dim:
        """Decode one of them."""
        start, end = self._bounds[place : place + 2].tolist()
        found: Dim = _decode(self._packed[start:end])
        return found

    def _decoded(self) -> list[Dim]:
        if self._list is None:
            self._list = _decode_all(self._packed)
        return self._list

    def without_hours(self) -> tuple[list[Names], I64]:
        """See the function of this name. Only different ones are decoded."""
        starts = self._bounds[:-1] + 1
        starts += _NUMBER_SIZES[np.frombuffer(self._packed, np.uint8)[starts]]
        assert kernel is not None  # which has made the bounds
        codes, pieces = kernel.number_pieces(self._packed, starts, self._bounds[1:])
        return list(map(_names_of, pieces)), np.frombuffer(codes, np.int64)

    def __iter__(self) -> Iterator[Dim]:
        return iter(self._decoded())

    @overload
    def __getitem__(self, index: int) -> Dim: ...
    @overload
    def __getitem__(self, index: slice) -> list[Dim]: ...
    def __getitem__(self, index: int | slice) -> Dim | list[Dim]:
        return self._decoded()[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._decoded() == list(other)

    __hash__ = None  # type: ignore[assignment] # like a list


def read_dims(packed: Raw) -> Sequence[Dim]:
    """The `Dim`s in a list in MessagePack. Raises `msgspec.MsgspecError` if it is none."""
    text = bytes(packed)
    found = None if kernel is None else kernel.split_dims(text)
    if found is None:
        return _decode_all(text)
    hashes, bounds = found
    return PackedDims(text, np.frombuffer(hashes, HASH), np.frombuffer(bounds, np.int64))


class PackedUsers(Sequence[str | None]):
    """A list of users in MessagePack, and the same as Arrow has texts."""

    __slots__ = ("_list", "_packed", "bounds", "data", "there")

    def __init__(self, packed: bytes, there: bytes | None, bounds: bytes, data: bytearray) -> None:
        """As the kernel's `packed_texts` returns them."""
        self._packed = packed
        self._list: list[str | None] | None = None
        self.there = there
        self.bounds = bounds
        self.data = data

    def __len__(self) -> int:
        return len(self.bounds) // 4 - 1

    def _decoded(self) -> list[str | None]:
        if self._list is None:
            self._list = _decode_users(self._packed)
        return self._list

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._decoded())

    @overload
    def __getitem__(self, index: int) -> str | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[str | None]: ...
    def __getitem__(self, index: int | slice) -> str | list[str | None] | None:
        return self._decoded()[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._decoded() == list(other)

    __hash__ = None  # type: ignore[assignment] # like a list


def read_users(packed: Raw, *, stay_packed: bool) -> Sequence[str | None]:
    """The users in a list in MessagePack; `stay_packed`: they become objects only when they are asked for, where the
    kernel runs. Raises `msgspec.MsgspecError` if it is none."""
    if kernel is None or not stay_packed:
        return _decode_users(packed)
    text = bytes(packed)
    found = kernel.packed_texts(text)
    return _decode_users(text) if found is None else PackedUsers(text, *found)


def without_hours(dims: Sequence[Dim]) -> tuple[list[Names], I64]:
    """The names of some `Dim`s, each once, and of each `Dim` which of them it has."""
    if isinstance(dims, PackedDims):
        return dims.without_hours()
    numbers: defaultdict[Names, int] = defaultdict(count().__next__)
    codes = np.fromiter(map(numbers.__getitem__, map(_without_hour, dims)), np.int64, len(dims))
    return list(numbers), codes
