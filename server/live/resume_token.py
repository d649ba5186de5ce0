"""The resume token: a place in the live feed, in URL-safe characters, that any API process of the log understands."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from processor.core.tables.table_rows import NEVER

MAX_PARTITIONS: Final = 1024


class Bookmark(Struct, array_like=True, frozen=True):
    """What a reader has received: all users as of a position of the log, or of a snapshot the users up to `place`."""

    identity: str
    """The identity of the log."""
    binding: str
    """A digest of the project and the filter."""
    offsets: list[int]
    """By partition: the last message whose effects the reader has received; -1: none."""
    place: str | None = None
    """The id of the last user received of a snapshot ("": the events without one); None: the snapshot is complete."""

    @property
    def position(self) -> dict[int, int]:
        """partition -> offset."""
        return {partition: offset for partition, offset in enumerate(self.offsets) if offset > NEVER}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Bookmark)


def encode(identity: str, binding: str, position: Mapping[int, int], place: str | None = None) -> str:
    """Return the token for a place; `position` is partition -> offset."""
    offsets = [position.get(partition, NEVER) for partition in range(max(position, default=NEVER) + 1)]
    return urlsafe_b64encode(_encoder.encode(Bookmark(identity, binding, offsets, place))).decode().rstrip("=")


def decode(token: str) -> Bookmark:
    """Return what a token says. Raises `ValueError` for anything that `encode` did not make."""
    try:
        found = _decoder.decode(urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4)))
    except (ValueError, msgspec.MsgspecError):
        raise ValueError("not a token of this server") from None
    if len(found.offsets) > MAX_PARTITIONS or any(offset < NEVER for offset in found.offsets):
        raise ValueError("not a token of this server")
    return found
