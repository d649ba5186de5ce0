"""The costs of a row group by the compiled kernel, from the file's bytes: what pyarrow reads, in less time.

pyarrow takes 0.29 s for ten million costs, of which unpacking is 0.12: it makes its decimals one by one. The kernel
takes 0.02 instead of the rest. It reads costs as `segment_file` writes them: data pages of version 1, plain, packed by
zstd or not. Any other form, and what is damaged, is left to pyarrow, which is the twin.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pyarrow as pa

from processor.core.kernel.loaded import kernel
from processor.event_store.schema import SCHEMA

NAME: Final = "cost_usd"

_TYPE: Final = SCHEMA.field(NAME).type
_PACKED: Final = b"\x28\xb5\x2f\xfd"
"""What a page begins with that zstd has packed. One that is not begins with a length, which is no such number."""
_DATA: Final = 0
"""The type of a data page of version 1."""
_PLAIN: Final = 0
"""An encoding."""
_MOST: Final = 1 << 26
"""Bytes of a page, unpacked."""
_MOST_NESTED: Final = 4
"""Structs in a page's header, one in the other."""

_zstd: Final = pa.Codec("zstd")


class _OtherForm(Exception):
    """The column is not written in the form that is read here."""


class _Page(NamedTuple):
    """A page of a column, as its header describes it."""

    start: int
    """Where its bytes begin in the column."""
    packed: int
    """How many they are."""
    unpacked: int
    values: int
    """Nulls included."""


def read_costs(source: Any, footer: Any, group: int, column: int) -> Any:
    """Return the costs of a row group as an Arrow array; None: pyarrow has to read them.

    `source` is a `pyarrow.NativeFile`, `column` the number of the column among those of the file. Raises as pyarrow.
    """
    if kernel is None:
        return None
    chunks = footer.row_group(group)
    chunk = chunks.column(column)
    start, size = chunk.data_page_offset, chunk.total_compressed_size
    # A footer is not asked for its packing: for one that is none, as where it is damaged, pyarrow ends the process.
    if chunk.has_dictionary_page or not 0 <= start <= start + size <= source.size():
        return None
    data = source.read_at(size, start)
    try:
        pages = [*_pages(data, chunk.total_uncompressed_size, chunks.num_rows)]
    except (_OtherForm, LookupError, TypeError):
        return None
    parts = [(_unpacked(data[page.start : page.start + page.packed], page), page.values) for page in pages]
    found = kernel.cost_column(parts, chunks.num_rows)
    if found is None:
        return None
    values, there, nulls = found
    buffers = [pa.py_buffer(there) if nulls else None, pa.py_buffer(values)]
    return pa.Array.from_buffers(_TYPE, chunks.num_rows, buffers, nulls)


def _unpacked(part: bytes, page: _Page) -> Any:
    return _zstd.decompress(part, page.unpacked) if part.startswith(_PACKED) else part


def _pages(data: bytes, most: int, rows: int) -> Iterator[_Page]:
    """Yield the pages of a column that takes `most` bytes unpacked, of so many rows. Raises `_OtherForm`, and
    `LookupError` or `TypeError` for what is no header."""
    at = 0
    while at < len(data):
        header, at = _fields(data, at)
        kind, unpacked, packed, described = (header[number] for number in (1, 2, 3, 5))
        values, encoding = described[1], described[2]
        fits = 0 <= unpacked <= min(most, _MOST) and 0 <= packed <= len(data) - at and 0 <= values <= rows
        fits &= packed == unpacked or data.startswith(_PACKED, at)
        if kind != _DATA or encoding != _PLAIN or not fits:
            raise _OtherForm
        yield _Page(at, packed, unpacked, values)
        at += packed


def _fields(data: bytes, at: int, nested: int = 0) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct in Thrift's compact protocol by their numbers, and where it ends: whole numbers and
    structs. Truths and texts, which are only passed over, are None. Raises `IndexError`, and `_OtherForm`.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """
    found: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _number(data, at)
        match head & 15:
            case 1 | 2:  # a truth
                found[number] = None
            case 4 | 5 | 6:  # a whole number
                found[number], at = _number(data, at)
            case 8:  # a text
                size, at = _varint(data, at)
                found[number], at = None, at + size
            case 12 if nested < _MOST_NESTED:  # a struct
                found[number], at = _fields(data, at, nested + 1)
            case _:
                raise _OtherForm
    return found, at + 1


def _number(data: bytes, at: int) -> tuple[int, int]:
    found, at = _varint(data, at)
    return (found >> 1) ^ -(found & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while (byte := data[at]) > 127:
        found |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if shift > 56:
            raise _OtherForm
    return found | byte << shift, at + 1
