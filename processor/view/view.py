"""The tables as an API process sees them: fed with changelog records by a follower thread, read by queries in others.

Rows in the changelog are partial, one partition's share each (processor/core/tables/table_rows.py); the view adds them
up. Rows of users and hours are kept in columns (`columns`) and change a batch at a time.

Two locks keep the view still. `_lock` is held for the milliseconds in which a batch is applied: small reads take it, in
an event loop too. `_freeze` is held by the follower around that: a large read, in a thread, takes it for as long as it
looks at a million users, and nobody waits for it but the follower and other large reads.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Final

from processor.core.believed_time import MAX_STEP
from processor.core.clock import Kind
from processor.core.events.ndjson import Part
from processor.core.growing_arrays import I64
from processor.core.tables import row_block, table_rows
from processor.core.tables.row_block import RowBlock
from processor.core.tables.row_sums import RowSums
from processor.core.tables.table_rows import NEVER, Scope
from processor.view import changed_users, listing
from processor.view.changelog_batch import Change, ChangelogBatch, changes_of, sort_out
from processor.view.first_pages import LARGE, FirstPages
from processor.view.keyed_rows import Charged, Latencies, Windows
from processor.view.listing import NOTHING, AllTime, Hour, Listing, UserSums
from processor.view.projects import Dim, DimValues
from processor.view.query import Range, UserQuery
from processor.view.recent_changes import RecentChanges, changed_between
from processor.view.row_columns import RowColumns

CHUNK: Final = 2048
"""Records applied in one hold of the lock: one or two milliseconds, more if all rows are new."""

UserRow = tuple[str | None, int, str, str, str]
"""What a project's row of a user is kept by: user, day since the epoch, provider, model, environment."""

HourRow = tuple[int, str, str, str]
"""The same of an hour: hour since the epoch, provider, model, environment."""

_NO_VALUES: Final = DimValues()

SMALL: Final = 2_000
"""Rows or users that a read may look at in an event loop."""


class TakingTurns:
    """A lock for a `with` statement. Who waits for it gets it next, before one that lets go and asks again at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._turn = Lock()

    def __enter__(self) -> None:
        with self._turn:
            self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()


class View:
    """All tables, added up over the partitions. One thread applies; any thread may read at any time."""

    def __init__(self, seed: int = 0) -> None:
        """`seed`: of the hashes that blocks of rows have in the log that is followed (`row_block.seed_of`)."""
        self._seed = seed
        self.position: dict[int, int] = {}
        """partition -> the last source offset the view contains. Rows of later ones may be in it already."""
        self.horizons: dict[int, int] = {}
        """partition -> up to where its windows may be gone (`processor.core.tables.horizon`)."""
        self._events: dict[int, int] = {}
        """partition -> unique events in its rows of users, as its progress says."""
        self.as_of = 0
        """When the view was last known to hold all that was in the changelog, in microseconds; 0: never yet."""
        self._batches = 0
        self._whole = 0
        self._trail = RecentChanges()
        self._columns = RowColumns(self._trail, seed)
        self._leaders = FirstPages(self._columns)
        self._windows = Windows()
        self._latencies = Latencies()
        self._partitions: set[int] = set()
        self._lock = TakingTurns()
        self._freeze = TakingTurns()

    def __len__(self) -> int:
        """Rows of all kinds."""
        return self._columns.live + len(self._windows) + len(self._latencies) + len(self.position)

    # --- the follower -----------------------------------------------------------------------------------------------

    def apply(self, partition: int, records: Sequence[Change]) -> None:
        """Take in records of one changelog partition, (key, value) in the order of the log; None is a tombstone.

        A record replaces the earlier one of its key. Raises `ValueError` for a record of another format; then nothing
        of its chunk has been applied, nor what follows it.
        """
        self._batches += 1
        blocks = row_block.key_of(partition)
        start = 0
        for place in [place for place, (key, value) in enumerate(records) if key == blocks and value is not None]:
            self._apply_singles(partition, records[start:place])
            block = row_block.decode(records[place][1] or b"")
            self.apply_block(partition, block)
            start = place + 1
        self._apply_singles(partition, records[start:])

    def _apply_singles(self, partition: int, records: Sequence[Change]) -> None:
        for start in range(0, len(records), CHUNK):
            self._apply_batch(partition, sort_out(partition, records[start : start + CHUNK], self._seed))

    def apply_block(self, partition: int, block: RowBlock) -> None:
        """Take in a block of rows, as `apply` does; its values are written over."""
        for start in range(0, len(block), CHUNK):
            piece = slice(start, start + CHUNK)
            keys = block.keys if len(block) <= CHUNK else Part(block.keys, start, CHUNK)
            self._apply_batch(partition, changes_of(keys, block.hashes[piece], block.values[piece]))

    def _apply_batch(self, partition: int, changes: ChangelogBatch) -> None:
        with self._freeze, self._lock:
            if changes.keys:
                applied = self._columns.apply(partition, changes, self.position.get(partition, NEVER) + 1)
                if applied is not None:
                    self._leaders.note(applied)
            self._partitions.add(partition)
            for key, parts, value in changes.windows:
                self._windows.replace(key, parts, value)
            for place, value in changes.latencies:
                self._latencies.replace(place, value)
            if changes.progress is not None:  # last: it stands for what was applied before
                self._events[partition] = changes.progress.events
                self.position[partition] = changes.progress.offset
            if changes.horizon:
                self.horizons[partition] = changes.horizon
        time.sleep(0)

    def tidy(self) -> None:
        """What is left to do when batches have been applied; in the thread that applies them."""
        self._leaders.settle(self._lock)

    def mark_current(self, at: int) -> None:
        """The view holds all that was in the changelog at the instant `at` (microseconds).

        `as_of` does not go back, unless the clock has: it would stand still until the time that was wrong comes.
        """
        if at > self.as_of or self.as_of - at > MAX_STEP:
            self.as_of = at
        self._whole = self._batches

    # --- reading ----------------------------------------------------------------------------------------------------

    def contains(self, position: Mapping[int, int]) -> bool:
        """True once all messages up to `position` (partition -> offset) are in the tables."""
        held = self.position
        return all(held.get(partition, NEVER) >= offset for partition, offset in position.items())

    def _hold(self, size: int) -> TakingTurns:
        return self._lock if size <= SMALL else self._freeze

    def members(self, project: str) -> int:
        """How many users a project has. Never waits."""
        found = self._columns.projects.by_name.get(project)
        return len(found.members) if found else 0

    def all_time(self, query: UserQuery) -> Listing:
        """The project's users over all time: totals and users agree. Belongs in a thread above `SMALL` users."""
        columns = self._columns
        project = columns.projects.by_name.get(query.project)
        if project is None:
            return NOTHING
        if query.unattributed:
            with self._lock:
                return listing.nobody(columns, project, query, columns.people.find(project, None))
        with self._hold(len(project.members)):
            return listing.page(columns, AllTime(columns, project), query)

    def first(self, query: UserQuery, month: int) -> Listing | None:
        """A page over all time or from the day `month` on, if it is among the first of a large project as the follower
        keeps them; never in a thread. None: look for it with `all_time` or `filtered`."""
        project = self._columns.projects.by_name.get(query.project)
        if project is None or query.unattributed or query.model is not None or query.environment is not None:
            return None
        if query.days.is_all_time:
            if len(project.members) <= SMALL:
                return None
        elif not query.days.is_since(month, project.newest) or len(project.members) < LARGE:
            return None
        with self._lock:
            return self._leaders.page(project, query.days.start, query)

    def dims(self, project: str) -> list[Dim]:
        """All kinds of rows of users the project has. Never waits."""
        found = self._columns.projects.by_name.get(project)
        return list(found.dims.values()) if found else []

    def dim_values(self, project: str) -> DimValues:
        """The days, models and environments that a project has. Never waits."""
        found = self._columns.projects.by_name.get(project)
        return found.values if found else _NO_VALUES

    def rows_of_all_kinds(self, project: str) -> int:
        """Rows of users, hours and latencies that a project has, over all partitions. Never waits."""
        found = self._columns.projects.by_name.get(project)
        return found.rows + self._latencies.count(project) if found else 0

    def has_users_rows(self, project: str, rows: Sequence[UserRow]) -> list[bool]:
        """Which of these rows there are, in any partition.

        A partition's share of a row has a key of its own. To look for each in every partition would cost rows times
        partitions, so a row of an unknown user or of an unknown kind is not looked for at all, and a row that is found
        is not looked for again: one in use has shares in most partitions.
        """
        home = self._columns.projects.by_name.get(project)
        if home is None or not rows:
            return [False] * len(rows)
        users = list(dict.fromkeys(row[0] for row in rows))
        with self._lock:
            numbers = self._columns.people.find_all(home, users).tolist()
        known = {user for user, number in zip(users, numbers, strict=True) if number >= 0}
        waiting = [place for place, row in enumerate(rows) if row[0] in known and row[1:] in home.dims]
        found = [False] * len(rows)
        partitions = sorted(self._partitions)
        start, count = 0, 1
        while waiting and start < len(partitions):
            asked = [
                table_rows.encode_key(partition, "user", project, *rows[place])
                for partition in partitions[start : start + count]
                for place in waiting
            ]
            with self._lock:
                there = self._columns.has(asked).reshape(-1, len(waiting))
            for place, shares in zip(waiting, there.T.tolist(), strict=True):
                found[place] = any(shares)
            waiting = [place for place in waiting if not found[place]]
            start, count = start + count, 2 * count
        return found

    def has_hour(self, project: str, hour: HourRow) -> bool:
        """Whether a project has rows of an hour. Never waits."""
        found = self._columns.projects.by_name.get(project)
        return found is not None and hour in found.hours

    def filtered(self, query: UserQuery, dims: Sequence[Dim]) -> Listing:
        """The project's users by their rows of some kinds. Belongs in a thread above `SMALL` rows."""
        columns = self._columns
        project = columns.projects.by_name.get(query.project)
        if project is None:
            return NOTHING
        user = None
        if query.unattributed:
            with self._lock:
                user = columns.people.find(project, None)
            if user is None:
                return NOTHING
        size = max(len(project.members), sum(len(dim.rows) for dim in dims))
        return listing.filtered(columns, project, dims, query, user, lambda: self._hold(size))

    # --- reading what changed ---------------------------------------------------------------------------------------

    def number_of(self, project: str) -> int | None:
        """The number of a project, once it has rows. Never waits."""
        found = self._columns.projects.by_name.get(project)
        return found.number if found else None

    def held(self) -> dict[int, int]:
        """A copy of `position`."""
        with self._lock:
            return dict(self.position)

    def changes(self, since: Mapping[int, int]) -> tuple[dict[int, int], dict[int, I64] | None]:
        """What the view contains, and by number of the project the users that changed between `since` and that.

        None if `since` is too long ago: `changed` knows then.
        """
        with self._lock:
            position, steps = dict(self.position), self._trail.steps_since(since)
        return position, None if steps is None else changed_between(steps, since, position)

    def row_count(self, project: str) -> int:
        """Rows of users a project has. Never waits."""
        return sum(len(dim.rows) for dim in self.dims(project))

    def changed(self, project: str, since: Mapping[int, int], users: Iterable[int] | None = None) -> list[int]:
        """The project's users, or those of `users`, that changed since. In a thread above `SMALL` of `row_count`."""
        found = self._columns.projects.by_name.get(project)
        if found is None:
            return []
        if users is not None:
            with self._lock:
                return changed_users.changed_among(self._columns, self._trail, users, since)
        size = self.row_count(project)
        return changed_users.changed(self._columns, self._trail, found, since, lambda: self._hold(size))

    def find(self, project: str, user_ids: Iterable[str]) -> dict[str, int]:
        """The numbers of those users that there are."""
        home = self._columns.projects.by_name.get(project)
        if home is None:
            return {}
        with self._lock:
            found = {user_id: self._columns.people.find(home, user_id) for user_id in user_ids}
        return {user_id: number for user_id, number in found.items() if number is not None}

    def people(self, project: str, users: Sequence[int]) -> list[UserSums]:
        """Users by their numbers, over all time. Belongs in a thread above `SMALL` of them."""
        found = self._columns.projects.by_name.get(project)
        if found is None:
            return []
        with self._hold(len(users)):
            return changed_users.people(self._columns, found, users)

    def next_people(self, project: str, after: str | None, count: int) -> list[tuple[int, str]]:
        """The first `count` users, number and id, with an id that comes after `after`; None: all, first of them the
        user of the events without one, as "". Belongs in a thread above `SMALL` of `members`."""
        found = self._columns.projects.by_name.get(project)
        if found is None:
            return []
        with self._hold(len(found.members)):
            return changed_users.next_people(self._columns, found, after, count)

    # --- reading one user, hours and windows ------------------------------------------------------------------------

    def user_size(self, project: str, user_id: str) -> int | None:
        """How many rows a user has; None for a user that has none."""
        found = self._columns.projects.by_name.get(project)
        if found is None:
            return None
        with self._lock:
            user = self._columns.people.find(found, user_id)
            return None if user is None else self._columns.people.records.item("rows", user)

    def user(self, project: str, user_id: str | None, size: int = 0) -> list[tuple[Dim, RowSums]]:
        """One user's rows, in no order, of about `size`. Belongs in a thread above `SMALL`."""
        found = self._columns.projects.by_name.get(project)
        if found is None:
            return []
        with self._hold(size):
            user = self._columns.people.find(found, user_id)
            return [] if user is None else listing.rows_of(self._columns, user)

    def hour_count(self, project: str) -> int:
        """How many hours of a provider, model and environment a project has, or histograms of such: each partition has
        its own. Never waits."""
        found = self._columns.projects.by_name.get(project)
        return max(len(found.hours), self._latencies.count(project)) if found else 0

    def hours(self, project: str, hours: Range | None = None) -> list[Hour]:
        """The project's hours (since the epoch; None: all), in no order, over all partitions.

        Belongs in a thread above `SMALL` of them.
        """
        found = self._columns.projects.by_name.get(project)
        if found is None:
            return []
        dims = [dim for dim in list(found.hours.values()) if hours is None or dim.at in hours]
        with self._hold(len(dims)):
            return listing.hours(self._columns, dims)

    def costs(self, project: str, hours: Range) -> dict[str, int]:
        """Picodollars of the project's models in some hours (since the epoch). Belongs in a thread."""
        found = self._columns.projects.by_name.get(project)
        if found is None:
            return {}
        dims = [dim for dim in list(found.hours.values()) if dim.at in hours]
        with self._hold(len(dims)):
            return listing.costs(self._columns, dims)

    def latencies(self, project: str, hours: Range) -> dict[tuple[str, str], dict[int, int]]:
        """(provider, model) -> bucket (`processor.core.events.latency`) -> events of the project in some hours (since
        the epoch). Belongs in a thread above `SMALL` of `hour_count`."""
        with self._hold(self._latencies.count(project)):
            return self._latencies.by_model(project, hours.__contains__)

    def charged(self, organization: str, month: int) -> Charged:
        """What an organization's month (its start) counted so far: the live count, to be read at once. Never waits."""
        return self._windows.month("org", organization, month) or Charged()

    def counted(self) -> tuple[int, int, int, int]:
        """Unique events, duplicates, conflicts and events without a price, over all organizations. Never waits."""
        months = self._windows.months("org")
        unpriced = sum(project.totals.unpriced for project in list(self._columns.projects.by_name.values()))
        return (
            sum(month.unique for month in months),
            sum(month.duplicates for month in months),
            sum(month.conflicts for month in months),
            unpriced,
        )

    def shortfall(self) -> int | None:
        """How many events the rows lack that the partitions' owners have written: rows of the changelog are missing.

        None: that cannot be told, at this moment or by what was written. Never waits.
        """
        batches = self._batches
        written = list(self._events.values())
        if self._whole != batches or table_rows.UNKNOWN in written:
            return None
        there = sum(project.totals.requests for project in list(self._columns.projects.by_name.values()))
        return max(sum(written) - there, 0) if self._batches == batches else None

    @property
    def users(self) -> int:
        """Users of all projects. Never waits."""
        return len(self._columns.people.records) - 1

    def unleased(self, organization: str, owners: Sequence[str], month: int) -> int | None:
        """Unique events charged to an organization through none of some leases. None: at this moment the view holds
        half a flush, whose counts need not fit each other. Never waits."""
        batches = self._batches
        if self._whole != batches:
            return None
        charged = self.charged(organization, month).unique - sum(self.leased(owner, month) for owner in owners)
        return charged if self._batches == batches else None

    def leased(self, owner: str, month: int) -> int:
        """Unique events charged through a lease (`processor.leases.lease_messages.owner`). Never waits."""
        found = self._windows.month("lease", owner, month)
        return 0 if found is None else found.unique

    def window(self, scope: Scope, owner: str, kind: Kind, start: int) -> Charged:
        """What one window counted. One so old that it is no longer kept counted nothing."""
        total = Charged()
        with self._lock:
            for partition in self._partitions:
                value = self._windows.get(table_rows.encode_key(partition, "window", scope, owner, kind, start))
                if value is not None:
                    total.add(value)
        return total
