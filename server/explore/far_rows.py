"""Rows that have some ids, in row groups that an index names, kept for the next question.

The index has 32 bits of an id, so that for 800,000 traces of a day three thousand row groups of 100 million other
events are named that have none of them; to find that out takes half a second. What was found, or was not, is kept by
row group and id: the files of segments never change, and the next question, for the same day and a minute more, asks
for nearly the same ids.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import cache
from sys import getsizeof
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from server.explore.gathered_rows import GatheredRows
from server.explore.kept_summaries import KeptSummaries, SummaryKey
from server.explore.segment_files import OpenFile, SegmentFile

SHARE: Final = 0.5
"""Of all that is kept, what the rows of one question take at most: then no more are kept, lest they drive out the
first ones."""
MOST_ROWS: Final = 200_000
"""That are held in memory."""
UNASKED: Final = 2
"""Rows of ids are forgotten that a question does not ask for, where more than so many times its ids are known."""

Whole = dict[tuple[str, int], set[str]]
"""Segment and row group -> ids of whom all rows in it are known."""

_Row = tuple[Any, ...]
"""Its number within the row group, then its values."""
_Found = dict[tuple[int, str], tuple[_Row, ...]]
"""Row group and id -> the rows there, if there are any."""


class FarRows:
    """Rows of many row groups, of one question."""

    def __init__(
        self, kept: KeptSummaries, project: str, column: str, columns: Sequence[str], through: str | None
    ) -> None:
        """`column` is that of the ids, and one of `columns`. With `through`, another one of them, the rows of an id are
        all rows of a row group that have the same there as one that has the id."""
        self.gathered: Final = GatheredRows(columns)
        self._kept = kept
        self._project = project
        self._columns = [*columns]
        self._column = self._columns.index(column) + 1
        self._through = None if through is None else self._columns.index(through) + 1
        self._size = 0
        self.has_kept = False
        """Whether rows that were read are kept, so that the same question would go on behind them."""

    def add(
        self,
        segment: str,
        file: SegmentFile,
        by_group: Mapping[int, set[str]],
        known: Mapping[str, str | int],
        whole: Whole,
        check: Callable[[], None],
    ) -> bool:
        """Add the rows with some ids of some row groups of a segment, in which all rows have some `known` values.

        With `through`, `whole` is told which of these ids the rows have; else rows with an id are left out of the row
        groups that `whole` has it in. Returns whether there are no more than `MOST_ROWS`, else some are missing. Raises
        what `check` does, which is called now and then, `SegmentGone`, `Refused`.
        """
        # Of a session's traces few are asked for behind all of the range: each is not to make the other forgotten.
        is_behind = self._through is None and bool(whole)
        key = SummaryKey(segment, -1, self._project, ("rows", self._column, self._through, is_behind, *self._columns))
        before: _Found
        before, size = self._kept.get(key) or ({}, 0)
        new: _Found = {}
        used: _Found = {}
        with ExitStack() as stack:
            opened = cache(lambda: stack.enter_context(closing(file.opened())))  # if it is needed
            for group, asked in by_group.items():
                place = (segment, group)
                ids = asked if self._through is not None else asked - whole.get(place, set())
                unknown = {each for each in ids if (group, each) not in before}
                read: _Found | None = {}
                if unknown:
                    check()
                    read = self._read(opened(), group, unknown, known)
                if read is None:
                    self._add_many(opened(), group, ids, known, place, whole)
                else:
                    found = {(group, each): (read if each in unknown else before)[group, each] for each in ids}
                    new |= read
                    used |= found
                    self._add_found(found, place, whole)
                if self.gathered.count > MOST_ROWS:
                    return False
        if len(before) + len(new) > UNASKED * len(used):
            before, size, new = {}, 0, used
        self._keep(key, before, size, new)
        return True

    def _add_found(self, found: _Found, place: tuple[str, int], whole: Whole) -> None:
        rows = {row[0]: row for each in found.values() for row in each}
        if self._through is not None:
            whole[place] = {row[self._through] for row in rows.values()}
        self.gathered.add_values([rows[number][1:] for number in sorted(rows)])

    def _keep(self, key: SummaryKey, before: _Found, size: int, new: _Found) -> None:
        size += sum(map(_size_of, new.values()))
        self._size += size
        self.has_kept = bool(new) and self._size <= SHARE * self._kept.most
        if self.has_kept:
            kept = before | new
            self._kept.keep(key, (kept, size), size)

    def _read(
        self, opened: OpenFile, group: int, ids: Collection[str], known: Mapping[str, str | int]
    ) -> _Found | None:
        """Return the rows of some ids; None: these are too many to be kept."""
        numbers = self._numbers(opened, group, ids)
        if numbers is None:
            return None
        names = [name for name in self._columns if name not in known]
        values = opened.values(group, names, numbers)
        if values is None:
            return None
        by_name = dict(zip(names, values, strict=True))
        columns = [by_name.get(name) or [known.get(name)] * len(numbers) for name in self._columns]
        rows: list[_Row] = [*zip(numbers.tolist(), *columns, strict=True)]
        if self._through is None:
            return {(group, each): tuple(row for row in rows if row[self._column] == each) for each in ids}
        return {(group, each): tuple(self._of(rows, each, self._through)) for each in ids}

    def _of(self, rows: Sequence[_Row], text: str, through: int) -> Iterator[_Row]:
        same = {row[through] for row in rows if row[self._column] == text}
        return (row for row in rows if row[through] in same)

    def _numbers(self, opened: OpenFile, group: int, ids: Collection[str]) -> NDArray[np.int64] | None:
        """Return the rows of some ids by their numbers in the row group; None: these are many."""
        numbers = opened.find(group, {self._columns[self._column - 1]: ids})
        if self._through is None:
            return numbers
        through = self._columns[self._through - 1]
        values = opened.values(group, [through], numbers)
        return None if values is None else opened.find(group, {through: {*values[0]}})

    def _add_many(
        self,
        opened: OpenFile,
        group: int,
        ids: Collection[str],
        known: Mapping[str, str | int],
        place: tuple[str, int],
        whole: Whole,
    ) -> None:
        """Add rows that are not kept."""
        numbers = opened.find(group, {self._columns[self._column - 1]: ids})
        if self._through is not None:
            name = self._columns[self._through - 1]
            whole[place] = {*opened.take(group, [name], numbers)[name].to_pylist()}
            numbers = opened.find(group, {name: whole[place]})
        self.gathered.add(opened, group, numbers, known)


def _size_of(rows: tuple[_Row, ...]) -> int:
    """Return about how many bytes an id and its rows take."""
    return 300 + sum(getsizeof(row) + sum(map(getsizeof, row)) for row in rows)
