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
from server.explore.question_params import MAX_CURSOR
from server.explore.questions import EventsQuestion, PromptsQuestion, SessionsQuestion, Times, TracesQuestion
from server.explore.snapshot import Snapshot
from server.explore.upper_offsets import pack, unknown_cursor, unpack

Paged = EventsQuestion | TracesQuestion | SessionsQuestion | PromptsQuestion

Scalar = int | float | str | bool | None

MAX_BYTES: Final = MAX_CURSOR * 3 // 4
"""Bytes that a cursor of `MAX_CURSOR` characters of base64 stands for."""

_BYTES_HEAD: Final = 2
"""By which the head of a byte string in msgpack grows, up to 65,535 bytes."""

T = TypeVar("T")
P = TypeVar("P", bound=Paged)


class _Cursor(Struct, frozen=True, array_like=True):
    """What a cursor says, as msgpack in base64."""

    binding: bytes
    """`_binding` of its question."""
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
        made = _Cursor(self.binding, self.times, snapshot.as_of, snapshot.floor, b"", list(place))
        room = MAX_BYTES - len(msgspec.msgpack.encode(made)) - _BYTES_HEAD
        made = msgspec.structs.replace(made, bounds=pack(snapshot.bounds, room))
        return urlsafe_b64encode(msgspec.msgpack.encode(made)).rstrip(b"=").decode()

    def place_as(self, kind: type[T]) -> T | None:
        """Return the place as a type that msgspec knows. Raises `Refused` (bad_request) if it is of another form."""
        if self.place is None:
            return None
        try:
            return msgspec.convert(self.place, kind)
        except msgspec.ValidationError:
            raise unknown_cursor() from None

    def answer(self, members: Mapping[str, Any]) -> bytes:
        """Return the JSON of an answer: `members`, and what every page says."""
        return stamped(self.snapshot, {**members, "expired": True} if self.expired else members)


def stamped(snapshot: Snapshot, members: Mapping[str, Any]) -> bytes:
    """Return the JSON of an answer: `members`, and the arrival up to which it is complete."""
    return msgspec.json.encode({**members, **snapshot.stamp()})


def walk(snapshot: Snapshot, question: Paged) -> Walk:
    """Begin a walk, or go on where the question's cursor says.

    Raises `Refused`: bad_request for a cursor of another question, or one that is too old for `unpack`; unavailable if
    the store does not reach as far as the cursor.
    """
    binding = _binding(question)
    if question.cursor is None:
        return Walk(snapshot, question.times, None, False, binding)
    cursor = _decode(question.cursor)
    if cursor.binding != binding:
        raise Refused("bad_request", "cursor belongs to a question with another order, other filters or other times")
    frozen = snapshot.frozen(unpack(cursor.bounds, snapshot.bounds), cursor.as_of)
    return Walk(frozen, cursor.times, cursor.place, frozen.floor > cursor.floor, binding)


def _binding(question: P) -> bytes:
    """Return what stays the same from page to page, as eight bytes."""
    given = question.times if question.given is None else question.given
    members: dict[str, Any] = {"times": given, "given": None, "cursor": None, "limit": 0, "after": {}}
    if isinstance(question, EventsQuestion):
        members["extra"] = True
    kept = msgspec.structs.replace(question, **members)
    return blake2b(msgspec.json.encode(kept), digest_size=8).digest()


_decode_cursor: Final = msgspec.msgpack.Decoder(_Cursor).decode


def _decode(text: str) -> _Cursor:
    try:
        if len(text) > MAX_CURSOR:
            raise unknown_cursor()
        return _decode_cursor(urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)))
    except (ValueError, msgspec.MsgspecError):
        raise unknown_cursor() from None
