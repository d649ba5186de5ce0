"""A few rows of a row group by the compiled kernel, from the pages that have them.

Where a user has few events, a page of them has rows of as many row groups. pyarrow, which is the twin, reads whole
columns, 20 ms for all of a row group; the kernel unpacks one page of each, and of that reads the values up to the last
one that is asked for: 1.2 ms.

Columns that are written in another form than `segment_file` writes them, and what is damaged, are left to pyarrow.
"""

import threading
from collections.abc import Iterable, Sequence
from itertools import islice
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
    """-1: it is not the one that the store's schema has."""
    width: int
    defined: int
    """The highest level of what is there."""
    repeated: int


_Chunk = tuple[int, int, int, int, int, int, int, int]
"""A column of a row group as `kernel.rows_of_columns` has it."""


class ColumnPlaces:
    """Where the columns of the row groups of a file are, of those that were asked about; for any threads.

    To ask pyarrow's footer again for each column of each row group took a tenth of the time of a page of events.
    """

    def __init__(self, footer: Any) -> None:
        self._footer = footer
        self.leaves: Final = leaves_of(footer.schema)
        self._places: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def rows(self, group: int) -> int:
        """Return how many rows a row group has."""
        return self._of(group)[0]

    def chunks(self, group: int, columns: Iterable[str]) -> list[_Chunk] | None:
        """Return the columns of some fields in a row group; None: one is written in another form, or is not there."""
        _, places = self._of(group)
        found: list[_Chunk] = []
        for name in columns:
            leaves = self.leaves.get(name)
            if not leaves:
                return None
            for leaf in leaves:
                if leaf.form < 0:
                    return None
                found.append((*places[leaf.number].tolist(), *leaf[1:]))
        return found

    def _of(self, group: int) -> tuple[int, NDArray[np.int64]]:
        found = self._places.get(group)
        if found is None:
            about = self._footer.row_group(group)
            places = [_place(about.column(number)) for number in range(about.num_columns)]
            found = self._places[group] = about.num_rows, np.array(places, np.int64)
        return found


def _place(chunk: Any) -> tuple[int, int, int, int]:
    """Return where a column begins, its bytes, its values, and its bytes unpacked."""
    first = chunk.dictionary_page_offset
    start = chunk.data_page_offset if first is None else first
    return start, chunk.total_compressed_size, chunk.num_values, chunk.total_uncompressed_size


class ChosenRows:
    """Reads rows of one open file; for one thread."""

    def __init__(self, descriptor: int, places: ColumnPlaces) -> None:
        self._descriptor = descriptor
        self._places = places

    def find(self, group: int, column: str, texts: Iterable[str]) -> NDArray[np.int64] | None:
        """Return the rows of a row group that have one of some texts; None: pyarrow has to look for them. Raises
        `OSError`."""
        leaves = self._places.leaves.get(column, ())
        if kernel is None or len(leaves) != 1 or leaves[0].form != _TEXTS or leaves[0].repeated:
            return None
        chunks = self._places.chunks(group, [column])
        if chunks is None:
            return None
        start, size, _, most, *_ = chunks[0]
        wanted, count = sorted({text.encode() for text in texts}), self._places.rows(group)
        try:
            rows = kernel.rows_with_texts(self._descriptor, start, size, wanted, count, most, _unpack)
        except _DAMAGED:
            return None
        return None if rows is None else np.frombuffer(rows, np.int64)

    def values(self, group: int, columns: Sequence[str], rows: NDArray[np.int64]) -> list[Values] | None:
        """Return the values of some rows, which are ascending, in each of some columns; None: pyarrow has to read them.
        Raises `OSError`."""
        if kernel is None or len(rows) > FEW:
            return None
        chunks = self._places.chunks(group, columns)
        if chunks is None:
            return None
        try:
            parts = kernel.rows_of_columns(self._descriptor, chunks, rows, self._places.rows(group), _unpack)
            return None if parts is None else self._fields(columns, parts)
        except _DAMAGED:
            return None

    def _fields(self, columns: Sequence[str], parts: Iterable[Values]) -> list[Values]:
        """Return the values of fields by those of their columns."""
        left = iter(parts)
        counts = [len(self._places.leaves[name]) for name in columns]
        return [next(left) if count == 1 else _pairs(*islice(left, count)) for count in counts]


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
    """Return the columns of each field of a file. Raises `UnicodeDecodeError` for a name that is no text."""
    found: dict[str, list[Leaf]] = {}
    for number in range(len(schema)):
        column = schema.column(number)
        form, width = _FORMS.get(column.physical_type, (-1, 0))
        if form == _DECIMALS and column.length != _COST_BYTES:
            form = -1
        leaf = Leaf(number, form, width, column.max_definition_level, column.max_repetition_level)
        found.setdefault(column.path.partition(".")[0], []).append(leaf)
    for name, leaves in found.items():
        if [leaf[1:] for leaf in leaves] != _EXPECTED.get(name):
            found[name] = [leaf._replace(form=-1) for leaf in leaves]
    return found


def _expected(kind: Any, defined: int = 1, repeated: int = 0) -> list[tuple[int, int, int, int]]:
    """Return what columns of a type are but for their numbers: form, width, levels."""
    if pa.types.is_map(kind):
        return [*_expected(kind.key_type, 2, 1), *_expected(kind.item_type, 3, 1)]
    if pa.types.is_list(kind):
        return _expected(kind.value_type, 3, 1)
    if pa.types.is_decimal(kind):
        return [(_DECIMALS, _COST_BYTES, defined, repeated)]
    physical = {"string": "BYTE_ARRAY", "double": "DOUBLE", "bool": "BOOLEAN", "int32": "INT32"}.get(str(kind), "INT64")
    return [(*_FORMS[physical], defined, repeated)]


_EXPECTED: Final = {field.name: _expected(field.type) for field in SCHEMA}


# --- packing ---------------------------------------------------------------------------------------------------------


class _Unpacker(threading.local):
    """What unpacks for one thread."""

    def __init__(self) -> None:
        self.decompress: Final = zstandard.ZstdDecompressor().decompress


_unpacker: Final = _Unpacker()
_UNKNOWN: Final = -1


def _unpack(data: bytes, size: int) -> bytes:
    """Return what was packed by zstd. Raises `ValueError` and `ZstdError` if it has not so many bytes."""
    if zstandard.frame_content_size(data) not in {size, _UNKNOWN}:  # it is what is allocated
        raise ValueError("a page of another size")
    return _unpacker.decompress(data, max_output_size=size)


_DAMAGED: Final = (ValueError, TypeError, zstandard.ZstdError)
"""What reading raises of a text that is none, a page that cannot be unpacked, and maps whose halves do not fit."""
