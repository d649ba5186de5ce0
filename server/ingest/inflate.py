"""Sans-I/O: decompress a body, with a bound that is checked while data comes out."""

from collections.abc import Iterator
from typing import Final, Literal, cast

import zstandard
from isal import isal_zlib

from server.errors import Refused

Coding = Literal["gzip", "deflate", "zstd"]
Encoding = Literal[Coding, "identity"]
ENCODINGS: Final[tuple[Encoding, ...]] = ("gzip", "deflate", "zstd", "identity")

MAX_BODY: Final = 20 * 1024 * 1024
"""Most bytes of a request body, both as sent and inflated."""
MAX_WINDOW: Final = 8 * 1024 * 1024
"""Most bytes of a zstd frame's window: what a decoder of HTTP content has to support (RFC 9659)."""
MAX_MEMBERS: Final = 1024
"""Most members of a gzip body; each costs time, even an empty one."""

_STEP = 1024 * 1024  # bytes out of one call
_PIECE = 64 * 1024  # bytes into one call: what follows a member is copied once per member
_GZIP, _ZLIB, _RAW = 31, 15, -15

_IsalError = cast("type[Exception]", isal_zlib.error)  # its stub calls it an instance


def encoding_of(header: str) -> Encoding:
    """Read a `Content-Encoding`. Raises `Refused("unsupported_encoding")` for an unknown or a stacked one."""
    codings = [coding for part in header.split(",") if (coding := part.strip().lower()) not in ("", "identity")]
    name = codings[0].removeprefix("x-") if len(codings) == 1 else "identity" if not codings else ""
    for encoding in ENCODINGS:
        if encoding == name:
            return encoding
    raise Refused("unsupported_encoding", f"Content-Encoding must be one of {', '.join(ENCODINGS)}")


def inflate(body: bytes, encoding: Coding, limit: int = MAX_BODY) -> bytes:
    """What a body of one of the codings holds. Blocks for some 50 ms at worst, mostly without the GIL.

    Raises `Refused`: too_large as soon as more than `limit` bytes came out, bad_batch for data that is truncated,
    damaged or followed by something else, and for what is compressed once more.
    """
    found: list[bytes] = []
    size = 0
    try:
        for piece in _pieces(body, encoding):
            size += len(piece)
            if size > limit:
                raise too_large(limit)
            found.append(piece)
    except (_IsalError, zstandard.ZstdError, ValueError) as error:
        why = _why_not(body, encoding) or str(error)
        raise Refused("bad_batch", f"The body cannot be decompressed ({encoding}): {why}") from None
    inflated = found[0] if len(found) == 1 else b"".join(found)
    refuse_compressed(inflated, f"What came out of the body ({encoding})")
    return inflated


GZIP: Final = b"\x1f\x8b"
"""How a member of a gzip file begins (RFC 1952)."""
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_SKIPPED: Final = tuple(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))
"""How a skippable frame of zstd begins (RFC 8878, 3.1.2)."""
_COMPRESSED: Final = (GZIP, _ZSTD)
"""How compressed data begins, by which it is recognised."""


def _why_not(body: bytes, encoding: Coding) -> str | None:
    """What is wrong with a body of which its decoder gives a reason that leads astray; None: what the decoder says."""
    begins = {"gzip": body.startswith(GZIP[: len(body)]), "zstd": body.startswith((_ZSTD[: len(body)], *_SKIPPED))}
    if not body:
        return "it is empty"
    if not begins.get(encoding, not body.startswith((b"{", b"["))):
        return f"it is not {encoding} data; leave Content-Encoding out for a body that is not compressed"
    if encoding == "zstd":
        return "it is truncated or damaged, or something follows its end"
    return None


def refuse_compressed(body: bytes, what: str = "The body") -> None:
    """Raise `Refused` for what is to be text, and is compressed: its coding was not named."""
    if body.startswith(_COMPRESSED):
        name = "gzip" if body.startswith(GZIP) else "zstd"
        raise Refused("bad_batch", f"{what} is {name} data: compress it once, and say Content-Encoding: {name}")


def too_large(limit: int = MAX_BODY) -> Refused:
    """Return the refusal of a body over the limit, which is in bytes."""
    return Refused("too_large", f"The body has more than {limit // (1024 * 1024)} MiB")


def _pieces(body: bytes, encoding: Coding) -> Iterator[bytes]:
    if encoding == "zstd":
        return _zstd(body)
    if encoding == "gzip":
        return _members(body, _GZIP, MAX_MEMBERS)
    return _members(body, _ZLIB if _is_zlib(body) else _RAW, 1)


def _is_zlib(body: bytes) -> bool:
    """Return whether a `deflate` body has the header that RFC 1950 requires; some clients omit it."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0


def _members(body: bytes, wbits: int, allowed: int) -> Iterator[bytes]:
    """Inflate up to `allowed` streams one after the other. Raises `ValueError` if there are more, or none."""
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
            piece = stream.decompress(data, _STEP)
            yield piece
            # A full piece may have more behind it although all the input is used up.
            data, full = (stream.unused_data, False) if stream.eof else (stream.unconsumed_tail, len(piece) == _STEP)
    if not stream.eof:
        raise ValueError("it is truncated")


# The reader does not report a truncated frame, so one more frame is appended to the body: if that comes out whole, all
# before it was whole. It is `end` as one raw block.
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
