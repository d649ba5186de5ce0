"""The projects of a view, and the dimensions of their rows."""

from array import array
from collections.abc import Sequence
from sys import intern
from typing import Final

import numpy as np
from msgspec import Struct

from processor.core.growing_arrays import I64
from processor.core.tables.row_sums import RowSums, Totals
from processor.core.tables.table_rows import HourPlace
from processor.core.tables.user_places import GroupKey
from processor.view.limbs import joined

ELSEWHERE: Final = 0
"""The number of a project and of a user that are never read: rows of hours are summed there."""

DimKey = tuple[int, str, str, str]


class Dim(Struct, gc=False, eq=False):
    """The dimensions of rows besides the user; `at` is a day or, for rows of hours, an hour since the epoch."""

    number: int
    at: int
    provider: str
    model: str
    environment: str
    rows: "array[int]"
    """The numbers of its rows, ascending, including deleted ones."""


class DimValues:
    """What a project's rows of users are kept by, each once. Only ever grows; any thread may look something up."""

    __slots__ = ("days", "environments", "models")

    def __init__(self) -> None:
        self.days: set[int] = set()
        """UTC days since the epoch."""
        self.models: set[str] = set()
        self.environments: set[str] = set()


class ViewProject:
    """A project's users and dimensions, and its totals over all time."""

    __slots__ = ("dims", "hours", "members", "newest", "number", "people", "rows", "totals", "values", "wide")

    def __init__(self, number: int) -> None:
        self.number = number
        self.members = array("i")
        """The numbers of its users, ascending, including users without rows."""
        self.dims: dict[DimKey, Dim] = {}
        self.hours: dict[DimKey, Dim] = {}
        self.values = DimValues()
        self.rows = 0
        """Rows of users and hours, over all partitions, including deleted ones."""
        self.totals = Totals()
        self.wide: dict[int, dict[int, RowSums]] = {}
        """User -> row -> sums that do not fit into columns."""
        self.newest = 0
        """The last day of users' rows."""
        self.people = 0
        """How many of its users have rows."""

    def add_wide(self, user: int, row: int, sums: RowSums) -> None:
        self.totals = self.totals.plus(sums)
        self.wide.setdefault(user, {})[row] = sums

    def drop_wide(self, user: int, row: int) -> None:
        rows = self.wide[user]
        self.totals = self.totals.minus(rows.pop(row))
        if not rows:
            del self.wide[user]


class Projects:
    """All projects by name and by number, and all dimensions by number."""

    def __init__(self) -> None:
        self.by_name: dict[str, ViewProject] = {}
        self.by_number = [ViewProject(ELSEWHERE)]
        self.dims: list[Dim] = []
        self._home_of = array("i")
        """A dimension's project; `ELSEWHERE` for hours."""
        self._at = array("i")
        """A dimension's day or hour."""

    def home_of(self, dim: int) -> ViewProject:
        """Return the project to which rows of a dimension belong."""
        return self.by_number[self._home_of[dim]]

    def homes_of(self, dims: I64) -> I64:
        """Return the numbers of those projects."""
        homes: I64 = np.frombuffer(self._home_of, np.int32).take(dims).astype(np.int64)
        return homes

    def at_of(self, dims: I64) -> I64:
        """Return the days, or hours, of dimensions."""
        found: I64 = np.frombuffer(self._at, np.int32).take(dims).astype(np.int64)
        return found

    def place_users(self, rows: I64, groups: Sequence[GroupKey], codes: I64) -> tuple[I64, I64]:
        """Add new rows to their dimensions; return the numbers of the dimensions and of the projects. `codes`: of each
        row the place in `groups`, which are distinct."""
        dims = [self._dim_of(group) for group in groups]
        # The rows of each dimension come side by side, ascending as before.
        sizes = np.bincount(codes, minlength=len(dims))
        bounds = np.concatenate(([0], np.cumsum(sizes)))
        ordered = rows[np.argsort(codes, kind="stable")].astype(np.int32)
        for dim, start, end in zip(dims, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            dim.rows.frombytes(ordered[start:end].tobytes())
            self.home_of(dim.number).rows += end - start
        numbers = np.array([dim.number for dim in dims], np.int64)
        return numbers[codes], self.homes_of(numbers)[codes]

    def _dim_of(self, group: GroupKey) -> Dim:
        """Return the dimension of rows of users. Adds it if it does not exist."""
        name, day, provider, model, environment = group
        project = self.by_name.get(name) or self._new(name)
        dim = project.dims.get((day, provider, model, environment))
        if dim is None:
            dim = self._new_dim(project.dims, project.number, (day, provider, model, environment))
            project.newest = max(project.newest, day)
            project.values.days.add(day)
            project.values.models.add(dim.model)
            project.values.environments.add(dim.environment)
        return dim

    def place_hours(self, rows: I64, places: Sequence[HourPlace]) -> I64:
        """Add new rows to their dimensions; return the numbers of the dimensions."""
        dims = array("i")
        for row, place in zip(rows.tolist(), places, strict=True):
            project = self.by_name.get(place.project) or self._new(place.project)
            project.rows += 1
            hours = project.hours
            key = (place.hour, place.provider, place.model, place.environment)
            dim = hours.get(key) or self._new_dim(hours, ELSEWHERE, key)
            dim.rows.append(row)
            dims.append(dim.number)
        return np.array(dims, np.int64)

    def _new(self, name: str) -> ViewProject:
        project = self.by_name[name] = ViewProject(len(self.by_number))
        self.by_number.append(project)
        return project

    def _new_dim(self, dims: dict[DimKey, Dim], home: int, key: DimKey) -> Dim:
        at, provider, model, environment = key
        key = (at, intern(provider), intern(model), intern(environment))
        dim = dims[key] = Dim(len(self.dims), *key, array("i"))
        self.dims.append(dim)
        self._home_of.append(home)
        self._at.append(at)
        return dim

    def count(self, homes: I64, changes: I64) -> None:
        """Count users that got their first row (1) or lost their last one (-1), by the numbers of their projects."""
        for home, change in zip(homes.tolist(), changes.tolist(), strict=True):
            self.by_number[home].people += change

    def add(self, homes: I64, deltas: I64) -> None:
        """Add changes of rows, shape (8, n), to the totals of their projects, whose numbers these are."""
        if (homes == homes[0]).all():
            found, sums = homes[:1], deltas.sum(axis=1, keepdims=True)
        else:
            found, inverse = np.unique(homes, return_inverse=True)
            sums = np.zeros((len(deltas), len(found)), np.int64)
            for total, delta in zip(sums, deltas, strict=True):
                np.add.at(total, inverse, delta)
        for number, change in zip(found.tolist(), sums.T.tolist(), strict=True):
            project = self.by_number[number]
            project.totals = project.totals.plus(joined(change))
