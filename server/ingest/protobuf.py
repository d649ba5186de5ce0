"""Sans-I/O: split an `IngestRequest` into the bytes of its events.

It walks the tags instead of using the generated class: the events are kept as sent, and a message of millions of empty
events costs no more than its first hundred. Encoding: protobuf.dev/programming-guides/encoding.
"""

from typing import Final, NamedTuple

from processor.core.kernel.loaded import kernel
from server.errors import Refused

_SEQUENCE: Final = 1 << 3 | 0
_EVENT: Final = 2 << 3 | 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES: Final = 10

MAX_FIELDS: Final = 1024
"""Fields of a refused request that are searched for its sequence: ten times those of the largest valid batch."""


class RawRequest(NamedTuple):
    """An `IngestRequest` whose events have not been parsed."""

    sequence: int
    events: list[bytes]


def parse(raw: bytes, limit: int) -> RawRequest:
    """Split a request; stop after `limit` + 1 events. Raises `Refused("bad_batch")` if it is not well formed."""
    found = None if kernel is None else kernel.split_request(raw, limit)
    if found is not None:  # nearly always
        return RawRequest(*found)
    return _parsed(raw, limit)


def _parsed(raw: bytes, limit: int) -> RawRequest:
    """The same for any request, the kernel's twin."""
    sequence = 0
    events: list[bytes] = []
    position = 0
    end = len(raw)
    try:
        while position < end and len(events) <= limit:
            tag = raw[position]
            if tag < 0x80:
                position += 1
            else:
                tag, position = _varint(raw, position)
            if tag == _EVENT:
                low = raw[position]
                high = raw[position + 1] if low >= 0x80 else 0x80
                if high < 0x80:  # nearly always: an event is longer than 127 bytes and shorter than 16,384
                    size = low & 0x7F | high << 7
                    position += 2
                else:
                    size, position = _varint(raw, position)
                event = raw[position : position + size]
                if len(event) != size:
                    raise IndexError
                events.append(event)
                position += size
            elif tag == _SEQUENCE:
                sequence, position = _varint(raw, position)
            else:
                position = _skip(raw, tag, position)
    except IndexError:
        raise Refused("bad_batch", "The message is not a valid IngestRequest") from None
    return RawRequest(sequence & 0xFFFF_FFFF_FFFF_FFFF, events)


def sequence_of(raw: bytes) -> int:
    """Return the sequence of a refused request, wherever it is among the fields; 0 if it is not found.

    Searches at most `MAX_FIELDS` fields: a refusal must not cost more than the request it refuses.
    """
    sequence = 0
    position = 0
    end = len(raw)
    try:
        for _ in range(MAX_FIELDS):
            if position >= end:
                break
            tag, position = _varint(raw, position)
            if tag == _SEQUENCE:
                sequence, position = _varint(raw, position)
            else:
                position = _skip(raw, tag, position)
    except IndexError:
        pass
    return sequence & 0xFFFF_FFFF_FFFF_FFFF


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    """Return the varint at `position`, and the position after it. Raises `IndexError` if it does not end."""
    byte = raw[position]
    if byte < 0x80:
        return byte, position + 1
    value = byte & 0x7F
    for index in range(1, _MAX_VARINT_BYTES):
        byte = raw[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise IndexError


def _skip(raw: bytes, tag: int, position: int) -> int:
    """Return the position after an unknown field. Raises `IndexError` for a bad tag or type, or if it is cut off."""
    kind = tag & 7
    if tag < 8 or kind not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
        raise IndexError
    if kind == _VARINT:
        return _varint(raw, position)[1]
    if kind == _BYTES:
        size, position = _varint(raw, position)
    else:
        size = 8 if kind == _FIXED64 else 4
    if position + size > len(raw):
        raise IndexError
    return position + size
