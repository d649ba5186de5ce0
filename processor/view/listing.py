"""Queries on the columns: users over all time, users by some of their rows, one user's rows, a project's hours.

The caller holds one of the view's locks, except for `filtered`, which acquires it for each piece.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from processor.core.growing_arrays import I64, Records
from processor.core.tables.row_sums import NO_SUMS, RowSums, Totals
from processor.view.limbs import NO_FIRST, NO_LAST, SUMMED, joined, row_sums, split, totals_of
from processor.view.projects import Dim, ViewProject
from processor.view.query import UserQuery, key_of, keys_of, top
from processor.view.row_columns import RowColumns

PIECE: Final = 1 << 16
"""Rows that are scanned under one hold of the lock: some milliseconds."""


class UserSums(NamedTuple):
    """A user's sums, over all rows that were asked for; the times of one without requests mean nothing."""

    user_id: str | None
    """None: the unattributed events."""
    sums: RowSums


class Listing(NamedTuple):
    """A page of users in order; `total` and the like are over all pages."""

    users: list[UserSums]
    totals: Totals
    size: int
    more: bool
    """True if there are users after the page."""


class Hour(NamedTuple):
    """A project's sums of one hour (since the epoch), provider, model and environment."""

    hour: int
    provider: str
    model: str
    environment: str
    sums: RowSums


NOTHING: Final = Listing([], Totals(), 0, False)


class Standing(Protocol):
    """Sums by user of a project that are updated as rows change."""

    @property
    def totals(self) -> Totals:
        """Return the total of all users."""
        ...

    @property
    def size(self) -> int:
        """Return how many users have rows."""
        ...

    def among(self, users: I64 | None = None) -> I64:
        """Return those of `users` (ascending; None: all) that have rows."""
        ...

    def keys(self, users: I64, sorted_by: str) -> I64:
        """Return the sort keys of `users`, ascending: shape (n,)."""
        ...

    def sums(self, users: Sequence[int]) -> list[RowSums]:
        """Return the sums of users."""
        ...


class AllTime:
    """The sums that the columns have: those over all time. To be made anew whenever the lock was let go."""

    def __init__(self, columns: RowColumns, project: ViewProject) -> None:
        self._columns = columns
        self._project = project
        self.totals = project.totals
        self.size = project.people

    def among(self, users: I64 | None = None) -> I64:
        """See `Standing`."""
        found = np.array(self._project.members, np.int64) if users is None else users
        if self._project.people == len(self._project.members):
            return found
        return found[self._columns.people.records.column("rows", found, ascending=True) > 0]

    def keys(self, users: I64, sorted_by: str) -> I64:
        """See `Standing`."""
        columns, project = self._columns, self._project
        keys = keys_of(sorted_by, lambda name: columns.people.records.column(name, users, ascending=True))
        if project.wide:
            owners = np.intersect1d(users, list(project.wide))
            wide = columns.sums_of(project, owners.tolist())
            keys[np.searchsorted(users, owners)] = [key_of(sorted_by, more) for more in wide]
        return keys

    def sums(self, users: Sequence[int]) -> list[RowSums]:
        """See `Standing`."""
        return self._columns.sums_of(self._project, users)


def page(columns: RowColumns, standing: Standing, query: UserQuery, users: I64 | None = None) -> Listing:
    """A page of a standing; of no others than `users`, ascending, if they are given. 30 ms for a million."""
    users = standing.among(users)
    keys = standing.keys(users, query.sorted_by)

    def get(places: Sequence[int]) -> list[RowSums]:
        return standing.sums(users[list(places)].tolist())

    return _page(columns, users, keys, get, query, standing.totals)._replace(size=standing.size)


def nobody(columns: RowColumns, project: ViewProject, query: UserQuery, user: int | None) -> Listing:
    """Return the number of the user that stands for unattributed events; None: there are no such events."""
    if user is None:
        return NOTHING
    (found,) = columns.sums_of(project, [user])
    members = np.array([user])
    keys = np.array([key_of(query.sorted_by, found)])
    return _page(columns, members, keys, lambda places: [found for _ in places], query, found.totals())


def filtered(
    columns: RowColumns,
    project: ViewProject,
    dims: Iterable[Dim],
    query: UserQuery,
    user: int | None,
    hold: Callable[[], AbstractContextManager[Any]],
) -> Listing:
    """Sum up rows by user; `user` None: of all users. `hold` locks the view for one `PIECE` of rows.

    The total is made from the same numbers as the users' sums. 0.3 s for a million rows.
    """
    with hold():
        rows = np.concatenate([np.empty(0, np.int32), *(np.array(dim.rows, np.int32) for dim in dims)])
        members = np.array(project.members, np.int64)
    sums = Added(len(members))
    for start in range(0, len(rows), PIECE):
        piece = rows[start : start + PIECE].astype(np.int64)
        with hold():
            sums.add(columns, project, piece, user)
    places = np.flatnonzero(sums.rows)
    keys = keys_of(query.sorted_by, lambda name: sums.column(name)[places])
    for place, more in sums.wide.items():
        keys[np.searchsorted(places, place)] = key_of(query.sorted_by, sums.sums_at(place, more))

    def get(chosen: Sequence[int]) -> list[RowSums]:
        return [sums.sums_at(place, sums.wide.get(place)) for place in places[list(chosen)].tolist()]

    return _page(columns, members[places], keys, get, query, sums.totals)


class Added:
    """Sums by user, where a user is an index into the project's members."""

    def __init__(self, members: int) -> None:
        self.sums = np.zeros((len(SUMMED), members), np.int64)
        self.first = np.full(members, NO_FIRST)
        self.last = np.full(members, NO_LAST)
        self.rows = np.zeros(members, np.int32)
        self.totals = Totals()
        self.wide: dict[int, RowSums] = {}

    def add(self, columns: RowColumns, project: ViewProject, numbered: I64, user: int | None) -> None:
        """Add rows; with `user`, only those of that user."""
        rows = columns.rows.take(numbered)
        chosen = rows["dim"] >= 0
        if user is not None:
            chosen &= rows["owner"] == user
        if not chosen.all():
            numbered, rows = numbered[chosen], rows[chosen]
        at = columns.people.places_of(rows["owner"].astype(np.int64))
        self.put(at, split(rows), rows)
        np.add.at(self.rows, at, 1)
        if project.wide:
            for row, place in zip(numbered.tolist(), at.tolist(), strict=True):
                more = columns.wide(row)
                if more is not None:
                    self.totals = self.totals.plus(more)
                    self.wide[place] = self.wide[place].merge(more) if place in self.wide else more

    def put(self, at: I64, deltas: I64, rows: Records) -> None:
        """Add changes of rows, shape (8, n), at these indexes; the times are those of `rows`."""
        for column, delta in zip(self.sums, deltas, strict=True):
            np.add.at(column, at, delta)
        np.minimum.at(self.first, at, rows["first_seen"])
        np.maximum.at(self.last, at, rows["last_seen"])
        self.totals = self.totals.plus(totals_of(deltas))

    def grow(self, members: int) -> None:
        """Grow to a number of members."""
        more = max(members, 2 * len(self.rows)) - len(self.rows)
        if members > len(self.rows):
            self.sums = np.concatenate((self.sums, np.zeros((len(SUMMED), more), np.int64)), axis=1)
            self.first = np.append(self.first, np.full(more, NO_FIRST))
            self.last = np.append(self.last, np.full(more, NO_LAST))
            self.rows = np.append(self.rows, np.zeros(more, np.int32))

    def column(self, name: str) -> I64:
        return self.last if name == "last_seen" else self.sums[SUMMED.index(name)]

    def sums_at(self, place: int, wide: RowSums | None = None) -> RowSums:
        own = row_sums(self.sums[:, place].tolist(), int(self.first[place]), int(self.last[place]))
        return own.merge(wide) if wide else own


def _page(
    columns: RowColumns,
    members: I64,
    keys: I64,
    get: Callable[[Sequence[int]], list[RowSums]],
    query: UserQuery,
    totals: Totals,
) -> Listing:
    """Return the page of a query out of all users, given by their numbers, sort keys and sums."""
    names = columns.people.names
    chosen = top(keys, members, names, lambda place: query.value_of(get([place])[0]), query.after, query.limit + 1)
    page = chosen[: query.limit]
    ids = [name.decode() or None for name in names.get(members[page].tolist())]
    return Listing(list(map(UserSums, ids, get(page))), totals, len(members), len(chosen) > len(page))


def rows_of(columns: RowColumns, user: int) -> list[tuple[Dim, RowSums]]:
    """Return a user's rows, unordered."""
    return _rows(columns, columns.rows_of(user))


def hours(columns: RowColumns, dims: Sequence[Dim]) -> list[Hour]:
    """Return the hours, summed over all partitions, without deleted ones. 5 µs each."""
    numbered = np.concatenate([np.empty(0, np.int32), *(np.array(dim.rows, np.int32) for dim in dims)]).astype(np.int64)
    at = np.repeat(np.arange(len(dims)), [len(dim.rows) for dim in dims])
    rows = columns.rows.take(numbered)
    there = rows["dim"] >= 0
    if not there.all():
        numbered, at, rows = numbered[there], at[there], rows[there]
    sums = np.zeros((len(SUMMED), len(dims)), np.int64)
    for column, delta in zip(sums, split(rows), strict=True):
        np.add.at(column, at, delta)
    first, last = np.full(len(dims), NO_FIRST), np.full(len(dims), NO_LAST)
    np.minimum.at(first, at, rows["first_seen"])
    np.maximum.at(last, at, rows["last_seen"])
    alive = np.bincount(at, minlength=len(dims)).tolist()
    said = map(row_sums, sums.T.tolist(), first.tolist(), last.tolist())
    found = {
        place: Hour(dim.at, dim.provider, dim.model, dim.environment, own)
        for place, (dim, own) in enumerate(zip(dims, said, strict=True))
        if alive[place]
    }
    for row, place in columns.wide_among(numbered, at):
        found[place] = found[place]._replace(sums=found[place].sums.merge(columns.wide(row) or NO_SUMS))
    return list(found.values())


def costs(columns: RowColumns, dims: Sequence[Dim]) -> dict[str, int]:
    """Return the picodollars of each model, over rows of hours. 0.3 µs a row."""
    numbered, sizes = array("i"), []
    models: dict[str, int] = {}
    for dim in dims:
        numbered.extend(dim.rows)
        sizes.append((models.setdefault(dim.model, len(models)), len(dim.rows)))
    if not numbered:
        return {}
    rows = np.frombuffer(numbered, np.int32).astype(np.int64)
    of, counts = zip(*sizes, strict=True)
    at = np.repeat(np.array(of), np.array(counts))
    sums = np.zeros((len(SUMMED), len(models)), np.int64)
    for column, values in zip(sums, split(columns.rows.take(rows)), strict=True):
        np.add.at(column, at, values)
    found = [joined(column).cost for column in sums.T.tolist()]
    for row, place in columns.wide_among(rows, at):
        found[place] += (columns.wide(row) or NO_SUMS).cost
    return dict(zip(models, found, strict=True))


def _rows(columns: RowColumns, numbered: list[int]) -> list[tuple[Dim, RowSums]]:
    rows = columns.rows.take(np.array(numbered, np.int64))
    sums = split(rows).T.tolist()
    kept_by, firsts, lasts = rows["dim"].tolist(), rows["first_seen"].tolist(), rows["last_seen"].tolist()
    found = []
    for row, dim, own, first, last in zip(numbered, kept_by, sums, firsts, lasts, strict=True):
        if dim >= 0:
            said, more = row_sums(own, first, last), columns.wide(row)
            found.append((columns.projects.dims[dim], said.merge(more) if more else said))
    return found
