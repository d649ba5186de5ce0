"""The columns of a segment's Parquet file."""

from typing import Any, Final

import pyarrow as pa

from processor.core.kernel.loaded import kernel

VERSION: Final = 1

_TEXT: Final = pa.string()
_TIME: Final = pa.timestamp("us", "UTC")

SCHEMA: Final[Any] = pa.schema(
    [
        *((name, _TEXT) for name in ("event_id", "trace_id", "span_id", "parent_span_id")),
        ("timestamp", _TIME),
        *((name, _TEXT) for name in ("provider", "model", "operation")),
        ("latency_ms", pa.float64()),
        ("ttft_ms", pa.float64()),
        *((name, pa.int64()) for name in ("input_tokens", "output_tokens", "cached_tokens")),
        ("cost_usd", pa.decimal128(19, 12)),
        *((name, _TEXT) for name in ("status", "error_code", "error_message", "finish_reason")),
        ("stream", pa.bool_()),
        *((name, _TEXT) for name in ("environment", "user_id", "session_id")),
        ("tags", pa.map_(_TEXT, _TEXT)),
        ("tools_used", pa.list_(_TEXT)),
        ("eval_scores", pa.map_(_TEXT, pa.float64())),
        *((name, _TEXT) for name in ("prompt_hash", "sdk_version", "kind", "name")),
        ("cache_write_tokens", pa.int64()),
        ("reasoning_tokens", pa.int64()),
        ("received_at", _TIME),
        ("cost_source", _TEXT),
        ("extra", _TEXT),
        ("project", _TEXT),
        ("log_partition", pa.int32()),
        ("log_offset", pa.int64()),
        ("log_index", pa.int32()),
    ],
    metadata={"spendstream.schema": str(VERSION)},
)

ROW_BYTES: Final = "spendstream.row_bytes"
"""What a file's metadata says beside that: bytes of a row in memory, where the rows are the largest. Its own sizes are
those of its pages, in which texts that come again stand once."""

FEW_VALUES: Final = (
    *("provider", "model", "operation", "status", "finish_reason", "environment", "sdk_version"),
    *("kind", "cost_source", "project"),
)
"""Texts of which a segment has few different ones: they are written, and read to be merged, as dictionaries."""

WRITTEN: Final[Any] = pa.schema(
    [pa.field(each.name, pa.dictionary(pa.int32(), each.type)) if each.name in FEW_VALUES else each for each in SCHEMA],
    metadata=SCHEMA.metadata,
)
"""What tables are on their way into a file. In the file dictionaries are texts like others."""


def bytes_of(table: Any) -> int:
    """Return how many bytes the rows of a table of `WRITTEN` take in memory. Of a dictionary, which other rows may have
    in common with them, only as many texts count as there are rows."""
    if kernel is not None:
        batches = table.to_batches()
        if len(batches) == 1:
            found: int = kernel.batch_bytes(*batches[0].__arrow_c_array__())
            return found
    return listed_bytes_of(table)


def listed_bytes_of(table: Any) -> int:
    """Return the same, column by column: the twin of the kernel's `batch_bytes`, ten times as slow."""
    return sum(_bytes_of_chunk(chunk) for column in table.columns for chunk in column.chunks)


def _bytes_of_chunk(chunk: Any) -> int:
    if pa.types.is_dictionary(chunk.type):
        size, texts = int(chunk.indices.nbytes), chunk.dictionary
        return size + int(texts.nbytes) * min(len(chunk), len(texts)) // max(len(texts), 1)
    return int(chunk.nbytes)


def row_bytes(table: Any) -> int:
    """Return the bytes of a row of a table in memory, at least one."""
    return max(bytes_of(table) // int(table.num_rows), 1)
