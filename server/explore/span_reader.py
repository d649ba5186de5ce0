"""The matching rows of one row group after the other, for passes in numpy: columns as they were read, and a mask."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from server.explore.cell_parts import RowGroup
from server.explore.column_codes import Codes, column_codes, tag_codes
from server.explore.questions import Filters, Times
from server.explore.row_scan import RowSpan, is_inside, kept_of_span
from server.explore.segment_files import DICTIONARIES, OpenFile

TAG: Final = "tag:"
FIELDS: Final = frozenset(DICTIONARIES) - {"prompt_hash", "sdk_version", "cost_source", "project"}
"""Columns to group by, besides the tags, and to filter by."""


def is_filtered_by_fields(filters: Filters) -> bool:
    """Return whether the filters are those that this is made for: of `FIELDS`, tags and kinds."""
    rest = Filters(
        equal=filters.equal,
        unequal=filters.unequal,
        tags=filters.tags,
        no_tags=filters.no_tags,
        kinds=filters.kinds,
    )
    return rest == filters and FIELDS.issuperset(filters.equal) and FIELDS.issuperset(filters.unequal)


class SpanReader:
    """Reads the row groups of one question, whose filters `is_filtered_by_fields` accepts."""

    def __init__(self, filters: Filters, times: Times) -> None:
        self._filters = filters
        self._times = times
        self._columns = {*filters.equal, *filters.unequal}
        if filters.tags or filters.no_tags:
            self._columns.add("tags")

    def cut(self, span: RowSpan) -> tuple[int | None, int | None]:
        """Return the start and the end of the times asked for, as far as rows of a span may be beyond them."""
        start, end = self._times.start, self._times.end
        is_after = start is None or span.low[0] >= start
        return None if is_after else start, None if end is None or span.high[0] < end else end

    def read(self, opened: OpenFile, span: RowSpan, columns: Iterable[str]) -> RowGroup:
        """Return the matching rows of a span with at least these columns. Raises `SegmentGone`, `Refused`."""
        names, rows = {*columns, *self._columns}, span.end - span.begin
        if not is_inside(span, self._times):
            names.add("timestamp")
        if span.calls not in {0, rows}:
            names.add("kind")
        if not span.is_below:
            names.add("log_offset")
        table = opened.read_coded(span.group, sorted(names)).slice(span.begin, rows)
        kept, is_call = self._kept(table, span)
        return RowGroup(table, kept, is_call)

    def _kept(self, table: Any, span: RowSpan) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | bool]:
        """Return which rows match, None for all; and of those that do, which are calls."""
        masks = [*_of_filters(table, self._filters)]
        of_span = kept_of_span(table, span, self._times)
        masks += [] if of_span is None else [of_span]
        is_call: NDArray[np.bool_] | bool = span.calls > 0
        if "kind" in table.column_names:
            codes = column_codes(table["kind"])
            is_call = np.array([value == "call" for value in codes.values])[codes.places]
        wanted = self._filters.kinds
        if wanted != "all":
            if isinstance(is_call, bool):
                masks += [] if is_call == (wanted == "call") else [np.zeros(len(table), np.bool_)]
            else:
                masks.append(is_call if wanted == "call" else ~is_call)
            is_call = wanted == "call"
        kept = None if not masks else np.logical_and.reduce(masks)
        if kept is not None and not isinstance(is_call, bool):
            is_call = is_call[kept]
        return kept, is_call


def codes_of(table: Any, field: str) -> Codes:
    """Return a field of each row; a tag is a field whose name begins with `TAG`."""
    if field.startswith(TAG):
        return tag_codes(table["tags"], field.removeprefix(TAG))
    return column_codes(table[field])


def _of_filters(table: Any, filters: Filters) -> Iterator[NDArray[np.bool_]]:
    """Yield, for each filter of texts, which rows agree to it."""
    tags = ((f"{TAG}{key}", (value,)) for key, value in filters.tags)
    for field, values in (*filters.equal.items(), *tags):
        codes = codes_of(table, field)
        yield np.array([value in values for value in codes.values])[codes.places]
    tags = ((f"{TAG}{key}", (value,)) for key, value in filters.no_tags)
    for field, values in (*filters.unequal.items(), *tags):
        codes = codes_of(table, field)
        yield np.array([value not in values for value in codes.values])[codes.places]


def micros_of(table: Any) -> NDArray[np.int64]:
    """Return the time of each row."""
    found: NDArray[np.int64] = table["timestamp"].chunk(0).cast("int64").to_numpy()
    return found
