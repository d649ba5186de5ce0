"""Of each large project, and of each order that is asked for, the few users among whom the first are.

A user's place changes only when a row of the user does. So once the first users are known, it is enough to look at
those who change: who comes to stand at the bound or before it joins them, and the bound is raised when they have become
many. All others stand behind it, and a page that ends at the bound or before it is found among the few: of a million
users some thousand are looked at, without a thread.

A sum that shrinks (retention) breaks nothing: who falls behind the bound stays in for a while, the bound is never
lowered, and when too few are left before it, the page is read from all users once and the board made anew.

The follower's thread, the only one in which columns change, calls `note` for each batch under the view's lock, and
`settle` for many of them without it; `page` is called under the lock, in any thread.
"""

import time
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
from msgspec import Struct

from processor.view.columns import Columns
from processor.view.projects import Project
from processor.view.segments import I64
from server import listing
from server.listing import Listing
from server.queries import DEFAULT_SORT, SORTS, Place, UserQuery
from server.ranking import CAP, top

LARGE: Final = 20_000
"""Users of a project from which on its default order is kept before anybody asks."""
KEPT: Final = 1_100
"""Users after the bound was raised: more than fit on a page."""
MOST: Final = 4 * KEPT
"""Users beyond which the bound is raised."""
UNASKED: Final = 600.0
"""Seconds after which an order that nobody asks for is kept no more, but for the default one."""

Order = tuple[int, int]
"""A project's number, and where a row's numbers have what its users are sorted by."""


class Board(Struct, frozen=True):
    """The first of a project's users in one order."""

    users: I64
    """Their numbers, ascending, in no order of places."""
    bound: Place | None
    """All other users stand behind it; None: there are no others."""


class Leaders:
    """The boards of all projects."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._boards: dict[int, dict[int, Board]] = {}
        """A project's number -> where rows have the value -> its board."""
        self._changed: dict[int, list[I64]] = {}
        """A project's number -> users that changed since its boards were settled."""
        self._asked: dict[Order, float] = {}
        self._wanted: set[Order] = set()

    def page(self, project: Project, query: UserQuery) -> Listing | None:
        """A page of the users over all time; None if it is not surely among the first."""
        order = project.number, query.column
        self._asked[order] = time.monotonic()
        board = self._boards.get(project.number, {}).get(query.column)
        if board is None:
            self._wanted.add(order)
            return None
        changed = self._changed.get(project.number)
        users = _distinct(board.users, *changed) if changed else board.users
        found = listing.among(self._columns, project, users, query)
        if board.bound is None or (found.more and _place(found, query) <= _ordered(board.bound)):
            return found
        if query.after is None:  # too few are left
            self._wanted.add(order)
        return None

    def note(self, users: I64, homes: I64) -> None:
        """Rows of these users have changed, of projects with these numbers: shape (n,) each. 10 µs for one project."""
        if not len(homes):
            return
        first = int(homes[0])
        if (homes == first).all():
            self._note(first, users)
        else:
            for home in np.unique(homes).tolist():
                self._note(home, users[homes == home])

    def _note(self, home: int, users: I64) -> None:
        if self._boards.get(home):
            self._changed.setdefault(home, []).append(users)
        elif len(self._columns.projects.by_number[home].members) >= LARGE:
            self._wanted.add((home, SORTS[DEFAULT_SORT]))

    def settle(self, lock: AbstractContextManager[Any]) -> None:
        """Bring the boards up to what has changed, make those that were missed, give up those that nobody asks for."""
        if not (self._changed or self._wanted or self._asked):
            return
        with lock:
            self._give_up(time.monotonic() - UNASKED)
            wanted, self._wanted = self._wanted, set()
        made = {(home, column): self._made(home, column) for home, column in wanted}
        for home, changed in self._changed.items():
            users = _distinct(*changed)
            for column, board in self._boards[home].items():
                if (home, column) not in made:
                    made[home, column] = self._joined(home, column, board, users)
        with lock:
            for (home, column), board in made.items():
                self._boards.setdefault(home, {})[column] = board
            self._changed.clear()

    def _give_up(self, since: float) -> None:
        for home, column in [order for order, at in self._asked.items() if at < since]:
            del self._asked[home, column]
            boards = self._boards.get(home, {})
            if column != SORTS[DEFAULT_SORT]:
                boards.pop(column, None)
            if not boards:
                self._changed.pop(home, None)

    def _made(self, home: int, column: int) -> Board:
        """A board out of all users of a project. 30 ms for a million."""
        project = self._columns.projects.by_number[home]
        return self._best(project, column, listing.present(self._columns, project))

    def _joined(self, home: int, column: int, board: Board, changed: I64) -> Board:
        project = self._columns.projects.by_number[home]
        if board.bound is not None:
            changed = self._before(project, column, changed, board.bound)
        users = _distinct(board.users, changed)
        if len(users) <= MOST:
            return Board(users, board.bound)
        best = self._best(project, column, users)
        if board.bound is None or best.bound is None or _ordered(best.bound) <= _ordered(board.bound):
            return best
        return Board(self._before(project, column, users, board.bound), board.bound)  # many have fallen behind it

    def _before(self, project: Project, column: int, users: I64, bound: Place) -> I64:
        """Those of `users`, ascending, at the bound or before it; if its value is huge, some behind it too."""
        value, name = bound
        least = min(value, CAP)
        keys = listing.keys_among(self._columns, project, users, column)
        ties = users[keys == least]
        if least < CAP and len(ties):
            ties = np.setdiff1d(ties, self._columns.people.names.after(ties, name.encode()), assume_unique=True)
        return np.sort(np.concatenate((users[keys > least], ties)))

    def _best(self, project: Project, column: int, users: I64) -> Board:
        """The first of `users`, ascending; bound by the last of them if there are more."""
        if len(users) <= KEPT:
            return Board(users, None)
        columns = self._columns
        keys = listing.keys_among(columns, project, users, column)
        least = int(np.partition(keys, len(keys) - KEPT)[len(keys) - KEPT])
        chosen = users[keys >= least]
        if least < CAP and len(chosen) <= 2 * KEPT:  # names need not be looked at: all that are tied are in
            return Board(chosen, (least - 1, ""))

        def exact(place: int) -> int:
            return columns.numbers_of(project, [int(users[place])])[0][column]

        names = columns.people.names
        places = top(keys, users, names, exact, None, KEPT)
        (name,) = names.get([int(users[places[-1]])])
        return Board(np.sort(users[places]), (exact(places[-1]), name.decode()))


def _distinct(*users: I64) -> I64:
    """All of them, ascending. Several times as quick as `np.unique`."""
    found = np.sort(np.concatenate(users))
    chosen: I64 = found[np.append(True, found[1:] != found[:-1])]
    return chosen


def _ordered(place: Place) -> tuple[int, bytes]:
    value, name = place
    return -value, name.encode()


def _place(page: Listing, query: UserQuery) -> tuple[int, bytes]:
    user, numbers = page.users[-1]
    return _ordered((numbers[query.column], user or ""))
