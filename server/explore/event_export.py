"""An export: all matching events of one snapshot, row group by row group."""

from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Struct

from server.explore.event_json import MEMBERS
from server.explore.export_formats import CsvForm, Form, NdjsonForm, ParquetForm
from server.explore.questions import ExportFormat, ExportQuestion
from server.explore.row_scan import RowScan, RowSpan
from server.explore.snapshot import Snapshot

ROWS: Final = 4096
"""Rows that are made into text at a time."""

_FORMS: Final[dict[ExportFormat, Callable[[], Form]]] = {
    "csv": CsvForm,
    "parquet": ParquetForm,
    "ndjson": NdjsonForm,
}


class ExportBroken(RuntimeError):
    """The rows that were read are not as many as were counted."""


class Export(Struct):
    """An export that has begun. The pieces are made as they are asked for; none is empty."""

    rows: int | None
    """How many events it has, where that is known exactly."""
    pieces: Iterator[bytes]
    close: Callable[[], None]


def open_export(snapshot: Snapshot, question: ExportQuestion) -> Export:
    """Begin an export: count its rows, and open its files. Raises `Refused`, `Stopped`, `SegmentGone`."""
    scan = RowScan(snapshot, question.project, question.filters, question.times)
    try:
        spans = scan.open_all()
        rows = scan.count()
    except BaseException:
        scan.close()
        raise
    return Export(rows, _pieces(scan, spans, _FORMS[question.format](), rows), scan.close)


def _pieces(scan: RowScan, spans: list[RowSpan], form: Form, expected: int | None) -> Iterator[bytes]:
    seen = 0
    if head := form.head():
        yield head
    for span in spans:
        table = scan.matching(span, MEMBERS)
        seen += len(table)
        for start in range(0, len(table), ROWS):
            if piece := form.rows(table.slice(start, ROWS)):
                yield piece
    if expected is not None and seen != expected:
        raise ExportBroken(f"{seen} rows were read, {expected} were counted")
    if tail := form.tail():
        yield tail
