"""The tables as a front end sees them: fed with changelog records by a follower thread, read by queries in others.

Rows in the changelog are partial, one partition's share each (processor/core/tables.py); the view adds them up, and
finds a row by its raw key, so that a key is decoded once.
"""

import time
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from processor.core import tables
from processor.core.clock import Kind
from processor.core.tables import NEVER, Scope
from server.partials import Charged, Dim, HourPartial, Month, Project, Row, User, Window, decode

CHUNK: Final = 256
"""Records applied in one hold of the lock."""


class _Progress(Struct, gc=False, eq=False):
    """How far a partition has been applied; its last record comes after everything it stands for."""

    view: "View"
    partition: int

    def take(self, value: bytes) -> None:
        offset, watermark = decode(value)
        self.view.watermarks[self.partition] = watermark
        self.view.position[self.partition] = offset

    def drop(self) -> None:
        raise ValueError(f"the progress of partition {self.partition} was deleted")


class AllTime(NamedTuple):
    """A project's users at one instant, in no order, and the totals over them."""

    users: list[User]
    totals: tuple[int, ...]
    """requests, errors, input, output and cached tokens, cost, unpriced."""


class View:
    """All tables, added up over the partitions. One thread applies; any thread may read at any time."""

    def __init__(self) -> None:
        self.position: dict[int, int] = {}
        """partition -> the last source offset the view contains. Rows of later ones may be in it already."""
        self.watermarks: dict[int, int] = {}
        self.as_of = 0
        """When the view was last known to hold all that was in the changelog, in microseconds; 0: never yet."""
        self._rows: dict[bytes, Row] = {}
        self._projects: dict[str, Project] = {}
        self._months: dict[tuple[str, int], Charged] = {}
        self._partitions: set[int] = set()
        self._lock = Lock()
        self._gate = Lock()  # a reader waits inside of it, so the next chunk cannot be faster than the reader

    def __len__(self) -> int:
        return len(self._rows)

    # --- the follower -----------------------------------------------------------------------------------------------

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Take in records of one changelog partition, (key, value) in the order of the log; None is a tombstone.

        A record replaces the earlier one of its key. Raises `ValueError` for a record of another format, which is not
        applied, nor what follows it.
        """
        rows = self._rows
        try:
            for start in range(0, len(records), CHUNK):
                with self._gate:
                    self._lock.acquire()
                try:
                    for key, value in records[start : start + CHUNK]:
                        row = rows.get(key)
                        if row is None:
                            if value is not None:
                                rows[key] = self._add(partition, key, value)
                        elif value is None:
                            row.drop()
                            del rows[key]
                        else:
                            row.take(value)
                finally:
                    self._lock.release()
                time.sleep(0)
        except (msgspec.MsgspecError, TypeError, IndexError) as error:  # the last two: a key of another shape
            raise ValueError(f"not a row of the changelog: {error}") from None

    def _add(self, partition: int, key: bytes, value: bytes) -> Row:
        home, kind, parts = tables.decode_key(key)
        if home != partition:
            raise ValueError(f"a row of partition {home} in partition {partition}: {key[:80]!r}")
        self._partitions.add(partition)
        row: Row
        if kind == "user":
            row = self._project(parts[0]).add_user_row(value, *parts[1:])
        elif kind == "hour":
            row = self._project(parts[0]).add_hour_row(value, *parts[1:])
        elif kind == "window":
            row = self._new_window(value, *parts)
        elif kind == "progress":
            row = _Progress(self, partition)
            row.take(value)
        else:
            raise ValueError(f"unknown kind of row: {key[:80]!r}")
        return row

    def _project(self, name: str) -> Project:
        project = self._projects.get(name)
        if project is None:
            project = self._projects[name] = Project()
        return project

    def _new_window(self, value: bytes, scope: str, owner: str, kind: str, start: int) -> Row:
        if (scope, kind) != ("org", "month"):
            return Window(value)
        total = self._months.get((owner, start))
        if total is None:
            total = self._months[owner, start] = Charged()
        total.add(value)
        return Month(total, value)

    def mark_current(self, at: int) -> None:
        """The view holds all that was in the changelog at the instant `at` (microseconds)."""
        self.as_of = max(self.as_of, at)

    # --- queries ----------------------------------------------------------------------------------------------------

    def contains(self, position: Mapping[int, int]) -> bool:
        """True once all messages up to `position` (partition -> offset) are in the tables."""
        held = self.position
        return all(held.get(partition, NEVER) >= offset for partition, offset in position.items())

    def all_time(self, project: str) -> AllTime:
        """The project's users over all time: totals and users agree. 5 ms for a million users."""
        with self._gate, self._lock:
            found = self._projects.get(project)
            return AllTime(list(found.users.values()), found.totals()) if found else AllTime([], (0,) * 7)

    def user(self, project: str, user_id: str | None) -> User | None:
        """One user over all time; None is the user of the events without one."""
        found = self._projects.get(project)
        return found.users.get(user_id) if found else None

    def dims(self, project: str) -> list[Dim]:
        """All kinds of rows the project has. Copy their `rows` before going through them."""
        with self._gate, self._lock:
            found = self._projects.get(project)
            return list(found.dims.values()) if found else []

    def hours(self, project: str) -> list[tuple[int, list[HourPartial]]]:
        """The project's hours (since the epoch), in no order, and their rows; copy those before going through them."""
        with self._gate, self._lock:
            found = self._projects.get(project)
            return list(found.hours.items()) if found else []

    def charged(self, organization: str, month: int) -> Charged:
        """What an organisation's month (its start) counted so far: the live count, to be read at once. Never waits."""
        return self._months.get((organization, month)) or Charged()

    def window(self, scope: Scope, owner: str, kind: Kind, start: int) -> Charged:
        """What one window counted. One so old that it is no longer kept counted nothing."""
        total = Charged()
        with self._gate, self._lock:
            for partition in self._partitions:
                if tables.is_expired(kind, start, self.watermarks.get(partition, 0)):
                    continue
                row = self._rows.get(tables.encode_key(partition, "window", scope, owner, kind, start))
                if isinstance(row, Window | Month):
                    total.add(row.value)
        return total
