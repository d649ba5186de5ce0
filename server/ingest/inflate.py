"""Undoes the content codings of a request's body, and says to its sender why one cannot be undone."""

from typing import Final, Literal

from processor.core.events import content_coding
from processor.core.events.content_coding import GZIP, MAX_BODY, ZSTD, Coding, CodingError, TooLong
from processor.core.events.message import Body
from server.errors import Refused

Encoding = Literal[Coding, "identity"]
ENCODINGS: Final[tuple[Encoding, ...]] = ("gzip", "deflate", "zstd", "identity")


def encoding_of(header: str) -> Encoding:
    """Read a `Content-Encoding`; raises `Refused("unsupported_encoding")` for an unknown or a stacked one."""
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
    try:
        inflated = content_coding.inflate(body, encoding, limit)
    except TooLong:
        raise too_large(limit) from None
    except CodingError as error:
        raise Refused("bad_batch", f"The body cannot be decompressed ({encoding}): {error}") from None
    refuse_compressed(inflated, f"What came out of the body ({encoding})")
    return inflated


MIN_RATIO: Final = 2
"""What a body has to shrink to its part of, to be kept as it came: a sender who hardly packs does not fill the disk."""


def kept(sent: bytes, encoding: Encoding, inflated: bytes) -> Body | None:
    """A body for the log to keep as it came, so that nobody packs it again; None: it is not worth it."""
    if encoding == "identity" or len(sent) * MIN_RATIO > len(inflated):
        return None
    return Body(encoding, sent, len(inflated))


def refuse_compressed(body: bytes, what: str = "The body") -> None:
    """Raise `Refused` for what is to be text, and is compressed: its coding was not named."""
    if body.startswith((GZIP, ZSTD)):
        name = "gzip" if body.startswith(GZIP) else "zstd"
        raise Refused("bad_batch", f"{what} is {name} data: compress it once, and say Content-Encoding: {name}")


def too_large(limit: int = MAX_BODY) -> Refused:
    """What a body over the limit is answered."""
    return Refused("too_large", f"The body has more than {limit // (1024 * 1024)} MiB")
