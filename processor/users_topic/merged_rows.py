"""Users' rows over all time, summed over the partitions, and which of them have changed.

They are made from the changelog that an API process's view reads, with the same sums. Each partial row replaces its own
earlier value, so reading a record again changes nothing. For one thread.
"""

from array import array
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np

from processor.core.growing_arrays import I64
from processor.users_topic.partitioner import key_of, partitions_of
from processor.users_topic.row_json import user_row
from processor.view.changelog_batch import Change, sort_out
from processor.view.projects import ELSEWHERE
from processor.view.row_columns import RowColumns

CHUNK: Final = 2048
"""Records of the changelog applied at a time."""

Row = tuple[bytes, bytes | None]
"""Key and value as in the topic; None: the user no longer exists."""


class MergedRows:
    """All users, each in one of `count` partitions of the topic, whichever partitions its events are in."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._columns = RowColumns()
        self._homes = array("i", [ELSEWHERE])
        """User -> project."""
        self._places = array("i", [-1])
        """User -> partition of the topic; none for `ELSEWHERE`."""
        self._names = [""]
        """Project -> name."""
        self._known = [0]
        """Project -> members that have a home and a place."""
        self._changed: list[I64] = []

    def __len__(self) -> int:
        """Users."""
        return len(self._columns.people.records) - 1

    # --- applying the changelog -------------------------------------------------------------------------------------

    def apply(self, partition: int, records: Sequence[Change]) -> None:
        """Apply records of one changelog partition, in the order of the log. Raises `ValueError` for a row of another
        format; then its chunk of `CHUNK` records and what follows has not been applied."""
        ours = b'[%d,"user",' % partition
        rows = [record for record in records if record[0].startswith(ours)]
        for start in range(0, len(rows), CHUNK):
            changes = sort_out(partition, rows[start : start + CHUNK])
            applied = self._columns.apply(partition, changes)
            if applied is not None:
                self._changed.append(applied.owners)
        if len(self._changed) > CHUNK:
            self._changed = [np.unique(np.concatenate(self._changed))]

    def _place_new(self) -> None:
        """Find the project and the partition of new users."""
        projects = self._columns.projects
        missing = len(self._columns.people.records) - len(self._homes)
        if not missing:
            return
        if len(self._names) < len(projects.by_number):
            self._names = ["", *projects.by_name]  # projects are numbered in this order, from 1
            self._known += [0] * (len(self._names) - len(self._known))
        self._homes.extend([ELSEWHERE] * missing)
        self._places.extend([-1] * missing)
        homes, places = np.frombuffer(self._homes, np.int32), np.frombuffer(self._places, np.int32)
        for name, project in projects.by_name.items():
            fresh = np.array(project.members[self._known[project.number] :], np.int64)
            if len(fresh):
                self._known[project.number] += len(fresh)
                homes[fresh] = project.number
                places[fresh] = partitions_of(self._keys(name, fresh), self._count)

    def _keys(self, project: str, users: I64) -> list[bytes]:
        return [key_of(project, name.decode() or None) for name in self._columns.people.names.get(users.tolist())]

    # --- what to publish --------------------------------------------------------------------------------------------

    def drain(self, partitions: Collection[int]) -> dict[int, list[Row]]:
        """Return the rows of these partitions that have changed since the last call, as they are now; forget the
        changes of all others."""
        if not self._changed:
            return {}
        changed, self._changed = np.unique(np.concatenate(self._changed)), []
        self._place_new()
        places = np.frombuffer(self._places, np.int32)[changed]
        return {number: rows for number in partitions if (rows := self._rows(changed[places == number]))}

    def everything(self, partition: int) -> Iterator[list[Row]]:
        """Yield all rows of a partition of the topic, in parts. Nothing may be applied meanwhile."""
        self._place_new()
        users = np.flatnonzero(np.frombuffer(self._places, np.int32) == partition)
        for start in range(0, len(users), CHUNK):
            yield self._rows(users[start : start + CHUNK])

    def _rows(self, users: I64) -> list[Row]:
        """Return the rows of users, grouped by project."""
        rows: list[Row] = []
        people, projects = self._columns.people, self._columns.projects
        homes = np.frombuffer(self._homes, np.int32)[users]
        for home in np.unique(homes).tolist():
            members = users[homes == home]
            name, project = self._names[home], projects.by_number[home]
            lives = people.records.column("rows", members).tolist()
            said = self._columns.sums_of(project, members.tolist())
            for user, alive, sums in zip(people.names.get(members.tolist()), lives, said, strict=True):
                user_id = user.decode() or None
                rows.append((key_of(name, user_id), user_row(name, user_id, sums) if alive else None))
        return rows
