"""The forms of an export: NDJSON, CSV and Parquet, each made of tables of a few thousand rows."""

import csv
import io
from typing import Any, Final, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Raw

from processor.event_store.schema import SCHEMA
from server.explore.event_json import MEMBERS, events_of
from server.explore.event_lines import event_lines

GROUP: Final = 16_384
"""Rows of a row group of an exported Parquet file."""

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell begins that a spreadsheet may run, or may pass over to what follows (CWE-1236)."""

EXPORTED: Final[Any] = pa.schema([SCHEMA.field(name) for name in MEMBERS], metadata=SCHEMA.metadata)
"""The columns of an exported Parquet file: those of an event."""


class Form(Protocol):
    """Makes the bytes of a file; each method may return none."""

    def head(self) -> bytes: ...
    def rows(self, table: Any, /) -> bytes: ...
    def tail(self) -> bytes: ...


class NdjsonForm:
    """One event a line, as in a list."""

    def head(self) -> bytes:
        """There is none."""
        return b""

    def rows(self, table: Any) -> bytes:
        """Return a line for each row."""
        return b"".join(line + b"\n" for line in event_lines(table))

    def tail(self) -> bytes:
        """There is none."""
        return b""


class CsvForm:
    """One event a row, after a row of names (RFC 4180). An absent field is an empty cell; what has parts is JSON.

    A text that a spreadsheet would run as a formula has a `'` before it.
    """

    def head(self) -> bytes:
        """Return the row of names."""
        return _csv([list(MEMBERS)])

    def rows(self, table: Any) -> bytes:
        """Return a row for each event."""
        return _csv([[_cell(event.get(name)) for name in MEMBERS] for event in events_of(table)])

    def tail(self) -> bytes:
        """There is none."""
        return b""


def _csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else value
    return bytes(value).decode() if isinstance(value, Raw) else msgspec.json.encode(value).decode()


class ParquetForm:
    """A Parquet file with the columns of an event, typed as in the store."""

    def __init__(self) -> None:
        self._sink = _Sink()
        self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, mode="w"), EXPORTED, compression="zstd")
        self._waiting: list[Any] = []
        self._count = 0

    def head(self) -> bytes:
        """Return the magic number."""
        return self._sink.drain()

    def rows(self, table: Any) -> bytes:
        """Return a row group, once there are enough rows for one."""
        self._waiting.append(table.cast(EXPORTED))
        self._count += len(table)
        return self._group() if self._count >= GROUP else b""

    def tail(self) -> bytes:
        """Return the last row group and the footer."""
        last = self._group() if self._count else b""
        self._writer.close()
        return last + self._sink.drain()

    def _group(self) -> bytes:
        self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks(), row_group_size=2 * GROUP)
        self._waiting, self._count = [], 0
        return self._sink.drain()


class _Sink(io.RawIOBase):
    """What has been written, until it is drained."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._at

    def write(self, data: Any) -> int:
        """Keep bytes."""
        self._parts.append(bytes(data))
        self._at += len(self._parts[-1])
        return len(self._parts[-1])

    def drain(self) -> bytes:
        """Return what was written since the last call."""
        found = b"".join(self._parts)
        self._parts.clear()
        return found
