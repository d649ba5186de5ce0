"""Numbered rows in columns: which of them wait for the next flush, where the newest record of each is, and exact sums.

Rows of users, rows of hours and histograms are numbered rows; the first two have sums, of 72 bytes each (`row_bytes`).
The events of many messages are added with a few calls of numpy, without an object for each row. Sums in columns stay
below 2^62, and so does what messages add to them, so no addition overflows. A row beyond that is *wide*: its numbers
are Python integers in an object of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from processor.core import growing_arrays
from processor.core.events.columns import Rows
from processor.core.growing_arrays import I64, Records, Segments
from processor.core.kernel.loaded import kernel
from processor.core.tables import grouped_sums, row_bytes, row_dtype, table_rows
from processor.core.tables.row_dtype import words_of
from processor.core.tables.row_sums import AMOUNTS
from processor.core.tables.table_rows import NEVER, Sums

_MARK: Final = np.dtype([("changelog", "<i8"), ("dirty", "<i4"), ("_", "<i4")])
_NO_MARK: Final = np.array((NEVER, 0, 0), _MARK)

_BOUND: Final = grouped_sums.SAFE
_MAX_COUNT: Final = 2**31
_WORDS: Final = row_bytes.SIZE // 8
_AMOUNTS: Final = words_of(row_dtype.DTYPE, AMOUNTS)

_NOTHING: Final = np.zeros((), row_dtype.DTYPE)
_NOTHING["offset"] = NEVER

Mask = NDArray[np.bool_]

Record = tuple[bytes, bytes | None]
"""Key and value of a record of the changelog; None: a tombstone."""


class Dead(NamedTuple):
    """A record of the changelog that newer ones have replaced."""

    offset: int
    rows: int
    """How many rows it has."""


class Drained(NamedTuple):
    """Changed rows as records of the changelog. The values are those at the time of the drain."""

    rows: int
    """How many."""
    records: Sequence[Record]
    wrote: Callable[[I64], list[Dead]]
    """Note that the records are at these offsets; returns the records that they replace."""


class NumberedRows:
    """The marks of rows numbered from 0. A subclass has their values, and maps keys to numbers."""

    def __init__(self) -> None:
        self._marks = Segments(_NO_MARK)
        """The compiled kernel sets those of rows that wait, and then has `_touched` called."""
        self._dirty: list[I64] = []
        self.changed = 0
        """Rows waiting for the next flush."""

    def _touch(self, rows: I64) -> None:
        """Have distinct rows written with the next flush."""
        fresh = rows[self._marks.column("dirty", rows) == 0]
        if len(fresh):
            for part, at, _ in self._marks.split(fresh):
                part["dirty"][at] = 1
            self._dirty.append(fresh)
            self.changed += len(fresh)

    def _touch_each(self, rows: I64) -> None:
        """The same for rows that may repeat.

        Only those that do not wait yet are made distinct: in most calls there are none, and sorting takes 0.1 ms.
        """
        fresh = rows[self._marks.column("dirty", rows) == 0]
        if len(fresh):
            self._touch(np.unique(fresh))

    def _touched(self, rows: bytes) -> None:
        """Note distinct rows, numbers of 64 bits, that were marked as waiting. They are written in their order."""
        if rows:
            self._dirty.append(np.sort(np.frombuffer(rows, np.int64)))
            self.changed += len(self._dirty[-1])

    def _take_changed(self) -> I64:
        """Return the waiting rows, each once, and have none wait."""
        rows = np.concatenate(self._dirty) if self._dirty else np.empty(0, np.int64)
        self._dirty, self.changed = [], 0
        for part, at, _ in self._marks.split(rows):
            part["dirty"][at] = 0
        return rows

    def _drained(self, rows: I64, records: Sequence[Record]) -> Drained:
        """Return rows with a record each."""
        return Drained(len(rows), records, partial(self._wrote, rows))

    def _wrote(self, rows: I64, offsets: I64) -> list[Dead]:
        """Note that the newest records of distinct rows are at `offsets`; return the records that they replace."""
        return [Dead(offset, 1) for offset in self._move(rows, offsets).tolist() if offset != NEVER]

    def _move(self, rows: I64, offsets: I64) -> I64:
        """Note the same; return where the records were before."""
        before: I64 = self._marks.column("changelog", rows)
        for part, at, which in self._marks.split(rows):
            part["changelog"][at] = offsets[which]
        return before

    def changelogs(self) -> I64:
        """Return the offset of each row's newest record, `NEVER` for a row that has none."""
        found: I64 = self._marks.column("changelog", np.arange(len(self._marks)), ascending=True)
        return found


class Keys(Protocol):
    """The changelog keys of rows, by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> bytes: ...


class SumRows(NumberedRows):
    """Rows of sums."""

    def __init__(self, keys: Keys) -> None:
        """`keys` is the subclass's, which adds to it and then calls `_grow`."""
        super().__init__()
        self._values = Segments(_NOTHING)
        self._keys_by_number = keys
        self._wide: dict[int, Sums] = {}
        self._tally: tuple[int, int] | None = (0, 0)
        """Rows that have events, and these events; None: rows were read back since they were counted."""

    def __len__(self) -> int:
        return len(self._keys_by_number)

    @property
    def tally(self) -> tuple[int, int]:
        """How many rows have events, and how many unique events these are.

        Kept up with what is added; after rows were read back it looks at all of them once (20 ms for a million).
        """
        if self._tally is None:
            requests = self._values.column("requests", np.arange(len(self._keys_by_number)), ascending=True)
            wide = list(self._wide.values())
            events = int(requests.sum(dtype=np.int64)) + sum(row.requests for row in wide)
            self._tally = int(np.count_nonzero(requests)) + sum(row.requests > 0 for row in wide), events
        return self._tally

    def _all(self) -> Iterator[tuple[int, Sums]]:
        """Yield number and sums of all rows that have events. Makes an object for each: not for the hot path."""
        values, changelogs = self._values.take(np.arange(len(self._keys_by_number))), self.changelogs()
        for row, (value, changelog) in enumerate(zip(values.tolist(), changelogs.tolist(), strict=True)):
            found = self._wide.get(row) or sums_of(self._keys_by_number[row], value)
            if found.requests:  # one that was taken away has none
                found.changelog = changelog
                yield row, found

    def _grow(self) -> None:
        """Add a row without events for each key that has none."""
        count = len(self._keys_by_number) - len(self._marks)
        self._values.extend(count)
        self._marks.extend(count)

    # --- adding events ----------------------------------------------------------------------------------------------

    def add_to(self, rows: I64, offsets: I64, events: Rows, errors: Mask) -> None:
        """Add events, at least one, to those of their rows that do not contain the event's message yet.

        `rows` and `offsets` have the row and the message's offset of each event, in the order of the log. All these
        rows are written with the next flush, also those that contain the message: memory may be ahead of the changelog.

        The compiled kernel adds one event after the other, where it runs and nothing is out of the ordinary: a wide
        row, one that contains its message, or a sum that may not fit into 64 bits. Then it changes nothing.
        """
        added = None
        if kernel is not None and not (self._wide and np.isin(rows, list(self._wide)).any()):
            values, marks, failed = self._values.parts, self._marks.parts, np.ascontiguousarray(errors)
            added = kernel.add_sums(
                values, marks, growing_arrays.BITS, rows, offsets, events, failed, grouped_sums.SAFE, _MAX_COUNT
            )
        if added is None:
            self._add_by_numpy(rows, offsets, events, errors)
            return
        touched, over, came = added
        self._touched(touched)
        if self._tally is not None:
            self._tally = self._tally[0] + came, self._tally[1] + len(rows)
        for row in np.unique(np.frombuffer(over, np.int64)).tolist():
            self._put(row, self._get(row))

    def _add_by_numpy(self, rows: I64, offsets: I64, events: Rows, errors: Mask) -> None:
        """`add_to` with as many calls for all events as for one."""
        is_open = self._values.column("offset", rows) < offsets
        if not is_open.all():
            self._touch_each(rows[~is_open])
            rows, offsets, events, errors = rows[is_open], offsets[is_open], events[is_open], errors[is_open]
            if not len(rows):
                return
        added = grouped_sums.grouped(rows, offsets, events, errors)
        if self._tally is not None:
            empty = self._values.column("requests", added.codes) == 0  # of a wide row these are 0, too
            fresh = np.count_nonzero(empty) - (sum(map(added.codes.__contains__, self._wide)) if self._wide else 0)
            self._tally = self._tally[0] + int(fresh), self._tally[1] + len(rows)
        self._touch(added.codes)
        if added.amounts.dtype == object:
            self._add_exactly(added)
            return
        if self._wide:
            is_wide = np.isin(added.codes, list(self._wide))
            if is_wide.any():
                self._add_exactly(added.where(is_wide))
                added = added.where(~is_wide)
        self._add(added)

    def _add(self, added: grouped_sums.Grouped) -> None:
        values = self._values.take(added.codes)
        is_new = values["requests"] == 0
        values["offset"] = added.offsets
        values["requests"] += added.requests.astype(np.uint32)
        values["errors"] += added.errors.astype(np.uint32)
        values["unpriced"] += added.unpriced.astype(np.uint32)
        values["first_seen"] = np.where(is_new, added.first_seen, np.minimum(values["first_seen"], added.first_seen))
        values["last_seen"] = np.where(is_new, added.last_seen, np.maximum(values["last_seen"], added.last_seen))
        _amounts(values)[:] += added.amounts
        self._values.put(added.codes, values)
        for row in added.codes[_is_over(values)].tolist():
            self._put(row, self._get(row))

    def _add_exactly(self, added: grouped_sums.Grouped) -> None:
        for group in added.each():
            row = self._get(group.code)
            group.add_to(row)
            self._put(group.code, row)

    def _get(self, row: int) -> Sums:
        """A row by itself; to be given back to `_put`."""
        return self._wide.get(row) or sums_of(self._keys_by_number[row], self._values.take(np.array([row])).tolist()[0])

    def _put(self, row: int, found: Sums) -> None:
        """Set what a row says: in columns if it fits."""
        amounts = (found.input_tokens, found.output_tokens, found.cached_tokens, found.cost)
        value = np.zeros(1, row_dtype.DTYPE)
        value["offset"] = found.offset
        if found.requests < _MAX_COUNT and all(-_BOUND < amount < _BOUND for amount in amounts):
            self._wide.pop(row, None)
            value[0] = (0, *row_bytes.members_of(found))
        else:
            self._wide[row] = found
        self._values.put(np.array([row]), value)

    def touch_all(self) -> None:
        """Have every row with events written with the next flush."""
        numbers = np.arange(len(self._keys_by_number))
        is_there = self._values.column("requests", numbers) > 0
        is_there[list(self._wide)] = True
        self._touch(numbers[is_there])

    # --- the changelog ----------------------------------------------------------------------------------------------

    def _take_changed_apart(self) -> tuple[I64, list[Drained]]:
        """Return the waiting rows that are in columns, and the wide ones; none waits any more."""
        rows = self._take_changed()
        if not self._wide:
            return rows, []
        is_wide = np.isin(rows, list(self._wide))
        chosen = [self._wide[row] for row in rows[is_wide].tolist()]
        records = [(row.key, table_rows.encode_value(row)) for row in chosen]
        return rows[~is_wide], [self._drained(rows[is_wide], records)]

    def _replace(self, rows: I64, values: Records) -> None:
        """Replace the sums of distinct rows with those read back."""
        self._tally = None
        for row in rows.tolist() if self._wide else ():
            self._wide.pop(row, None)
        self._values.put(rows, values)
        for place in np.flatnonzero(_is_over(values)).tolist():
            row = int(rows[place])
            self._put(row, sums_of(self._keys_by_number[row], values[place].tolist()))

    def _replace_one(self, row: int, found: Sums | None) -> None:
        """Replace the sums of a row, which may not fit into columns. None: the row is deleted."""
        self._tally = None
        self._put(row, found or Sums(self._keys_by_number[row]))


def _amounts(values: Records) -> I64:
    """The `AMOUNTS` of records of `row_dtype.DTYPE`: a view, shape (n, 4)."""
    return values.view(np.int64).reshape(-1, _WORDS)[:, _AMOUNTS]


def _is_over(values: Records) -> Mask:
    """Which of these are not to stay in columns."""
    amounts = _amounts(values)
    counts: Mask = values["requests"] >= _MAX_COUNT
    if not len(values) or (amounts.max() < _BOUND and amounts.min() > -_BOUND):
        return counts
    return counts | (amounts >= _BOUND).any(axis=1) | (amounts <= -_BOUND).any(axis=1)


def sums_of(key: bytes, value: tuple[int, ...]) -> Sums:
    """A record of `row_dtype.DTYPE` as an object."""
    return Sums(key, *row_bytes.listed(value))
