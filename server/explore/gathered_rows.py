"""A few rows of each of many row groups, gathered into one table: to make one of each takes as long as reading them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from processor.event_store.schema import SCHEMA
from server.explore.chosen_rows import Values, table_of
from server.explore.segment_files import OpenFile


class GatheredRows:
    """Rows of many row groups, as a table in the order in which they were added."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.count = 0
        self._columns = [*columns]
        self._begin_values()
        self._tables: list[Any] = []

    def _begin_values(self) -> None:
        self._valued = 0
        self._values: dict[str, Values] = {name: [] for name in self._columns}

    def add(
        self,
        opened: OpenFile,
        group: int,
        rows: NDArray[np.int64],
        known: Mapping[str, str | int] = {},
        listed: Mapping[str, Values] = {},
    ) -> None:
        """Add rows of a row group, which are ascending.

        Columns that need not be read: `known` has the value that all these rows have there, `listed` one for each row.
        """
        if not len(rows):
            return
        self.count += len(rows)
        read = [name for name in self._columns if name not in known and name not in listed]
        values = opened.values(group, read, rows)
        if values is None:
            self._end_values()
            self._tables.append(opened.take(group, self._columns, rows))
            return
        self._valued += len(rows)
        for name, each in zip(read, values, strict=True):
            self._values[name] += each
        for name in known.keys() & self._values.keys():
            self._values[name] += [known[name]] * len(rows)
        for name in listed.keys() & self._values.keys():
            self._values[name] += listed[name]

    def add_values(self, rows: Sequence[Sequence[Any]]) -> None:
        """Add rows whose values are known: of each those of all columns, as `OpenFile.values` gives them."""
        self.count += len(rows)
        self._valued += len(rows)
        for name, each in zip(self._columns, zip(*rows, strict=True), strict=False):
            self._values[name] += each

    def _end_values(self) -> None:
        if self._valued:
            self._tables.append(table_of(self._columns, [self._values[name] for name in self._columns]))
            self._begin_values()

    def table(self) -> Any:
        """Return what was added."""
        self._end_values()
        empty = pa.schema([SCHEMA.field(name) for name in self._columns]).empty_table()
        return pa.concat_tables(self._tables or [empty])
