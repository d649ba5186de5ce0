"""All rows of users and hours of a view, in columns, with the users' and the projects' sums over all time.

A row costs about 115 bytes: its record of 72, and its entries in the index and in its dimension. A user costs 210. Rows
and users are not Python objects. Nothing here locks; `view.View` does.
"""

from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from processor.core import growing_arrays
from processor.core.growing_arrays import I64, Records, Segments
from processor.core.hash_index import HashIndex
from processor.core.kernel.loaded import kernel
from processor.core.tables.row_block import key_hashes
from processor.core.tables.row_dtype import record
from processor.core.tables.row_sums import RowSums
from processor.core.tables.table_rows import HourPlace
from processor.core.tables.user_places import UserPlaces
from processor.view.changelog_batch import ChangelogBatch, Wide, places
from processor.view.limbs import NO_FIRST, NO_LAST, SUMMED, row_sums, split
from processor.view.projects import ELSEWHERE, Projects, ViewProject
from processor.view.recent_changes import RecentChanges
from processor.view.users import Users

ROW: Final = record(
    ("dim", "<i4"),  # its number; its complement while there is no such row
    ("owner", "<i4"),  # the user's number
    ("next", "<i4"),  # another row of the user; -1: none
)
"""A row: `row_dtype.DTYPE` with other fields in place of its mark and its offset."""
_EMPTY: Final = np.zeros((), ROW)
_EMPTY["dim"], _EMPTY["owner"], _EMPTY["next"] = -1, ELSEWHERE, -1
_EMPTY["first_seen"], _EMPTY["last_seen"] = NO_FIRST, NO_LAST

_NOT_WIDE: Final = (None, None, None)

Mask = NDArray[np.bool_]


class Applied(NamedTuple):
    """What a batch has changed. All have shape (n,), except `deltas`."""

    owners: I64
    """The users of its rows."""
    dims: I64
    homes: I64
    """Their projects."""
    deltas: I64
    """What is added to their sums: shape (8, n), in the order of `SUMMED`."""
    came: I64
    """1 for a new row, -1 for a deleted one."""
    rows: Records
    """The new values."""
    shrunk: Mask
    """True where a row's times may have become narrower."""


class RowColumns:
    """Rows, users and projects, each with a number."""

    def __init__(self, trail: RecentChanges | None = None, seed: int = 0) -> None:
        """With a `trail`, every change is noted there. `seed` is that of the rows' hashes (`row_block.key_hashes`)."""
        self.trail = trail
        self._seed = seed
        self.rows = Segments(_EMPTY)
        self.people = Users()
        self.projects = Projects()
        self.live = 0
        """The number of rows that are not deleted."""
        self._index = HashIndex()
        self._wide: dict[int, tuple[ViewProject, int, RowSums]] = {}

    # --- reading ----------------------------------------------------------------------------------------------------

    def has(self, keys: Sequence[bytes]) -> Mask:
        """Return which of these keys have a row, possibly a deleted one."""
        found: Mask = self._index.find(key_hashes(keys, self._seed)) >= 0
        return found

    def rows_of(self, user: int) -> list[int]:
        """Return the numbers of a user's rows, including deleted ones."""
        found = []
        row = self.people.records.item("head", user)
        while row >= 0:
            found.append(row)
            row = self.rows.item("next", row)
        return found

    def wide(self, row: int) -> RowSums | None:
        """Return the sums of a wide row, whose columns are zeros; None: the row is not wide."""
        _, _, sums = self._wide.get(row, _NOT_WIDE)
        return sums

    def wide_among(self, rows: I64, at: I64) -> Iterator[tuple[int, int]]:
        """Return the wide ones of `rows`, each with its entry in `at`."""
        if self._wide:
            for row, place in zip(rows.tolist(), at.tolist(), strict=True):
                if row in self._wide:
                    yield row, place

    def sums_of(self, project: ViewProject, users: Iterable[int]) -> list[RowSums]:
        """Return users' sums over all time."""
        chosen = list(users)
        found = []
        for user, said in zip(chosen, self.people.records.take(np.array(chosen, np.int64)).tolist(), strict=True):
            first, last, *_ = said[len(SUMMED) :]  # `users.USER` in its order
            total = row_sums(said[: len(SUMMED)], first, last)
            for more in project.wide.get(user, {}).values():
                total = total.merge(more)
            found.append(total)
        return found

    # --- applying changes -------------------------------------------------------------------------------------------

    def apply(self, partition: int, changes: ChangelogBatch, next_offset: int = 0) -> Applied | None:
        """Take in the rows of a batch, at least one; None if that changed nothing. Raises `ValueError` for a key of
        another format; then nothing has changed. A row that goes is noted as a change by the message `next_offset`: no
        row says by which."""
        offsets: I64 = changes.rows["offset"].astype(np.int64)  # a copy: of the last message applied to each row
        for index, more in changes.wide.items():
            offsets[index] = more.offset
        offsets[changes.gone] = next_offset
        hashes = changes.hashes
        rows = self._index.find(hashes)
        is_gone = np.zeros(len(rows), np.bool_)
        is_gone[changes.gone] = True
        fresh = np.flatnonzero((rows < 0) & ~is_gone)
        if len(fresh):
            keys = list(changes.keys)
            found = places(partition, [keys[index] for index in fresh.tolist()])
            rows[fresh] = self._add(*found, hashes.take(fresh))
        values, wide = changes.rows, changes.wide
        if changes.gone:
            known = np.flatnonzero(rows >= 0)  # a tombstone of an unknown row changes nothing
            moved = {old: new for new, old in enumerate(known.tolist())}
            wide = {moved[index]: more for index, more in wide.items()}
            rows, values, is_gone, offsets = rows[known], values.take(known), is_gone[known], offsets[known]
        if not len(rows):
            return None
        applied = self._replace(rows, values, is_gone)
        if wide or self._wide:
            self._replace_wide(rows, wide)
        if self.trail is not None:
            self.trail.note(partition, rows, offsets, applied.owners, applied.homes)
        return applied

    def _replace(self, rows: I64, values: Records, is_gone: Mask) -> Applied:
        """Replace distinct rows. The compiled kernel does one after the other, where it runs and none is deleted."""
        if kernel is not None and not is_gone.any():
            applied = self._swapped_by_kernel(kernel, rows, values)
        else:
            applied = self._swapped(rows, values, is_gone)
        owners, homes, came, shrunk = applied.owners, applied.homes, applied.came, applied.shrunk
        self.projects.add(homes, applied.deltas)
        moved = np.flatnonzero(came)
        if len(moved):
            self._count_moved(owners[moved], homes[moved], came[moved])
        if shrunk.any():  # less than before: not by this program
            for user in set(owners[shrunk].tolist()) - {ELSEWHERE}:
                self.people.see_again(user, self.rows.take(np.array(self.rows_of(user))))
        return applied

    def _count_moved(self, owners: I64, homes: I64, came: I64) -> None:
        """Count rows that came (1) or went (-1), and the users that have their first or last one so."""
        self.live += int(came.sum())
        which, turned = self.people.count(owners, came)
        self.projects.count(homes[which], turned)

    def _swapped(self, rows: I64, values: Records, is_gone: Mask) -> Applied:
        """Replace the records of rows, and add what that changes to their users."""
        old = self.rows.take(rows)
        new = values.view(ROW)
        was = old["dim"] >= 0
        dims = np.where(was, old["dim"], ~old["dim"])
        new["dim"] = np.where(is_gone, ~dims, dims)
        new["owner"], new["next"] = old["owner"], old["next"]
        empty = new["requests"] == 0  # its times are not valid
        if empty.any():
            new["first_seen"][empty] = NO_FIRST
            new["last_seen"][empty] = NO_LAST
        self.rows.put(rows, new)
        deltas = split(new) - split(old)
        owners = new["owner"].astype(np.int64)
        self.people.add(owners, deltas, new)
        came = (~is_gone).astype(np.int64) - was
        shrunk = (new["first_seen"] > old["first_seen"]) | (new["last_seen"] < old["last_seen"])
        return Applied(owners, dims, self.projects.homes_of(dims), deltas, came, new, shrunk)

    def _swapped_by_kernel(self, chosen: ModuleType, rows: I64, values: Records) -> Applied:
        kept, people = self.rows.parts, self.people.records.parts
        found = chosen.replace_rows(kept, people, growing_arrays.BITS, rows, values, NO_FIRST, NO_LAST)
        owners, dims, came = (np.frombuffer(each, np.int64) for each in found[:3])
        shrunk, deltas = np.frombuffer(found[3], np.bool_), np.frombuffer(found[4], np.int64).reshape(-1, len(rows))
        return Applied(owners, dims, self.projects.homes_of(dims), deltas, came, values.view(ROW), shrunk)

    def _replace_wide(self, rows: I64, wide: dict[int, Wide]) -> None:
        numbered = rows.tolist()
        for row in self._wide.keys() & set(numbered):
            project, user, _ = self._wide.pop(row)
            project.drop_wide(user, row)
        for index, more in wide.items():
            row = numbered[index]
            project, user = self.projects.home_of(self.rows.item("dim", row)), self.rows.item("owner", row)
            self._wide[row] = project, user, more.sums
            project.add_wide(user, row, more.sums)

    def _add(self, users: UserPlaces, hours: list[HourPlace], of_hours: list[int], hashes: Records) -> I64:
        """Make new rows, marked as deleted for now; `of_hours` are those of hours. Return their numbers."""
        rows = self.rows.extend(len(hashes))
        if self.trail is not None:
            self.trail.marks.extend(len(hashes))
        self._index.add(hashes)
        fresh = np.repeat(_EMPTY[None], len(rows))
        which: Any = slice(None)
        if hours:
            fresh["dim"][of_hours] = ~self.projects.place_hours(rows[of_hours], hours)
            which = np.delete(np.arange(len(rows)), of_hours)
        if users.users:
            dims, homes = self.projects.place_users(rows[which], users.groups, users.codes)
            owners = self.people.number(homes, users.users, self.projects.by_number)
            fresh["dim"][which] = ~dims
            fresh["owner"][which] = owners
            fresh["next"][which] = self.people.link(rows[which], owners)
        self.rows.put(rows, fresh)
        return rows
