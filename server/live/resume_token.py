"""A place in a feed of changes, as a token of URL-safe characters that any process of the cluster understands."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from processor.core.tables.table_rows import NEVER

MAX_PARTITIONS: Final = 1024


class Bookmark(Struct, array_like=True, frozen=True):
    """What a reader has: all users as they were at a position in the log, or of a snapshot the users up to `place`."""

    identity: str
    """The log's."""
    binding: str
    """Stands for the project and the filters."""
    offsets: list[int]
    """By partition: the last message whose effects the reader has."""
    place: str | None = None
    """The id of the last user received of a snapshot ("": the events without one); None: the snapshot is complete."""

    @property
    def position(self) -> dict[int, int]:
        """partition -> offset."""
        return {partition: offset for partition, offset in enumerate(self.offsets) if offset > NEVER}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Bookmark)


def encode(identity: str, binding: str, position: Mapping[int, int], place: str | None = None) -> str:
    """The token of a bookmark."""
    offsets = [position.get(partition, NEVER) for partition in range(max(position, default=NEVER) + 1)]
    return urlsafe_b64encode(_encoder.encode(Bookmark(identity, binding, offsets, place))).decode().rstrip("=")


def decode(token: str) -> Bookmark:
    """Read a token back; raises `ValueError` for anything that is none."""
    try:
        found = _decoder.decode(urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4)))
    except (ValueError, msgspec.MsgspecError):
        raise ValueError("not a token of this server") from None
    if len(found.offsets) > MAX_PARTITIONS or any(offset < NEVER for offset in found.offsets):
        raise ValueError("not a token of this server")
    return found
