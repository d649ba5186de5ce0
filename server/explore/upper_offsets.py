"""The upper offsets of a snapshot in few bytes, for a cursor: exact, or known to be out of date.

Where the offsets of all partitions fit, they are there as differences to the lowest. Else only the last bits of each
are, and the others come from where the store is when the next page is asked for: the highest offset up to there with
these last bits is the one that was meant unless more messages than these bits can count have arrived in the partition
since. A digest of the true offsets says whether that is so.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import Struct

from server.errors import Refused

MAX_OFFSET: Final = 2**62
MAX_PARTITIONS: Final = 1024

LEAST: Final = 6
"""Bits of an offset; with fewer a cursor would be out of date at once."""

_OVERHEAD: Final = 32
"""Bytes of packed offsets besides the offsets: four numbers, a digest and the heads of both byte strings."""
_DIGEST: Final = 8


class _Packed(Struct, frozen=True, array_like=True):
    """Offsets of the partitions from 0 on."""

    count: int
    base: int
    """What is added to each unit less one; 0 stands for a partition without messages. Of last bits 0."""
    width: int
    """Bits of an offset."""
    bits: bytes
    digest: bytes = b""
    """Of all offsets, where `bits` has the last bits of each; empty: `bits` is exact."""


_decode_packed: Final = msgspec.msgpack.Decoder(_Packed).decode


def pack(bounds: Mapping[int, int], room: int) -> bytes:
    """Return upper offsets in at most `room` bytes. Raises `Refused` (query_too_heavy) if that is too little."""
    count = max(bounds, default=-1) + 1
    base = min((bound for bound in bounds.values() if bound), default=1)
    units = [bounds[each] - base + 1 if bounds.get(each) else 0 for each in range(count)]
    width = max(units, default=0).bit_length()
    if _size(count, width) <= room:
        return msgspec.msgpack.encode(_Packed(count, base, width, _joined(units, width)))
    width = max(room - _OVERHEAD, 0) * 8 // count
    if width < LEAST:
        raise Refused(
            "query_too_heavy",
            f"A cursor has no room for where {count} partitions are; ask for a shorter time (start, end) or add a "
            "filter, so that one page has all, or export the events",
        )
    mask = (1 << width) - 1
    last = _joined([bounds.get(each, 0) & mask for each in range(count)], width)
    return msgspec.msgpack.encode(_Packed(count, 0, width, last, _digest(bounds)))


def unpack(packed: bytes, reached: Mapping[int, int]) -> dict[int, int]:
    """Return the upper offsets of an earlier snapshot; `reached` are those of the store now.

    Raises `Refused` (bad_request) for bytes that `pack` did not make, and where too much has arrived since.
    """
    try:
        found = _decode_packed(packed)
    except (ValueError, msgspec.MsgspecError):
        raise unknown_cursor() from None
    sound = 0 <= found.count <= MAX_PARTITIONS and 0 <= found.width <= 64 and 0 <= found.base < MAX_OFFSET
    if not sound or len(found.bits) != (found.count * found.width + 7) // 8:
        raise unknown_cursor()
    whole, mask = int.from_bytes(found.bits, "little"), (1 << found.width) - 1
    units = [whole >> (found.width * place) & mask for place in range(found.count)]
    if found.digest:
        return _completed(units, found.width, found.digest, reached)
    bounds = {each: found.base + unit - 1 for each, unit in enumerate(units) if unit}
    if any(not 0 < bound < MAX_OFFSET for bound in bounds.values()):
        raise unknown_cursor()
    return bounds


def unknown_cursor() -> Refused:
    """Return the refusal of a cursor that is none of ours."""
    return Refused("bad_request", "cursor is not one that this server gave out")


def _completed(last: list[int], width: int, digest: bytes, reached: Mapping[int, int]) -> dict[int, int]:
    bounds = {}
    for each, bits in enumerate(last):
        now = reached.get(each, 0)
        bounds[each] = now - ((now - bits) & ((1 << width) - 1))
    found = {each: bound for each, bound in bounds.items() if bound}
    if any(bound < 0 for bound in found.values()) or _digest(found) != digest:
        raise Refused(
            "bad_request",
            "cursor is too old: of this many partitions it counts only so many new messages each; begin the list "
            "again, or ask for a range that one page holds",
        )
    return found


def _size(count: int, width: int) -> int:
    return _OVERHEAD + (count * width + 7) // 8


def _joined(units: list[int], width: int) -> bytes:
    whole = 0
    for unit in reversed(units):
        whole = whole << width | unit
    return whole.to_bytes((len(units) * width + 7) // 8, "little")


def _digest(bounds: Mapping[int, int]) -> bytes:
    known = sorted((each, bound) for each, bound in bounds.items() if bound)
    return blake2b(msgspec.msgpack.encode(known), digest_size=_DIGEST).digest()
