"""The first pages of each large project, kept up to date in every order that is asked for: boards of top users.

A board is over all time or, once it is asked for, since the first day of this month.

A user's place changes only when a row of the user does. So once the first users are known, only users that change need
to be compared: one that reaches the board's bound joins it, and the bound is raised when the board has too many. All
other users are behind the bound, and a page that ends before it is found on the board: of a million users some thousand
are examined, without a thread.

A sum that shrinks (retention) does no harm: a user that falls behind the bound stays for a while, the bound is never
lowered, and when too few users are left before it, the page is read from all users once and the board is made anew.

The follower's thread, the only one that changes columns, calls `note` for each batch under the view's lock, and
`settle` for several batches without it; `page` is called under the lock, in any thread.
"""

import time
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
from msgspec import Struct

from processor.core.growing_arrays import I64
from processor.view import listing
from processor.view.listing import AllTime, Listing, Standing
from processor.view.projects import ViewProject
from processor.view.query import CAP, DEFAULT_SORT, SORTS, Place, UserQuery, sorting_value, top
from processor.view.row_columns import Applied, Mask, RowColumns
from processor.view.running_sums import RunningSums

LARGE: Final = 20_000
"""Least users of a project whose default order is kept before it is asked for."""
KEPT: Final = 1_100
"""Users on a board after its bound was raised: more than fit on a page."""
MOST: Final = 4 * KEPT
"""Users on a board beyond which its bound is raised."""
UNASKED: Final = 600.0
"""Seconds without a query after which a board is dropped, except that of the default order."""

Group = tuple[int, int | None]
"""A project's number, and the day from which rows count; None: all rows."""

Order = tuple[Group, str]
"""A group, and the member of `RowSums` by which it is sorted."""


class Board(Struct, frozen=True):
    """The first users of a project in one order."""

    users: I64
    """Their numbers, ascending, not in the order of the board."""
    bound: Place | None
    """All other users are behind it; None: there are no others."""


class FirstPages:
    """The boards of all projects."""

    def __init__(self, columns: RowColumns) -> None:
        self._columns = columns
        self._boards: dict[Group, dict[str, Board]] = {}
        """Group -> member of `RowSums` -> board."""
        self._since: dict[Group, RunningSums] = {}
        self._changed: dict[Group, list[I64]] = {}
        """Group -> users that changed since the boards were settled."""
        self._asked: dict[Order, float] = {}
        self._wanted: set[Order] = set()

    def page(self, project: ViewProject, since: int | None, query: UserQuery) -> Listing | None:
        """Return a page of users, by their rows since a day or by all rows; None if the board may not contain it."""
        group = project.number, since
        order = group, query.sorted_by
        self._asked[order] = time.monotonic()
        board = self._boards.get(group, {}).get(query.sorted_by)
        if board is None:
            self._wanted.add(order)
            return None
        changed = self._changed.get(group)
        users = _distinct(board.users, *changed) if changed else board.users
        found = listing.page(self._columns, self._standing(group), query, users)
        if board.bound is None or (found.more and _place(found, query) <= _ordered(board.bound)):
            return found
        if query.after is None:  # too few are left
            self._wanted.add(order)
        return None

    def _standing(self, group: Group) -> Standing:
        home, since = group
        return AllTime(self._columns, self._columns.projects.by_number[home]) if since is None else self._since[group]

    def note(self, applied: Applied) -> None:
        """Note the rows that a batch has changed. 10 µs a project, and 0.5 µs a row where there is a board by day."""
        owners, homes = applied.owners, applied.homes
        first = int(homes[0])
        if (homes == first).all():
            self._note(first, owners)
        else:
            for home in np.unique(homes).tolist():
                self._note(home, owners[homes == home])
        if self._since:
            self._note_days(applied)

    def _note_days(self, applied: Applied) -> None:
        days = self._columns.projects.at_of(applied.dims)
        for group in list(self._since):
            home, since = group
            self._note_since(group, applied, (applied.homes == home) & (days >= (since or 0)))

    def _note(self, home: int, users: I64) -> None:
        boards = self._boards.get((home, None), {})
        if boards:
            self._changed.setdefault((home, None), []).append(users)
        default = SORTS[DEFAULT_SORT]
        if default not in boards and len(self._columns.projects.by_number[home].members) >= LARGE:
            self._wanted.add(((home, None), default))

    def _note_since(self, group: Group, applied: Applied, which: Mask) -> None:
        if self._columns.projects.by_number[group[0]].wide or (which & (applied.shrunk | (applied.came < 0))).any():
            self._drop(group)
        elif which.any():
            self._since[group].add(applied, which)
            self._changed.setdefault(group, []).append(applied.owners[which])

    def _drop(self, group: Group) -> None:
        for found in (self._boards, self._since, self._changed):
            found.pop(group, None)

    def settle(self, lock: AbstractContextManager[Any]) -> None:
        """Update the boards with what has changed, make those that were asked for, drop those that were not."""
        if self._changed or self._wanted or self._asked:
            self._update(lock)

    def _update(self, lock: AbstractContextManager[Any]) -> None:
        with lock:
            self._give_up(time.monotonic() - UNASKED)
            wanted, self._wanted = self._wanted, set()
        for group in {group for group, _ in wanted} - self._since.keys():
            self._add_up(group, lock)
        made = {order: self._best(*order) for order in wanted if order[0][1] is None or order[0] in self._since}
        for group, changed in self._changed.items():
            users = _distinct(*changed)
            for sorted_by, board in self._boards.get(group, {}).items():
                if (group, sorted_by) not in made:
                    made[group, sorted_by] = self._joined(group, sorted_by, board, users)
        with lock:
            for (group, sorted_by), board in made.items():
                self._boards.setdefault(group, {})[sorted_by] = board
            self._changed.clear()

    def _add_up(self, group: Group, lock: AbstractContextManager[Any]) -> None:
        home, first = group
        project = self._columns.projects.by_number[home]
        if first is not None and not project.wide:
            since = RunningSums(self._columns, project, first)
            with lock:
                self._since[group] = since

    def _give_up(self, before: float) -> None:
        for group, sorted_by in [order for order, at in self._asked.items() if at < before]:
            del self._asked[group, sorted_by]
            boards = self._boards.get(group, {})
            if group[1] is not None or sorted_by != SORTS[DEFAULT_SORT]:
                boards.pop(sorted_by, None)
            if not boards:
                self._drop(group)

    def _joined(self, group: Group, sorted_by: str, board: Board, changed: I64) -> Board:
        if board.bound is not None:
            changed = self._before(group, sorted_by, changed, board.bound)
        users = _distinct(board.users, changed)
        if len(users) <= MOST:
            return Board(users, board.bound)
        best = self._best(group, sorted_by, users)
        if board.bound is None or best.bound is None or _ordered(best.bound) <= _ordered(board.bound):
            return best
        return Board(
            self._before(group, sorted_by, users, board.bound), board.bound
        )  # many users have fallen behind the bound

    def _before(self, group: Group, sorted_by: str, users: I64, bound: Place) -> I64:
        """Return those of `users`, ascending, at or before the bound; if its value is huge, also some behind it."""
        value, name = bound
        least = min(value, CAP)
        keys = self._standing(group).keys(users, sorted_by)
        ties = users[keys == least]
        if least < CAP and len(ties):
            ties = np.setdiff1d(ties, self._columns.people.names.after(ties, name.encode()), assume_unique=True)
        return np.sort(np.concatenate((users[keys > least], ties)))

    def _best(self, group: Group, sorted_by: str, users: I64 | None = None) -> Board:
        """Return the board of the first of `users`, ascending (None: of all users, 30 ms for a million). Its bound is
        the last of them if there are more."""
        standing = self._standing(group)
        found = standing.among() if users is None else users
        if len(found) <= KEPT:
            return Board(found, None)
        keys = standing.keys(found, sorted_by)
        least = int(np.partition(keys, len(keys) - KEPT)[len(keys) - KEPT])
        chosen = found[keys >= least]
        if least < CAP and len(chosen) <= 2 * KEPT:  # ties need no comparison of names: all tied users are in
            return Board(chosen, (least - 1, ""))

        def exact(place: int) -> int:
            return sorting_value(sorted_by, standing.sums([int(found[place])])[0])

        names = self._columns.people.names
        places = top(keys, found, names, exact, None, KEPT)
        (name,) = names.get([int(found[places[-1]])])
        return Board(np.sort(found[places]), (exact(places[-1]), name.decode()))


def _distinct(*users: I64) -> I64:
    """Return the distinct numbers, ascending. Several times as fast as `np.unique`."""
    found = np.sort(np.concatenate(users))
    chosen: I64 = found[np.append(True, found[1:] != found[:-1])]
    return chosen


def _ordered(place: Place) -> tuple[int, bytes]:
    value, name = place
    return -value, name.encode()


def _place(page: Listing, query: UserQuery) -> tuple[int, bytes]:
    user, sums = page.users[-1]
    return _ordered((query.value_of(sums), user or ""))
