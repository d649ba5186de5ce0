"""Cursors: the place of a page in a walk over a frozen set of events.

A cursor has the upper offsets of the snapshot and the range of times that the first page saw, so that every page is one
of the same set, whatever process answers it and whatever compaction does meanwhile. It is bound to the project, the
filters and the order of its question. It is not signed: a cursor that a client has made up shows nothing that the
question itself would not.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from processor.core.clock import LAST
from server.errors import Refused
from server.explore.questions import EventsQuestion, PromptsQuestion, SessionsQuestion, Times, TracesQuestion
from server.explore.snapshot import ALWAYS, Snapshot

Paged = EventsQuestion | TracesQuestion | SessionsQuestion | PromptsQuestion

Scalar = int | float | str | bool | None

MAX_CURSOR: Final = 2048
"""Characters."""
MAX_BOUNDS: Final = 1024
"""Bytes of the upper offsets; the rest is for the place."""

MAX_OFFSET: Final = 2**62

T = TypeVar("T")
P = TypeVar("P", bound=Paged)


class _Cursor(Struct, frozen=True, array_like=True):
    binding: bytes
    times: Times
    as_of: Annotated[int, Meta(ge=0, le=LAST)]
    floor: int
    """`Snapshot.floor` of the page before."""
    bounds: bytes
    place: list[Scalar]


class Walk(Struct, frozen=True):
    """One page of a walk."""

    snapshot: Snapshot
    times: Times
    """Of the first page: those of a later question may be relative to its own time."""
    place: list[Scalar] | None
    """What the page before gave to `cursor`; None: this is the first page."""
    expired: bool
    """Whether retention has deleted events of the set since the page before."""
    binding: bytes

    def cursor(self, place: Sequence[Scalar]) -> str:
        """Return the cursor of the next page, which begins behind `place`."""
        snapshot = self.snapshot
        made = _Cursor(self.binding, self.times, snapshot.as_of, snapshot.floor, pack(snapshot.bounds), list(place))
        return urlsafe_b64encode(msgspec.msgpack.encode(made)).rstrip(b"=").decode()

    def place_as(self, kind: type[T]) -> T | None:
        """Return the place as a type that msgspec knows. Raises `Refused` (bad_request) if it is of another form."""
        if self.place is None:
            return None
        try:
            return msgspec.convert(self.place, kind)
        except msgspec.ValidationError:
            raise _unknown() from None

    def answer(self, members: Mapping[str, Any]) -> bytes:
        """Return the JSON of an answer: `members`, and what every page says."""
        return stamped(self.snapshot, {**members, "expired": True} if self.expired else members)


def stamped(snapshot: Snapshot, members: Mapping[str, Any]) -> bytes:
    """Return the JSON of an answer: `members`, and the arrival up to which it is complete."""
    return msgspec.json.encode({**members, **snapshot.stamp()})


def walk(snapshot: Snapshot, question: Paged) -> Walk:
    """Begin a walk, or go on where the question's cursor says.

    Raises `Refused`: bad_request for a cursor of another question, unavailable if the store does not reach as far as
    the cursor.
    """
    binding = _binding(question)
    if question.cursor is None:
        return Walk(snapshot.frozen(fitting(snapshot.bounds), snapshot.as_of), question.times, None, False, binding)
    cursor = _decode(question.cursor)
    if cursor.binding != binding:
        raise Refused("bad_request", "cursor belongs to a question with another order or other filters")
    frozen = snapshot.frozen(unpack(cursor.bounds), cursor.as_of)
    return Walk(frozen, cursor.times, cursor.place, frozen.floor > cursor.floor, binding)


def _binding(question: P) -> bytes:
    """Return what stays the same from page to page, as eight bytes."""
    members: dict[str, Any] = {"times": ALWAYS, "cursor": None, "limit": 0, "after": {}}
    if isinstance(question, EventsQuestion):
        members["extra"] = True
    kept = msgspec.structs.replace(question, **members)
    return blake2b(msgspec.json.encode(kept), digest_size=8).digest()


_decode_cursor: Final = msgspec.msgpack.Decoder(_Cursor).decode


def _decode(text: str) -> _Cursor:
    try:
        if len(text) > MAX_CURSOR:
            raise _unknown()
        return _decode_cursor(urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)))
    except (ValueError, msgspec.MsgspecError):
        raise _unknown() from None


def _unknown() -> Refused:
    return Refused("bad_request", "cursor is not one that this server gave out")


# --- upper offsets ---------------------------------------------------------------------------------------------------


class _Packed(Struct, frozen=True, array_like=True):
    """Offsets of the partitions from 0 on: each is `base` and so many units of 2^`shift`; 0 stands for none."""

    count: int
    base: int
    shift: int
    width: int
    """Bits of an offset."""
    bits: bytes


_decode_packed: Final = msgspec.msgpack.Decoder(_Packed).decode


def pack(bounds: Mapping[int, int]) -> bytes:
    """Return upper offsets that are `fitting` in few bytes."""
    return _pack(bounds, _shift(bounds))


def fitting(bounds: Mapping[int, int]) -> dict[int, int]:
    """Return the upper offsets of a snapshot whose cursors are short enough.

    The same, but for hundreds of partitions that are at very different offsets: then a little lower.
    """
    shift = _shift(bounds)
    base = _base(bounds)
    found = {each: base + ((bound - base) >> shift << shift) for each, bound in bounds.items() if bound}
    return {each: bound for each, bound in found.items() if bound}


def _base(bounds: Mapping[int, int]) -> int:
    return min((bound for bound in bounds.values() if bound), default=1)


def _shift(bounds: Mapping[int, int]) -> int:
    return next(shift for shift in range(64) if len(_pack(bounds, shift)) <= MAX_BOUNDS)


def _pack(bounds: Mapping[int, int], shift: int) -> bytes:
    count, base = max(bounds, default=-1) + 1, _base(bounds)
    units = [((bounds[each] - base) >> shift) + 1 if bounds.get(each) else 0 for each in range(count)]
    width = max(units, default=0).bit_length()
    whole = sum(unit << (width * place) for place, unit in enumerate(units))
    return msgspec.msgpack.encode(
        _Packed(count, base, shift, width, whole.to_bytes((count * width + 7) // 8, "little"))
    )


def unpack(packed: bytes) -> dict[int, int]:
    """Return the upper offsets. Raises `Refused` for bytes that `pack` did not make."""
    try:
        found = _decode_packed(packed)
    except (ValueError, msgspec.MsgspecError):
        raise _unknown() from None
    sound = 0 <= found.count <= 1024 and 0 <= found.shift < 64 and 0 <= found.width <= 64
    if not sound or not 0 < found.base < MAX_OFFSET or len(found.bits) != (found.count * found.width + 7) // 8:
        raise _unknown()
    whole, mask = int.from_bytes(found.bits, "little"), (1 << found.width) - 1
    units = [whole >> (found.width * place) & mask for place in range(found.count)]
    bounds = {each: found.base + ((unit - 1) << found.shift) for each, unit in enumerate(units) if unit}
    if any(bound >= MAX_OFFSET for bound in bounds.values()):
        raise _unknown()
    return bounds
