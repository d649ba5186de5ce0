"""Row groups of Parquet by the compiled kernel, where it runs: pyarrow, which `segment_file` has for them, is its twin.

The kernel makes the pages of each column from Arrow's buffers: data pages of version 1, with what readers of segments
expect of them (encodings, dictionaries, statistics). The footer is put together here, in the compact protocol; what
it says of the schema is taken from an empty file of pyarrow's.

https://parquet.apache.org/docs/file-format/metadata/
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

import io
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from processor.core.kernel.loaded import kernel
from processor.event_store.row_sizes import RowSizes
from processor.event_store.schema import SCHEMA, WRITTEN
from processor.event_store.thrift import BINARY, I16, I32, I64, LIST, STRUCT, binary, list_of, struct_of, whole

Page = tuple[bytes, int, int, int]
"""Levels, first value, value after the last, and how many levels there are, as the kernel has them."""

_MAGIC: Final = b"PAR1"
_CREATOR: Final = b"spendstream version 1"

_BOOLEAN, _INT32, _INT64, _DOUBLE, _TEXT, _FIXED = 0, 1, 2, 5, 6, 7
"""Physical types."""
_PLAIN, _RUNS, _DELTAS, _DICTIONARY = 0, 3, 5, 8
"""Encodings."""
_UNPACKED, _ZSTD = 0, 6
"""Codecs."""
_AS_THEY_ARE, _DECIMAL_FORM, _TRUTH_FORM, _DELTA_FORM = 0, 1, 2, 3
"""How the kernel writes numbers."""
_COST_BYTES: Final = 9
_NARROW: Final = 32
"""Bits."""
_MOST_JOINED: Final = 4 << 20
"""Bytes of pages that are written at once: a row group of plain rows has less."""
_MOST_BOUND: Final = 4096
"""Bytes of the least and the greatest text that a footer says."""

_PACKED: Final = zstandard.ZstdCompressionParameters.from_level(1, hash_log=12, min_match=7)
"""Level 1 with a table of 16 KiB: a page has 64 KiB, and most are of ids, in which nothing is found."""


class Sink(Protocol):
    """What row groups are written to."""

    def write(self, data: bytes, /) -> int:
        """Write bytes."""
        ...


class ColumnSettings(NamedTuple):
    """How columns are written, by their paths in the schema."""

    page: int
    """Bytes of a page before it is packed."""
    dictionary: int
    """Bytes of the dictionary of a column with few values, which the merging holds of each segment: of those with more
    the texts are written one by one."""
    dictionaries: Collection[str]
    deltas: Collection[str]
    statistics: Collection[str]


class _Leaf(NamedTuple):
    """Pages of a column before they are packed."""

    path: str
    type: int
    encoding: int
    pages: Sequence[Page]
    bodies: Sequence[bytes]
    dictionary: tuple[bytes, int] | None
    """The body of a page, and how many texts it has."""
    nulls: int
    bounds: Callable[[], tuple[bytes, bytes] | None]
    """Return the least and the greatest value; None: there are none, or they are too long to be said."""


class CompiledParquet:
    """Writes a file of `WRITTEN`: row groups, then the footer. Only where the kernel runs."""

    def __init__(self, sink: Sink, settings: ColumnSettings, *, is_packed: bool) -> None:
        self._sink = sink
        self._settings = settings
        self._pack = zstandard.ZstdCompressor(compression_params=_PACKED).compress if is_packed else None
        self._at = 0
        self._groups: list[bytes] = []
        self._rows = 0
        self._sizes = RowSizes()
        self._is_open = True
        self._write([_MAGIC])

    def _write(self, parts: Sequence[bytes]) -> None:
        size = sum(map(len, parts))
        for data in [b"".join(parts)] if size <= _MOST_JOINED else parts:
            self._sink.write(data)
        self._at += size

    def write_group(self, table: Any) -> None:
        """Write a table of `WRITTEN`, with one chunk a column, as a row group."""
        parts: list[bytes] = []
        chunks: list[bytes] = []
        start, size = self._at, 0
        begin = start
        for field, column in zip(_FIELDS, table.columns, strict=True):
            # Pages of large columns are not kept until the others are made.
            if start - self._at > _MOST_JOINED:
                self._write(parts)
                parts.clear()
            for leaf in field(column.chunk(0), self._settings):
                has_dictionary = leaf.dictionary is not None
                chunk, unpacked, packed = _kernel.column_chunk(
                    _about(leaf.path, leaf.type, leaf.encoding, has_dictionary, self._pack is not None),
                    _statistics(leaf) if leaf.path in self._settings.statistics else b"",
                    leaf.dictionary,
                    leaf.pages,
                    leaf.bodies,
                    leaf.encoding,
                    self._pack,
                    start,
                    parts,
                )
                chunks.append(chunk)
                size += unpacked
                start += packed
        self._groups.append(
            struct_of(
                (1, LIST, list_of(STRUCT, chunks)),
                (2, I64, whole(size)),
                (3, I64, whole(table.num_rows)),
                (5, I64, whole(begin)),
                (6, I64, whole(start - begin)),
                (7, I16, whole(len(self._groups))),
            )
        )
        self._rows += table.num_rows
        self._sizes.add(table)
        self._write(parts)

    def close(self) -> None:
        """Write the footer."""
        if not self._is_open:
            return
        self._is_open = False
        metadata = [
            struct_of((1, BINARY, binary(key)), (2, BINARY, binary(value)))
            for key, value in {**SCHEMA.metadata, **_encoded(self._sizes.metadata())}.items()
        ]
        by_type = struct_of((1, STRUCT, struct_of()))
        footer = struct_of(
            (1, I32, whole(2)),
            (2, LIST, _schema()),
            (3, I64, whole(self._rows)),
            (4, LIST, list_of(STRUCT, self._groups)),
            (5, LIST, list_of(STRUCT, metadata)),
            (6, BINARY, binary(_CREATOR)),
            (7, LIST, list_of(STRUCT, [by_type] * _leaf_count())),
        )
        self._write([footer, struct.pack("<I", len(footer)), _MAGIC])


def _encoded(said: Mapping[str, str]) -> Mapping[bytes, bytes]:
    return {key.encode(): value.encode() for key, value in said.items()}


# --- columns ---------------------------------------------------------------------------------------------------------


_Leaves = Callable[[Any, ColumnSettings], Sequence[_Leaf]]
"""Returns the columns of a field, which is an Arrow array, as the kernel writes them."""

_kernel: Final[Any] = kernel


def _leaves(field: Any) -> _Leaves:
    """Return what writes a field."""
    name, kind = field.name, field.type
    if pa.types.is_map(kind):
        paths = f"{name}.key_value.key", f"{name}.key_value.value"
        keys, items = _values(paths[0], kind.key_type), _values(paths[1], kind.item_type)

        def map_(column: Any, settings: ColumnSettings) -> Sequence[_Leaf]:
            column = _without_hidden_items(column)
            names, values = _of_rows(column, column.keys), _of_rows(column, column.items)
            return (
                keys(names, settings, _nested_pages(column, names, settings, is_key=True)),
                items(values, settings, _nested_pages(column, values, settings)),
            )

        return map_
    if pa.types.is_list(kind):
        elements = _values(f"{name}.list.element", kind.value_type)

        def list_(column: Any, settings: ColumnSettings) -> Sequence[_Leaf]:
            column = _without_hidden_items(column)
            values = _of_rows(column, column.values)
            return (elements(values, settings, _nested_pages(column, values, settings)),)

        return list_
    if pa.types.is_dictionary(kind):
        return lambda column, settings: (_coded(name, column, settings),)
    values = _values(name, kind)
    return lambda column, settings: (values(column, settings, _flat_pages(column, settings)),)


def _without_hidden_items(column: Any) -> Any:
    """Return lists or maps of which those that are not there have no items, which Arrow allows."""
    if column.null_count:
        there, offsets = column.buffers()[:2]
        if _kernel.hides_items(there, offsets, column.offset, len(column)):
            return column.take(pa.array(np.arange(len(column))))
    return column


def _of_rows(column: Any, items: Any) -> Any:
    """Return the items of the rows of lists or maps: a part of a larger array has those of all its rows."""
    bounds = np.frombuffer(column.buffers()[1], np.int32)
    first, last = int(bounds[column.offset]), int(bounds[column.offset + len(column)])
    return items.slice(first, last - first)


def _rows_of_page(page: int, size: int, rows: int) -> int:
    return max(1, min(rows, page * rows // max(size, 1)))


_Pages = Callable[[int], tuple[list[Page], int]]
"""Returns the pages of a column whose values take so many bytes, and how many of its rows have no value."""


def _flat_pages(column: Any, settings: ColumnSettings) -> _Pages:
    there = column.buffers()[0] if column.null_count else None
    rows = len(column)
    return lambda size: _kernel.flat_pages(there, column.offset, rows, _rows_of_page(settings.page, size, rows))


def _nested_pages(column: Any, items: Any, settings: ColumnSettings, *, is_key: bool = False) -> _Pages:
    there, offsets = column.buffers()[:2]
    rows = len(column)

    def pages(size: int) -> tuple[list[Page], int]:
        found = _kernel.nested_pages(
            there if column.null_count else None,
            offsets,
            column.offset,
            rows,
            items.buffers()[0] if items.null_count else None,
            items.offset,
            len(items),
            is_key,
            _rows_of_page(settings.page, size + rows, rows),
        )
        return found, 0

    return pages


_Values = Callable[[Any, ColumnSettings, _Pages], _Leaf]
"""Returns a column of texts or numbers, which are an Arrow array."""


def _values(path: str, kind: Any) -> _Values:
    """Return what writes a column."""
    if pa.types.is_string(kind):
        return lambda column, settings, pages: _texts(path, column, settings, pages)
    width, type_, form = kind.bit_width // 8, _INT32 if kind.bit_width == _NARROW else _INT64, _AS_THEY_ARE
    if pa.types.is_boolean(kind):
        width, type_, form = 0, _BOOLEAN, _TRUTH_FORM
    elif pa.types.is_decimal(kind):
        type_, form = _FIXED, _DECIMAL_FORM
    elif pa.types.is_float64(kind):
        type_ = _DOUBLE

    def values(column: Any, settings: ColumnSettings, pages: _Pages) -> _Leaf:
        has_deltas = path in settings.deltas
        there, data = column.buffers()
        found, nulls = pages(max(width, 1) * len(column))
        bodies = _kernel.number_bodies(
            there if column.null_count else None,
            data,
            column.offset,
            len(column),
            width,
            _DELTA_FORM if has_deltas else form,
            found,
        )
        encoding = _DELTAS if has_deltas else _PLAIN
        return _Leaf(path, type_, encoding, found, bodies, None, nulls, lambda: _bounds_of(column))

    return values


def _texts(path: str, column: Any, settings: ColumnSettings, pages: _Pages) -> _Leaf:
    there, offsets, data = column.buffers()
    given = (there if column.null_count else None, data, offsets, column.offset, len(column))
    if path in settings.dictionaries:
        whole, nulls = pages(0)
        coded = _kernel.text_bodies(*given, whole, True)
        if coded is not None:
            bodies, dictionary = coded
            return _Leaf(path, _TEXT, _DICTIONARY, whole, bodies, dictionary, nulls, _no_bounds)
    ends = np.frombuffer(offsets, np.int32)
    size = int(ends[column.offset + len(column)]) - int(ends[column.offset]) if len(column) else 0
    found, nulls = pages(size + 4 * len(column))
    bodies = _kernel.text_bodies(*given, found, False)
    return _Leaf(path, _TEXT, _PLAIN, found, bodies, None, nulls, _no_bounds)


def _coded(path: str, column: Any, settings: ColumnSettings) -> _Leaf:
    """Return a column of texts that Arrow has as numbers of a dictionary."""
    if column.dictionary.null_count:
        column = column.cast(pa.string()).dictionary_encode()
    numbers, texts = column.indices, column.dictionary
    there, data = numbers.buffers()
    there = there if numbers.null_count else None
    whole, nulls = _kernel.flat_pages(there, numbers.offset, len(numbers), max(1, len(numbers)))
    _, offsets, letters = texts.buffers()
    bodies, dictionary, used = _kernel.coded_bodies(
        there, data, numbers.offset, len(numbers), letters, offsets, texts.offset, len(texts), whole
    )

    def bounds() -> tuple[bytes, bytes] | None:
        found = [text.encode() for text in texts.take(pa.array(np.frombuffer(used, np.int32))).to_pylist()]
        return _of_texts(min(found), max(found)) if found else None

    if len(dictionary[0]) > settings.dictionary:
        plain = column.cast(pa.string())
        leaf = _texts(path, plain, settings._replace(dictionaries=()), _flat_pages(plain, settings))
        return leaf._replace(bounds=bounds)
    return _Leaf(path, _TEXT, _DICTIONARY, whole, bodies, dictionary, nulls, bounds)


# --- statistics ------------------------------------------------------------------------------------------------------


def _statistics(leaf: _Leaf) -> bytes:
    bounds = leaf.bounds()
    if bounds is None:
        return struct_of((3, I64, whole(leaf.nulls)))
    return struct_of((3, I64, whole(leaf.nulls)), (5, BINARY, binary(bounds[1])), (6, BINARY, binary(bounds[0])))


def _no_bounds() -> None:
    """Of texts without a dictionary nothing is said: no row group is left out by ids."""


def _bounds_of(column: Any) -> tuple[bytes, bytes] | None:
    """Return the least and the greatest value of a column as the footer says them."""
    kind, (there, data) = column.type, column.buffers()
    is_float = pa.types.is_float64(kind)
    found = _kernel.number_bounds(
        there if column.null_count else None, data, column.offset, len(column), kind.bit_width // 8, is_float
    )
    if found is None:
        return None
    least, most = found
    if pa.types.is_decimal(kind):
        return least[_COST_BYTES - 1 :: -1], most[_COST_BYTES - 1 :: -1]
    if is_float:
        # Of zeros either may be there, whatever the sign.
        return struct.pack("<d", least or -0.0), struct.pack("<d", most or 0.0)
    form = "<i" if kind.bit_width == _NARROW else "<q"
    return struct.pack(form, least), struct.pack(form, most)


def _of_texts(least: bytes, most: bytes) -> tuple[bytes, bytes] | None:
    return (least, most) if max(len(least), len(most)) <= _MOST_BOUND else None


# --- the footer ------------------------------------------------------------------------------------------------------


@cache
def _about(path: str, type_: int, encoding: int, has_dictionary: bool, is_packed: bool) -> bytes:
    """Return the first four fields of a column's metadata: type, encodings, path, codec."""
    encodings = (_PLAIN, _RUNS, encoding) if has_dictionary else (_RUNS, encoding)
    names = [binary(name.encode()) for name in path.split(".")]
    fields = struct_of(
        (1, I32, whole(type_)),
        (2, LIST, list_of(I32, map(whole, encodings))),
        (3, LIST, list_of(BINARY, names)),
        (4, I32, whole(_ZSTD if is_packed else _UNPACKED)),
    )
    return fields[:-1]


@cache
def _schema() -> bytes:
    """Return the schema as the list that a footer has, from the footer of a file without rows: it lies between the
    version and the number of rows (0) with no row groups."""
    file = io.BytesIO()
    pq.ParquetWriter(file, WRITTEN, version="2.6", store_schema=False).close()
    data = file.getvalue()
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    start = struct_of((1, I32, whole(2)))[:-1] + bytes((1 << 4 | LIST,))
    end = bytes((1 << 4 | I64, 0, 1 << 4 | LIST, STRUCT))
    if not footer.startswith(start) or footer.count(end) != 1:
        raise RuntimeError("pyarrow writes footers of another form")
    return footer[len(start) : footer.index(end)]


@cache
def _leaf_count() -> int:
    return sum(2 if pa.types.is_map(field.type) else 1 for field in SCHEMA)


_FIELDS: Final = [_leaves(field) for field in WRITTEN]
