"""Undoes the content codings of a body, with a bound on what comes out that is kept while it comes out.

Bodies are inflated when they arrive, and again when somebody reads events that the log keeps as they came.
"""

from collections.abc import Iterator
from typing import Final, Literal, cast

import zstandard
from isal import isal_zlib

Coding = Literal["gzip", "deflate", "zstd"]

MAX_BODY: Final = 20 * 1024 * 1024
"""Bytes of a request body, as sent and inflated."""
MAX_WINDOW: Final = 8 * 1024 * 1024
"""Window of a zstd frame that a decoder of HTTP content has to offer (RFC 9659)."""
MAX_MEMBERS: Final = 1024
"""Members of one gzip body; each costs time, even an empty one."""

GZIP: Final = b"\x1f\x8b"
"""How a member of a gzip file begins (RFC 1952)."""
ZSTD: Final = b"\x28\xb5\x2f\xfd"
_SKIPPED: Final = tuple(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))
"""How a frame begins that zstd passes over (RFC 8878, 3.1.2)."""

_STEP = 1024 * 1024  # bytes out of one call
_SMALL = 16 * 1024  # bytes of a body for which a buffer of a megabyte would cost more than what it holds
_SMALL_STEP = 96 * 1024
_PIECE = 64 * 1024  # bytes into one call: what follows a member is copied once per member
_GZIP, _ZLIB, _RAW = 31, 15, -15

_IsalError = cast("type[Exception]", isal_zlib.error)  # its stub calls it an instance


class CodingError(ValueError):
    """The body is truncated, damaged, followed by something else, or of another coding."""


class TooLong(CodingError):
    """More came out than there may be."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} bytes come out of it")


def inflate(body: bytes, coding: Coding, limit: int = MAX_BODY) -> bytes:
    """The body itself, of at most `limit` bytes. Blocks for some 50 ms at worst, mostly without the GIL.

    Raises `CodingError`, as `TooLong` as soon as more came out.
    """
    found: list[bytes] = []
    size = 0
    try:
        if coding == "gzip" and len(body) <= _SMALL:
            whole = _small_member(body, limit)
            if whole is not None:
                return whole
        for piece in _pieces(body, coding):
            size += len(piece)
            if size > limit:
                raise TooLong(limit)
            found.append(piece)
    except TooLong:
        raise
    except (_IsalError, zstandard.ZstdError, ValueError) as error:
        raise CodingError(_why_not(body, coding) or str(error)) from None
    return found[0] if len(found) == 1 else b"".join(found)


def _why_not(body: bytes, coding: Coding) -> str | None:
    """What is wrong with a body of which its decoder gives a reason that leads astray; None: what the decoder says."""
    begins = {"gzip": body.startswith(GZIP[: len(body)]), "zstd": body.startswith((ZSTD[: len(body)], *_SKIPPED))}
    if not body:
        return "it is empty"
    if not begins.get(coding, not body.startswith((b"{", b"["))):
        return f"it is not {coding} data; leave Content-Encoding out for a body that is not compressed"
    if coding == "zstd":
        return "it is truncated or damaged, or something follows its end"
    return None


def _small_member(body: bytes, limit: int) -> bytes | None:
    """What `_members` makes of a small body of one member, in half the time; None: it is another one."""
    stream = isal_zlib.decompressobj(_GZIP)
    piece = stream.decompress(body, _SMALL_STEP)
    return piece if stream.eof and not stream.unused_data and len(piece) <= limit else None


def _pieces(body: bytes, coding: Coding) -> Iterator[bytes]:
    if coding == "zstd":
        return _zstd(body)
    if coding == "gzip":
        return _members(body, _GZIP, MAX_MEMBERS)
    return _members(body, _ZLIB if _is_zlib(body) else _RAW, 1)


def _is_zlib(body: bytes) -> bool:
    """Whether a `deflate` body has the header it should have (RFC 1950); some clients leave it out."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0


def _members(body: bytes, wbits: int, allowed: int) -> Iterator[bytes]:
    """Inflate up to `allowed` streams one after the other; raises `ValueError` if there is more, or less than one."""
    step = _SMALL_STEP if len(body) <= _SMALL else _STEP
    stream = isal_zlib.decompressobj(wbits)
    for start in range(0, len(body), _PIECE):
        data, full = body[start : start + _PIECE], False
        end = start + len(data)
        while data or full:
            if stream.eof:
                at = end - len(data)
                if wbits != _GZIP or not body.startswith(GZIP, at):
                    raise ValueError(f"something follows its end, from byte {at + 1} on")
                allowed -= 1
                if not allowed:
                    raise ValueError("it has too many members")
                stream = isal_zlib.decompressobj(wbits)
            piece = stream.decompress(data, step)
            yield piece
            # A full piece may have more behind it although all the input is used up.
            data, full = (stream.unused_data, False) if stream.eof else (stream.unconsumed_tail, len(piece) == step)
    if not stream.eof:
        raise ValueError("it is truncated")


# The reader says nothing of a frame that breaks off, so one more frame is put behind the body: if that comes out whole,
# all before it was whole too. It is `end` as one raw block.
_END = b"end"
_END_FRAME = b"\x28\xb5\x2f\xfd\x20" + bytes([len(_END)]) + (len(_END) << 3 | 1).to_bytes(3, "little") + _END


def _zstd(body: bytes) -> Iterator[bytes]:
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(
        body + _END_FRAME, read_across_frames=True
    )
    tail = b""
    while piece := reader.read(_STEP):
        yield (tail + piece)[: -len(_END)]
        tail = (tail + piece)[-len(_END) :]
    if tail != _END:
        raise ValueError("it is truncated")
