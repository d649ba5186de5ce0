"""What a feed asks of the columns: who changed since a position, and users in an order that all processes share.

All of it is read under one of the view's locks, which the caller holds, but for `changed`, which takes it by pieces.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from processor.core.tables.row_sums import RowSums
from processor.view.listing import PIECE, AllTime
from processor.view.projects import Project
from processor.view.recent_changes import RecentChanges
from processor.view.row_columns import RowColumns


def changed(
    columns: RowColumns,
    trail: RecentChanges,
    project: Project,
    since: Mapping[int, int],
    hold: Callable[[], AbstractContextManager[Any]],
) -> list[int]:
    """The users with a row whose last message lies beyond `since`. `hold` keeps the view still, a `PIECE` at a time.

    A row that changes meanwhile may be missed: then its last message lies beyond what the view contained before, and
    the next look, from there, finds it.
    """
    with hold():
        rows = np.concatenate([np.empty(0, np.int32), *(np.array(dim.rows, np.int32) for dim in project.dims.values())])
    found = [np.empty(0, np.int32)]
    for start in range(0, len(rows), PIECE):
        with hold():
            beyond = trail.beyond(rows[start : start + PIECE].astype(np.int64), since)
            found.append(np.unique(columns.rows.column("owner", beyond)))
    users: list[int] = np.unique(np.concatenate(found)).tolist()
    return users


def changed_among(
    columns: RowColumns, trail: RecentChanges, users: Iterable[int], since: Mapping[int, int]
) -> list[int]:
    """The same among a few users."""
    return [user for user in users if len(trail.beyond(np.array(columns.rows_of(user), np.int64), since))]


def people(columns: RowColumns, project: Project, users: Sequence[int]) -> list[tuple[str | None, RowSums]]:
    """Ids and sums of users; one that has no rows any more has zeros."""
    ids = (name.decode() or None for name in columns.people.names.get(users))
    return list(zip(ids, columns.sums_of(project, users), strict=True))


def next_people(columns: RowColumns, project: Project, after: str | None, count: int) -> list[tuple[int, str]]:
    """Numbers and ids of the first `count` users behind `after` by their ids. 10 ms for a million users."""
    names = columns.people.names
    members = AllTime(columns, project).among()
    if after is not None:
        members = names.after(members, after.encode())
    if len(members) > count:
        members = names.first(members, count)
    numbered = members.tolist()
    pairs = sorted(zip(names.get(numbered), numbered, strict=True))
    return [(number, name.decode()) for name, number in pairs]
