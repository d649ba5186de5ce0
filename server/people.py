"""The users of all projects of a view: their sums over all time, in columns, and the chains of their rows."""

from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np

from server.hash_index import HashIndex, hashes_of
from server.names import Names
from server.projects import ELSEWHERE, Project
from server.segments import I64, Records, Segments
from server.sums import NO_FIRST, NO_LAST, SUMMED

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
_EMPTY: Final = np.array((*[0] * 8, NO_FIRST, NO_LAST, -1, 0, 0, 0), USER)
_LOW, _HIGH = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class People:
    """Users, each with a number; number `ELSEWHERE` is no user."""

    def __init__(self) -> None:
        self.records = Segments(_EMPTY)
        self.names = Names()
        """The users' ids; empty: the user of the events without one."""
        self._index = HashIndex()
        self._welcome([(Project(ELSEWHERE), None)])

    def find(self, project: Project, user_id: str | None) -> int | None:
        """The number of a user that has rows."""
        (number,) = self._index.find(_hashes(np.array([project.number]), [user_id])).tolist()
        return number if number >= 0 and self.records.item("rows", number) else None

    def number(self, homes: I64, users: Sequence[str | None], projects: Sequence[Project]) -> I64:
        """The users' numbers; unknown ones become members of their projects, whose numbers are `homes`."""
        found = self._index.find(_hashes(homes, users))
        unknown = np.flatnonzero(found < 0)
        if len(unknown):
            wanted = [users[index] for index in unknown.tolist()]
            pairs = list(zip(homes[unknown].tolist(), wanted, strict=True))
            new = list(dict.fromkeys(pairs))
            numbers = self._welcome([(projects[home], user) for home, user in new])
            found[unknown] = list(map(dict(zip(new, numbers, strict=True)).__getitem__, pairs))
        return found

    def _welcome(self, new: Sequence[tuple[Project, str | None]]) -> list[int]:
        """Number users that are not known yet, no two the same."""
        homes = np.array([project.number for project, _ in new])
        numbers = self.records.extend(len(new))
        self._index.add(_hashes(homes, [user for _, user in new]))
        self.names.add([(user or "").encode() for _, user in new])
        places = array("i")
        for number, (project, _) in zip(numbers.tolist(), new, strict=True):
            places.append(len(project.members))
            project.members.append(number)
        for part, at, which in self.records.split(numbers):
            part["place"][at] = np.frombuffer(places, np.int32)[which]
        found: list[int] = numbers.tolist()
        return found

    def link(self, rows: I64, users: I64) -> I64:
        """Put new rows before the heads of their users' chains; returns what comes after each of them."""
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

    def add(self, users: I64, deltas: I64, came: I64, new: Records) -> None:
        """Add changes of rows, shape (8, n), to their users; `came` is 1 for a row that was not there, -1 for one that
        has gone. Times are those of the rows' `new` values; none ever moves back."""
        for part, at, which in self.records.split(users):
            for name, delta in zip(SUMMED, deltas, strict=True):
                np.add.at(part[name], at, delta[which])
            np.add.at(part["rows"], at, came[which])
            np.minimum.at(part["first_seen"], at, new["first_seen"][which])
            np.maximum.at(part["last_seen"], at, new["last_seen"][which])

    def see_again(self, user: int, rows: Records) -> None:
        """Take a user's times from all of its rows."""
        ((part, at, _),) = self.records.split(np.array([user]))
        part["first_seen"][at] = rows["first_seen"].min()
        part["last_seen"][at] = rows["last_seen"].max()


def _hashes(homes: I64, users: Sequence[str | None]) -> Records:
    """Hashes of ids, different in each project."""
    found = hashes_of(users, [(user or "").encode() for user in users])
    spread = homes.astype(np.uint64)
    found["low"] ^= spread * _LOW
    found["high"] ^= spread * _HIGH
    return found
