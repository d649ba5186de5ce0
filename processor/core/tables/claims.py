"""The claims log: one record for each flush, with the ids it claimed.

    value = msgpack [version, [[offset, keys, digests], ...]]

The id index on disk is derived from it, and rebuilt from it.
"""

from typing import Final

import msgspec
import xxhash
from msgspec import Struct

VERSION: Final = 1


class Claimed(Struct, array_like=True, gc=False):
    """The ids one message claimed: n keys of 16 bytes, n digests of 8."""

    offset: int
    """The message's offset in the events topic."""
    keys: bytes
    digests: bytes


class _Record(Struct, array_like=True, gc=False):
    version: int
    claimed: list[Claimed]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


def encode(claimed: list[Claimed]) -> bytes:
    """The value of one record."""
    return _encode(_Record(VERSION, claimed))


def digest(value: bytes) -> str:
    """Return the digest that identifies a record: XXH3 of 128 bits over its value, hex."""
    return xxhash.xxh3_128_hexdigest(value)


def decode(value: bytes) -> list[Claimed]:
    """Decode a record's value. Raises `ValueError` for another format."""
    try:
        record = _decode(value)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a claims record: {error}") from None
    if record.version != VERSION:
        raise ValueError(f"claims record of version {record.version}; this program reads {VERSION}")
    return record.claimed
