"""Thrift's compact protocol, as far as the footers of Parquet need it.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from collections.abc import Iterable
from typing import Final

I16: Final = 4
I32: Final = 5
I64: Final = 6
BINARY: Final = 8
LIST: Final = 9
STRUCT: Final = 12
"""Types of fields, and of the items of lists."""


def _varint(number: int) -> bytes:
    if number < 128:
        return bytes((number,))
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def whole(number: int) -> bytes:
    """Return a number that is not negative."""
    return _varint(number << 1)


def binary(data: bytes) -> bytes:
    return _varint(len(data)) + data


def list_of(kind: int, items: Iterable[bytes]) -> bytes:
    every = list(items)
    head = bytes((len(every) << 4 | kind,)) if len(every) < 15 else bytes((0xF0 | kind,)) + _varint(len(every))
    return head + b"".join(every)


def struct_of(*fields: tuple[int, int, bytes]) -> bytes:
    """Return fields as (number, type, value), in the order of their numbers, which are less than 15 apart."""
    parts: list[bytes] = []
    last = 0
    for number, kind, value in fields:
        parts += (bytes(((number - last) << 4 | kind,)), value)
        last = number
    return b"".join([*parts, b"\0"])
