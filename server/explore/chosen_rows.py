"""A few rows of a row group by the compiled kernel, from the pages that have them.

Where a user has few events, a page of them has rows of as many row groups. pyarrow, which is the twin, reads whole
columns, 20 ms for all of a row group; the kernel unpacks one page of each, and of that reads the values up to the last
one that is asked for: 1.7 ms.

Columns that are written in another form than `segment_file` writes them, and what is damaged, are left to pyarrow.
"""

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import zstandard
from numpy.typing import NDArray

from processor.core.kernel.loaded import kernel
from processor.event_store.schema import SCHEMA

FEW: Final = 512
"""Rows of a row group up to which their values are read one by one: of more of them pyarrow does it sooner."""

Values = list[Any]
"""Of a column, as Python has them; costs as whole numbers of picodollars, times as microseconds."""

_TEXTS, _NUMBERS, _DOUBLES, _DECIMALS, _TRUTHS = range(5)
_FORMS: Final = {
    "BYTE_ARRAY": (_TEXTS, 0),
    "INT64": (_NUMBERS, 8),
    "INT32": (_NUMBERS, 4),
    "DOUBLE": (_DOUBLES, 8),
    "FIXED_LEN_BYTE_ARRAY": (_DECIMALS, 9),
    "BOOLEAN": (_TRUTHS, 0),
}
_COST_BYTES: Final = 9


class Leaf(NamedTuple):
    """A column of the file."""

    number: int
    form: int
    width: int
    defined: int
    """The highest level of what is there."""
    repeated: int


class ChosenRows:
    """Reads rows of one open file; for one thread."""

    def __init__(
        self, descriptor: int, footer: Any, leaves: Mapping[str, Sequence[Leaf]], *, holds: bool = False
    ) -> None:
        """`leaves`: `leaves_of` the footer's schema. With `holds` columns in which texts are looked for are unpacked
        once, and held until another row group is read; else until values are, packed."""
        self._holds = holds
        self._descriptor = descriptor
        self._footer = footer
        self._leaves = leaves
        self._sought: set[int] = set()
        """Columns in which texts are looked for, by number: these are often read again."""
        self._group = -1
        self._bytes: dict[int, tuple[bytes, int]] = {}
        """Of these in that row group: what the file has, and its address."""
        self._pages: dict[tuple[int, int], bytes] = {}
        """Their pages, unpacked, by column and place in its bytes."""

    def find(self, group: int, column: str, texts: Iterable[str]) -> NDArray[np.int64] | None:
        """Return the rows of a row group that have one of some texts; None: pyarrow has to look for them. Raises
        `OSError`."""
        leaves = self._leaves.get(column, ())
        if kernel is None or len(leaves) != 1 or leaves[0].form != _TEXTS or leaves[0].repeated:
            return None
        about, wanted = self._footer.row_group(group), sorted({text.encode() for text in texts})
        self._sought.add(leaves[0].number)
        data, chunk, unpack = self._column(group, about, leaves[0])
        if data is None:
            return None
        try:
            rows = kernel.rows_with_texts(data, wanted, about.num_rows, chunk.total_uncompressed_size, unpack)
        except _DAMAGED:
            return None
        if not rows:
            self._let_go()
        return None if rows is None else np.frombuffer(rows, np.int64)

    def values(self, group: int, columns: Sequence[str], rows: NDArray[np.int64]) -> list[Values] | None:
        """Return the values of some rows, which are ascending, in each of some columns; None: pyarrow has to read them.
        Raises `OSError`."""
        if kernel is None or len(rows) > FEW:
            return None
        about, found = self._footer.row_group(group), []
        count = about.num_rows
        for name in columns:
            parts: list[Values] = []
            for leaf in self._leaves.get(name, ()):
                data, chunk, unpack = self._column(group, about, leaf)
                if data is None:
                    return None
                most, size = chunk.total_uncompressed_size, chunk.num_values
                try:
                    part = kernel.rows_of_column(data, rows, count, size, most, *leaf[1:], unpack)
                except _DAMAGED:
                    return None
                if part is None:
                    return None
                parts.append(part)
            if not parts:
                return None
            try:
                found.append(parts[0] if len(parts) == 1 else _pairs(*parts))
            except _DAMAGED:
                return None
        self._let_go()
        return found

    def _let_go(self) -> None:
        if not self._holds:
            self._bytes.clear()

    def _column(self, group: int, about: Any, leaf: Leaf) -> tuple[bytes | None, Any, Any]:
        """Return the bytes of a column of a row group, what the footer says of it, and what unpacks its pages; None
        instead of bytes: it is written in another form."""
        chunk = about.column(leaf.number)
        if leaf.form < 0 or chunk.compression not in _UNPACKERS:
            return None, chunk, None
        start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
        unpack = _UNPACKERS[chunk.compression]
        if leaf.number not in self._sought:
            return os.pread(self._descriptor, chunk.total_compressed_size, start), chunk, unpack
        if group != self._group:
            self._group = group
            self._bytes.clear()
            self._pages.clear()
        if leaf.number not in self._bytes:
            data = os.pread(self._descriptor, chunk.total_compressed_size, start)
            self._bytes[leaf.number] = data, _address(data)
        data = self._bytes[leaf.number][0]
        return data, chunk, unpack if unpack is None or not self._holds else partial(self._unpacked, leaf.number)

    def _unpacked(self, column: int, data: memoryview, size: int) -> bytes:
        """Return what `_unpack` does, of a page that was unpacked before or is now."""
        place = (column, _address(data) - self._bytes[column][1])
        found = self._pages.get(place)
        if found is None:
            found = self._pages[place] = _unpack(data, size)
        return found


def _pairs(keys: Values, items: Values) -> Values:
    """Return maps as lists of pairs."""
    return [
        None if each is None else [*zip(each, others, strict=True)] for each, others in zip(keys, items, strict=True)
    ]


def table_of(columns: Sequence[str], values: Sequence[Values]) -> Any:
    """Return values as a `pyarrow.Table` of the store's schema."""
    fields = [SCHEMA.field(name) for name in columns]
    return pa.table([_array(field.type, each) for field, each in zip(fields, values, strict=True)], pa.schema(fields))


def _array(kind: Any, values: Values) -> Any:
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.int64()).cast(kind)
    if pa.types.is_decimal(kind):
        there = pa.array([value is not None for value in values], pa.bool_()).buffers()[1]
        data = b"".join((value or 0).to_bytes(16, "little", signed=True) for value in values)
        return pa.Array.from_buffers(kind, len(values), [there, pa.py_buffer(data)])
    return pa.array(values, kind)


def leaves_of(schema: Any) -> dict[str, list[Leaf]]:
    """Return the columns of each field of a file."""
    found: dict[str, list[Leaf]] = {}
    for number in range(len(schema)):
        column = schema.column(number)
        form, width = _FORMS.get(column.physical_type, (-1, 0))
        if form == _DECIMALS and column.length != _COST_BYTES:
            form = -1
        leaf = Leaf(number, form, width, column.max_definition_level, column.max_repetition_level)
        found.setdefault(column.path.partition(".")[0], []).append(leaf)
    return found


def _address(data: bytes | memoryview) -> int:
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return address


# --- packing ---------------------------------------------------------------------------------------------------------


class _Unpacker(threading.local):
    """What unpacks for one thread."""

    def __init__(self) -> None:
        self.decompress: Final = zstandard.ZstdDecompressor().decompress


_unpacker: Final = _Unpacker()
_UNKNOWN: Final = -1


def _unpack(data: memoryview, size: int) -> bytes:
    """Return what was packed by zstd. Raises `ValueError` and `ZstdError` if it has not so many bytes."""
    if zstandard.frame_content_size(data) not in {size, _UNKNOWN}:  # it is what is allocated
        raise ValueError("a page of another size")
    return _unpacker.decompress(data, max_output_size=size)


_DAMAGED: Final = (ValueError, TypeError, zstandard.ZstdError)
"""What reading raises of a text that is none, a page that cannot be unpacked, and maps whose halves do not fit."""
_UNPACKERS: Final[dict[str, Callable[[memoryview, int], bytes] | None]] = {"ZSTD": _unpack, "UNCOMPRESSED": None}
