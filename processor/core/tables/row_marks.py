"""Marks of numbered rows: which of them wait for the next flush, and where the newest record of each is."""

from typing import Final, NamedTuple

import numpy as np

from processor.core.growing_arrays import I64, Records, Segments
from processor.core.tables.table_rows import NEVER

_MARK: Final = np.dtype([("changelog", "<i8"), ("dirty", "<i4"), ("_", "<i4")])
_NO_MARK: Final = np.array((NEVER, 0, 0), _MARK)


class Dead(NamedTuple):
    """A record of the changelog that newer ones have replaced."""

    offset: int
    rows: int
    """How many rows it has."""


class Singles(NamedTuple):
    """Changed rows that have a record each. The values are those at the time of the drain."""

    rows: I64
    records: list[tuple[bytes, bytes]]
    """Key and value of each of `rows`, in their order."""


class RowMarks:
    """The marks of rows numbered from 0."""

    def __init__(self) -> None:
        self._marks = Segments(_NO_MARK)
        self._dirty: list[I64] = []
        self.changed = 0
        """Rows waiting for `take`."""

    def __len__(self) -> int:
        return len(self._marks)

    def extend(self, count: int) -> None:
        """Add `count` rows that were never written."""
        self._marks.extend(count)

    def touch(self, rows: I64) -> None:
        """Have distinct rows written with the next flush."""
        fresh = rows[self._marks.column("dirty", rows) == 0]
        if len(fresh):
            for part, at, _ in self._marks.split(fresh):
                part["dirty"][at] = 1
            self._dirty.append(fresh)
            self.changed += len(fresh)

    @property
    def parts(self) -> list[Records]:
        """The segments of the marks, for the compiled kernel, which sets them and then has `touched` called."""
        return self._marks.parts

    def touched(self, rows: bytes) -> None:
        """Note distinct rows, numbers of 64 bits, that were marked as waiting. They are written in their order."""
        if rows:
            self._dirty.append(np.sort(np.frombuffer(rows, np.int64)))
            self.changed += len(self._dirty[-1])

    def touch_each(self, rows: I64) -> None:
        """Have rows written with the next flush; `rows` may repeat.

        Only rows that do not wait yet are made distinct: in most calls there are none, and sorting takes 0.1 ms.
        """
        fresh = rows[self._marks.column("dirty", rows) == 0]
        if len(fresh):
            self.touch(np.unique(fresh))

    def take(self) -> I64:
        """Return the waiting rows, each once, and have none wait."""
        rows = np.concatenate(self._dirty) if self._dirty else np.empty(0, np.int64)
        self._dirty, self.changed = [], 0
        for part, at, _ in self._marks.split(rows):
            part["dirty"][at] = 0
        return rows

    def wrote(self, rows: I64, offsets: I64) -> I64:
        """Note that the newest records of distinct rows are at `offsets`; return where they were before."""
        before: I64 = self._marks.column("changelog", rows)
        for part, at, which in self._marks.split(rows):
            part["changelog"][at] = offsets[which]
        return before

    def changelogs(self, rows: I64) -> I64:
        """Return the offsets of these rows' newest records, `NEVER` for a row that has none."""
        found: I64 = self._marks.column("changelog", rows)
        return found

    def all_changelogs(self) -> I64:
        """Return the same for all rows."""
        found: I64 = self._marks.column("changelog", np.arange(len(self)), ascending=True)
        return found


def dead_singles(before: I64) -> list[Dead]:
    """Return the replaced records of rows that have a record each; `before`: their offsets, or `NEVER`."""
    return [Dead(offset, 1) for offset in before.tolist() if offset != NEVER]
