"""All rows of users and hours of a view, in columns; with them the users' and the projects' sums over all time.

A row costs about 110 bytes: its record of 72, its place in the index and in the list of its dimension; a user 210. No
row or user is an object of its own. Nothing here locks; `views.View` does.
"""

from array import array
from collections.abc import Iterable
from operator import add, sub
from sys import intern
from typing import Final

import numpy as np
from msgspec import Struct

from server.changes import Changes, Place, places
from server.hash_index import HashIndex, hashes_of
from server.segments import I64, Records, Segments
from server.sums import NO_FIRST, NO_LAST, SUMMED, TOTALS, Numbers, joined, limbs, merge, numbers

ROW: Final = np.dtype(
    [
        ("dim", "<i4"),  # its number; its complement while there is no such row
        ("requests", "<u4"),
        ("errors", "<u4"),
        ("unpriced", "<u4"),
        ("owner", "<i4"),  # the user's number
        ("next", "<i4"),  # another row of the user; -1: none
        ("input_tokens", "<i8"),
        ("output_tokens", "<i8"),
        ("cached_tokens", "<i8"),
        ("cost", "<i8"),
        ("first_seen", "<i8"),
        ("last_seen", "<i8"),
    ]
)
"""A row: `packed.DTYPE` with other things in the place of its mark and its offset."""

USER: Final = np.dtype(
    [
        *((name, "<i8") for name in SUMMED),
        ("first_seen", "<i8"),
        ("last_seen", "<i8"),
        ("head", "<i4"),  # the newest of the user's rows
        ("rows", "<i4"),  # how many there are
        ("place", "<i4"),  # where the project's members have the user
        ("_", "<i4"),
    ]
)
_EMPTY_ROW: Final = np.array((-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, NO_FIRST, NO_LAST), ROW)
_EMPTY_USER: Final = np.array((*[0] * 8, NO_FIRST, NO_LAST, -1, 0, 0, 0), USER)

ELSEWHERE: Final = 0
"""The project and the user that rows of hours are added up to, for nobody to read."""


class Dim(Struct, gc=False, eq=False):
    """What rows are kept by besides the user; `at` is a day or, of an hour's, an hour since the epoch."""

    number: int
    at: int
    provider: str
    model: str
    environment: str
    rows: "array[int]"


class Project:
    """A project's users and dimensions, and its totals over all time."""

    __slots__ = ("dims", "hours", "lost", "members", "number", "totals", "wide")

    def __init__(self, number: int) -> None:
        self.number = number
        self.members = array("i")
        """The numbers of its users."""
        self.dims: dict[tuple[int, str, str, str], Dim] = {}
        self.hours: dict[tuple[int, str, str, str], Dim] = {}
        self.totals = [0] * 7
        """Requests, errors, input, output and cached tokens, cost, unpriced."""
        self.wide: dict[int, dict[int, Numbers]] = {}
        """User -> row -> what does not fit into columns."""
        self.lost = False
        """True if a row was deleted: some users may have none."""


class Columns:
    """Rows, users and projects, each with a number."""

    def __init__(self) -> None:
        self.rows, self.users = Segments(_EMPTY_ROW), Segments(_EMPTY_USER)
        self.projects: dict[str, Project] = {}
        self.dims: list[Dim] = []
        self.ids: list[str | None] = [None]
        """The users' ids."""
        self.live = 0
        """Rows there are."""
        self._by_number = [Project(ELSEWHERE)]
        self._project_of = array("i")
        """A dimension's project; `ELSEWHERE` for hours."""
        self._row_index, self._user_index = HashIndex(), HashIndex()
        self._wide: dict[int, tuple[Project, int, Numbers]] = {}
        self.users.extend(1)
        self._user_index.add(_user_hashes([(ELSEWHERE, None)]))

    # --- finding things ---------------------------------------------------------------------------------------------

    def user(self, project: str, user_id: str | None) -> int | None:
        """The number of a user that has rows."""
        found = self.projects.get(project)
        if found is None:
            return None
        (number,) = self._user_index.find(_user_hashes([(found.number, user_id)])).tolist()
        return number if number >= 0 and self.users.item("rows", number) else None

    def rows_of(self, user: int) -> list[int]:
        """The numbers of a user's rows, those that are gone included."""
        found = []
        row = self.users.item("head", user)
        while row >= 0:
            found.append(row)
            row = self.rows.item("next", row)
        return found

    def wide(self, row: int) -> Numbers | None:
        """What a row says if it does not fit into columns."""
        found = self._wide.get(row)
        return found[2] if found else None

    def numbers_of(self, project: Project, users: Iterable[int]) -> list[Numbers]:
        """The users' sums over all time."""
        chosen = list(users)
        found = []
        for user, record in zip(chosen, self.users.take(np.array(chosen, np.int64)).tolist(), strict=True):
            total = numbers(record[:8], record[8], record[9])
            for more in project.wide.get(user, {}).values():
                total = merge(total, more)
            found.append(total)
        return found

    # --- taking in changes ------------------------------------------------------------------------------------------

    def apply(self, partition: int, changes: Changes) -> None:
        """Take in the rows of a batch. Raises `ValueError` for a key of another format; then nothing has changed."""
        hashes = hashes_of(changes.keys)
        rows = self._row_index.find(hashes)
        is_gone = np.zeros(len(rows), np.bool_)
        is_gone[changes.gone] = True
        fresh = np.flatnonzero((rows < 0) & ~is_gone)
        if len(fresh):
            found = places(partition, [changes.keys[index] for index in fresh.tolist()])
            rows[fresh] = self._add(found, hashes[fresh])
        values, wide = changes.rows, changes.wide
        if changes.gone:
            known = np.flatnonzero(rows >= 0)  # a tombstone of a row that never was changes nothing
            moved = {old: new for new, old in enumerate(known.tolist())}
            wide = {moved[index]: more for index, more in wide.items()}
            rows, values, is_gone = rows[known], values[known], is_gone[known]
        self._replace(rows, values, is_gone)
        if wide or self._wide:
            self._replace_wide(rows, wide)

    def _replace(self, rows: I64, values: Records, is_gone: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        old = self.rows.take(rows)
        new = values.view(ROW).copy()
        was = old["dim"] >= 0
        dims = np.where(was, old["dim"], ~old["dim"])
        new["dim"] = np.where(is_gone, ~dims, dims)
        new["owner"], new["next"] = old["owner"], old["next"]
        empty = new["requests"] == 0  # its times mean nothing
        if empty.any():
            new["first_seen"][empty] = NO_FIRST
            new["last_seen"][empty] = NO_LAST
        self.rows.put(rows, new)
        deltas = limbs(new) - limbs(old)
        came = (~is_gone).astype(np.int64) - was
        self.live += int(came.sum())
        self._add_to_users(new, deltas, came)
        self._add_to_projects(dims, deltas)
        for dim in np.unique(dims[is_gone]).tolist():
            self._by_number[self._project_of[dim]].lost = True
        shrunk = (new["first_seen"] > old["first_seen"]) | (new["last_seen"] < old["last_seen"])
        for owner in np.unique(new["owner"][shrunk]).tolist():  # less than before: not by this program
            self._see_again(owner)

    def _add_to_users(self, new: Records, deltas: I64, came: I64) -> None:
        for part, at, which in self.users.split(new["owner"].astype(np.int64)):
            for name, delta in zip(SUMMED, deltas, strict=True):
                np.add.at(part[name], at, delta[which])
            np.add.at(part["rows"], at, came[which])
            np.minimum.at(part["first_seen"], at, new["first_seen"][which])
            np.maximum.at(part["last_seen"], at, new["last_seen"][which])

    def _add_to_projects(self, dims: I64, deltas: I64) -> None:
        homes = np.frombuffer(self._project_of, np.int32)[dims]
        found, inverse = np.unique(homes, return_inverse=True)
        sums = np.zeros((len(deltas), len(found)), np.int64)
        for total, delta in zip(sums, deltas, strict=True):
            np.add.at(total, inverse, delta)
        for number, change in zip(found.tolist(), sums.T.tolist(), strict=True):
            project = self._by_number[number]
            project.totals = list(map(add, project.totals, joined(change)))

    def _see_again(self, owner: int) -> None:
        if owner == ELSEWHERE:
            return
        rows = self.rows.take(np.array(self.rows_of(owner)))
        ((part, at, _),) = self.users.split(np.array([owner]))
        part["first_seen"][at] = rows["first_seen"].min()
        part["last_seen"][at] = rows["last_seen"].max()

    def _replace_wide(self, rows: I64, wide: dict[int, Numbers]) -> None:
        numbers_at = rows.tolist()
        for row in self._wide.keys() & set(numbers_at):
            project, owner, before = self._wide.pop(row)
            project.totals = list(map(sub, project.totals, before[TOTALS]))
            del project.wide[owner][row]
            if not project.wide[owner]:
                del project.wide[owner]
        for index, more in wide.items():
            row = numbers_at[index]
            dim, owner = self.rows.item("dim", row), self.rows.item("owner", row)
            project = self._by_number[self._project_of[dim]]
            self._wide[row] = project, owner, more
            project.totals = list(map(add, project.totals, more[TOTALS]))
            project.wide.setdefault(owner, {})[row] = more

    # --- new rows and users -----------------------------------------------------------------------------------------

    def _add(self, found: list[Place], hashes: Records) -> I64:
        """Make the rows, which are gone for now, with their dimensions and users; returns their numbers."""
        rows = self.rows.extend(len(found))
        self._row_index.add(hashes)
        dims = array("i")
        people: list[tuple[int, str | None]] = []
        for row, (project, user, *rest, is_hour) in zip(rows.tolist(), found, strict=True):
            home = self.projects.get(project) or self._new_project(project)
            dim = (home.hours if is_hour else home.dims).get(tuple(rest))  # type: ignore[arg-type] # its length
            if dim is None:
                dim = self._new_dim(home, is_hour, *rest)  # type: ignore[arg-type] # what is in it
            dim.rows.append(row)
            dims.append(dim.number)
            people.append((ELSEWHERE, None) if is_hour else (home.number, user))
        owners = self._owners(people)
        fresh = np.full(len(rows), _EMPTY_ROW)
        fresh["dim"] = ~np.frombuffer(dims, np.int32)
        fresh["owner"] = owners
        fresh["next"] = self._link(rows, owners)
        self.rows.put(rows, fresh)
        return rows

    def _new_project(self, name: str) -> Project:
        project = self.projects[name] = Project(len(self._by_number))
        self._by_number.append(project)
        return project

    def _new_dim(self, project: Project, is_hour: bool, at: int, provider: str, model: str, environment: str) -> Dim:
        key = (at, intern(provider), intern(model), intern(environment))
        dim = Dim(len(self.dims), *key, array("i"))
        self.dims.append(dim)
        self._project_of.append(ELSEWHERE if is_hour else project.number)
        (project.hours if is_hour else project.dims)[key] = dim
        return dim

    def _owners(self, people: list[tuple[int, str | None]]) -> I64:
        """The users' numbers; those of unknown ones are new."""
        different = list(dict.fromkeys(people))
        hashes = _user_hashes(different)
        found = self._user_index.find(hashes)
        fresh = np.flatnonzero(found < 0)
        if len(fresh):
            numbered = self._user_index.add(hashes[fresh])
            found[fresh] = numbered
            self.users.extend(len(numbered))
            people_places = array("i")
            for index, number in zip(fresh.tolist(), numbered.tolist(), strict=True):
                home, user = different[index]
                self.ids.append(user)
                members = self._by_number[home].members
                people_places.append(len(members))
                members.append(number)
            for part, at, which in self.users.split(numbered):
                part["place"][at] = np.frombuffer(people_places, np.int32)[which]
        by_person = dict(zip(different, found.tolist(), strict=True))
        return np.fromiter(map(by_person.__getitem__, people), np.int64, len(people))

    def _link(self, rows: I64, owners: I64) -> I64:
        """Put new rows before the heads of their users; returns what comes after each of them."""
        order = np.argsort(owners, kind="stable")
        ranked, sorted_owners = rows[order], owners[order]
        after = self.users.column("head", sorted_owners).astype(np.int64)
        follows = sorted_owners[1:] == sorted_owners[:-1]
        after[1:][follows] = ranked[:-1][follows]
        last = np.append(~follows, True)
        for part, at, which in self.users.split(sorted_owners[last]):
            part["head"][at] = ranked[last][which]
        after[sorted_owners == ELSEWHERE] = -1  # hours are found by their dimension
        found = np.empty_like(after)
        found[order] = after
        return found


def _user_hashes(people: list[tuple[int, str | None]]) -> Records:
    return hashes_of(people, [b"%d %b" % (project, (user or "").encode()) for project, user in people])
