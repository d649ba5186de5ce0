"""The users of all projects of a view: their sums over all time, in columns, and the chains of their rows."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from processor.core.growing_arrays import I64, Records, Segments
from processor.core.hash_index import HashIndex, name_hashes
from processor.view.limbs import NO_FIRST, NO_LAST, SUMMED
from processor.view.names import Names
from processor.view.projects import ELSEWHERE, ViewProject

USER: Final = np.dtype(
    [
        *((name, "<i8") for name in SUMMED),
        ("first_seen", "<i8"),
        ("last_seen", "<i8"),
        ("head", "<i4"),  # the newest of the user's rows; -1: none
        ("rows", "<i4"),  # how many there are
        ("place", "<i4"),  # where the project's members have the user
        ("_", "<i4"),
    ]
)
_EMPTY: Final = np.array((*[0] * len(SUMMED), NO_FIRST, NO_LAST, -1, 0, 0, 0), USER)
_LOW, _HIGH = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class Users:
    """Users, each with a number; number `ELSEWHERE` is no user."""

    def __init__(self) -> None:
        self.records = Segments(_EMPTY)
        self.names = Names()
        """The users' ids; empty: the user of unattributed events."""
        self._index = HashIndex()
        self._add_new(np.array([ELSEWHERE]), [b""], _hashes(np.array([ELSEWHERE]), [None]), [ViewProject(ELSEWHERE)])

    def find(self, project: ViewProject, user_id: str | None) -> int | None:
        """Return the number of a user that has rows; None: there is none."""
        hashes = _hashes(np.array([project.number]), [user_id])
        (number,) = self._index.find(hashes).tolist()
        return number if number >= 0 and self.records.item("rows", number) else None

    def find_all(self, project: ViewProject, user_ids: Sequence[str | None]) -> I64:
        """Return the number of each user, also of one whose rows are deleted; -1: unknown."""
        homes = np.full(len(user_ids), project.number, np.int64)
        return self._index.find(_hashes(homes, user_ids))

    def number(self, homes: I64, users: Sequence[str | None], projects: Sequence[ViewProject]) -> I64:
        """Return the users' numbers; unknown users become members of their projects, whose numbers are `homes`."""
        hashes = _hashes(homes, users)
        found = self._index.find(hashes)
        unknown = np.flatnonzero(found < 0)
        if len(unknown):
            low, high = hashes["low"][unknown], hashes["high"][unknown]
            order = np.lexsort((high, low))  # copies of one user become neighbours
            low, high = low[order], high[order]
            is_first = np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1]))
            first = unknown[order][is_first]
            chosen = [(users[index] or "").encode() for index in first.tolist()]
            numbers = self._add_new(homes[first], chosen, hashes.take(first), projects)
            found[unknown[order]] = numbers[np.cumsum(is_first) - 1]
        return found

    def _add_new(self, homes: I64, names: list[bytes], hashes: Records, projects: Sequence[ViewProject]) -> I64:
        """Add distinct users that are not known yet; return their numbers."""
        numbers = self.records.extend(len(names))
        self._index.add(hashes)
        self.names.add(names)
        places = np.empty(len(names), np.int32)
        for home in np.unique(homes).tolist():
            which = np.flatnonzero(homes == home)
            members = projects[home].members
            places[which] = np.arange(len(members), len(members) + len(which))
            members.frombytes(numbers[which].astype(np.int32).tobytes())
        for part, at, which in self.records.split(numbers):
            part["place"][at] = places[which]
        return numbers

    def link(self, rows: I64, users: I64) -> I64:
        """Insert new rows at the heads of their users' chains; return the next row of each."""
        order = np.argsort(users, kind="stable")
        chained, owners = rows[order], users[order]
        after = self.records.column("head", owners).astype(np.int64)
        follows = owners[1:] == owners[:-1]
        after[1:][follows] = chained[:-1][follows]
        newest = np.append(~follows, True)
        for part, at, which in self.records.split(owners[newest]):
            part["head"][at] = chained[newest][which]
        found = np.empty_like(after)
        found[order] = after
        return found

    def add(self, users: I64, deltas: I64, new: Records) -> None:
        """Add changes of rows, shape (8, n), to their users. The times are those of the rows' `new` values and only
        widen the users'."""
        for part, at, which in self.records.split(users):
            for name, delta in zip(SUMMED, deltas, strict=True):
                np.add.at(part[name], at, delta[which])
            np.minimum.at(part["first_seen"], at, new["first_seen"][which])
            np.maximum.at(part["last_seen"], at, new["last_seen"][which])

    def count(self, users: I64, came: I64) -> tuple[I64, I64]:
        """Count new (1) and deleted (-1) rows of `users`: shape (n,) each. Return the indexes, into these, of users
        that got their first row or lost their last one, and 1 or -1 for each."""
        chosen, first, inverse = np.unique(users, return_index=True, return_inverse=True)
        changes = np.zeros(len(chosen), np.int64)
        np.add.at(changes, inverse, came)
        before = self.records.column("rows", chosen, ascending=True)
        for part, at, which in self.records.split(chosen):
            part["rows"][at] += changes[which].astype(np.int32)
        turned = (before + changes > 0).astype(np.int64) - (before > 0)
        which = np.flatnonzero(turned)
        return first[which], turned[which]

    def places_of(self, users: I64) -> I64:
        """Return the indexes of users among the members of their project."""
        return self.records.column("place", users).astype(np.int64)

    def see_again(self, user: int, rows: Records) -> None:
        """Set a user's times from all of its rows."""
        ((part, at, _),) = self.records.split(np.array([user]))
        part["first_seen"][at] = rows["first_seen"].min()
        part["last_seen"][at] = rows["last_seen"].max()


def _hashes(homes: I64, users: Sequence[str | None]) -> Records:
    """Return hashes of ids, which differ between projects."""
    found = name_hashes(users)
    spread = homes.astype(np.uint64)
    found["low"] ^= spread * _LOW
    found["high"] ^= spread * _HIGH
    return found
