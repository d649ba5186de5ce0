"""How row groups of segments are written as Parquet: by the compiled kernel where it runs, else by pyarrow."""

from typing import Any, Final, Literal, Protocol

import pyarrow.parquet as pq

from processor.core.kernel.loaded import kernel
from processor.event_store.compiled_parquet import ColumnSettings, CompiledParquet, Sink
from processor.event_store.row_sizes import RowSizes
from processor.event_store.schema import FEW_VALUES, SCHEMA

Packing = Literal["none", "zstd"]
"""Small segments are merged soon: packing them would cost more than it saves. zstd is that of level 1."""

PAGE: Final = 64 << 10
"""Bytes of a page before it is packed: what the merging holds of each column of a segment."""

_DICTIONARIES: Final = [
    *FEW_VALUES,
    *("user_id", "error_code", "error_message", "name", "log_partition"),
    *("tags.key_value.key", "tags.key_value.value", "tools_used.list.element", "eval_scores.key_value.key"),
]
"""Columns with values that come again; of ids a dictionary would only be given up after a while."""
_COUNTS: Final = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
_DELTAS: Final = ("timestamp", "received_at", "log_offset", "log_index", *_COUNTS)
_STATISTICS: Final = [
    *("timestamp", "received_at", "log_offset", "log_partition", "kind", "project", "model", "latency_ms", "cost_usd"),
    "session_id",
]
"""What readers leave out row groups by; ids are looked up in the index, but for events that have no session."""


DICTIONARY: Final = 64 << 10
"""Bytes of the dictionary of a column with few values: see `ColumnSettings`."""

SETTINGS: Final = ColumnSettings(PAGE, DICTIONARY, frozenset(_DICTIONARIES), frozenset(_DELTAS), frozenset(_STATISTICS))


class RowGroups(Protocol):
    """A Parquet file that is written row group by row group."""

    def write_group(self, table: Any) -> None:
        """Write a table of `WRITTEN`, with one chunk a column."""
        ...

    def close(self) -> None:
        """Write the footer."""
        ...


class PyarrowParquet:
    """The twin of `compiled_parquet.CompiledParquet`: the same rows, other pages."""

    def __init__(self, sink: Any, packing: Packing) -> None:
        self._writer: Any = pq.ParquetWriter(
            sink,
            SCHEMA,
            version="2.6",
            store_schema=False,
            data_page_size=PAGE,
            dictionary_pagesize_limit=4 * DICTIONARY,
            compression=packing,
            compression_level=1 if packing == "zstd" else None,
            use_dictionary=_DICTIONARIES,
            column_encoding=dict.fromkeys(_DELTAS, "DELTA_BINARY_PACKED"),
            write_statistics=_STATISTICS,
        )
        self._sizes = RowSizes()

    def write_group(self, table: Any) -> None:
        """See `RowGroups`."""
        self._sizes.add(table)
        # Of a dictionary Arrow writes all texts, whatever their size, and those that no row has.
        self._writer.write_table(table.cast(SCHEMA), row_group_size=table.num_rows)

    def close(self) -> None:
        """See `RowGroups`."""
        if self._writer.is_open:
            self._writer.add_key_value_metadata({**SCHEMA.metadata, **self._sizes.metadata()})
        self._writer.close()


def row_groups(sink: Sink, packing: Packing) -> RowGroups:
    """Begin to write a file of segments."""
    if kernel is None:
        return PyarrowParquet(sink, packing)
    return CompiledParquet(sink, SETTINGS, is_packed=packing == "zstd")
