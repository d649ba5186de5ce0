"""Bounds on how many users, models, environments, days and rows a project may have.

These cost memory in every API process and in the worker, for ever: an event beyond a bound is rejected, so that one
project cannot exhaust it for all. Tags, sessions and the like are kept with the event only and are bounded by its size.

A project's present numbers are those of the view and, for days, models and environments, what this process has admitted
since: with one API process these bounds are exact. Several processes may each admit up to the bound what none of them
sees in the tables yet. Users and rows can exceed their bounds by what is on its way to the tables.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from operator import itemgetter
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from processor.core.events import codec
from processor.core.events.codec import Decoded, PayloadFormat
from processor.core.events.columns import Columns, Dim
from processor.core.events.event import Fault, Handling
from processor.core.tables.table_rows import HOURS_PER_DAY
from processor.view.projects import DimValues
from processor.view.view import UserRow, View

MAX_USERS: Final = 10_000_000
MAX_MODELS: Final = 10_000
MAX_ENVIRONMENTS: Final = 1_000
MAX_DAYS: Final = 4_000
"""Distinct days, UTC, by the events' own time: eleven years of them."""
MAX_ROWS: Final = 20_000_000
"""Rows of users, of hours and of latencies, over all partitions."""

MIN_SETTLED: Final = 100

MAX_SEEN: Final = 20_000
"""Known rows that are cached, and kinds of events of a project: a few MB."""

_T = TypeVar("_T", int, str)

_Kinds = tuple[frozenset[int], frozenset[str], frozenset[str]]
"""Days, models and environments."""

_ROWS: Final = 3
"""New rows of one event at most: its user's, its hour's, that hour's latencies."""


class Beyond(NamedTuple):
    """An event beyond a bound: its number among the valid ones, and why it is rejected."""

    row: int
    field: str
    message: str


class AdmittedNames:
    """Names of a project that were admitted and that the view did not have then, with the number of their batches."""

    __slots__ = ("days", "environments", "models", "patience", "settled")

    def __init__(self) -> None:
        self.days: Counter[int] = Counter()
        self.models: Counter[str] = Counter()
        self.environments: Counter[str] = Counter()
        self.settled: dict[_Kinds, tuple[dict[int, int], DimValues]] = {}
        """Names with the position (partition -> offset) of which the view has them, or never will."""
        self.patience = MIN_SETTLED
        """How many entries `settled` may have before `catch_up` is due."""

    def withdraw(self, new: DimValues) -> None:
        """Count names once less."""
        _subtract(self.days, new.days)
        _subtract(self.models, new.models)
        _subtract(self.environments, new.environments)

    def settle(self, new: DimValues, end: Mapping[int, int]) -> None:
        """Names are decided with the position `end`.

        Batches with the same names are one entry, with the last of their ends: while the tables make no progress, the
        number of entries grows with new names, not with batches.
        """
        kinds = frozenset(new.days), frozenset(new.models), frozenset(new.environments)
        known = self.settled.get(kinds)
        if known is None:
            self.settled[kinds] = dict(end), new
            return
        last = known[0]
        last.update({partition: max(offset, last.get(partition, offset)) for partition, offset in end.items()})
        self.withdraw(new)

    def catch_up(self, view: View) -> None:
        """Withdraw what is decided: the view has it now, or it will never come."""
        for kinds, (end, new) in list(self.settled.items()):
            if view.contains(end):
                del self.settled[kinds]
                self.withdraw(new)
        self.patience = max(MIN_SETTLED, 2 * len(self.settled))


class Cardinality:
    """The bounds, checked with a view. For one event loop."""

    def __init__(
        self,
        view: View,
        users: int = MAX_USERS,
        models: int = MAX_MODELS,
        environments: int = MAX_ENVIRONMENTS,
        days: int = MAX_DAYS,
        rows: int = MAX_ROWS,
    ) -> None:
        self._view = view
        self._users = users
        self._models = models
        self._environments = environments
        self._days = days
        self._rows = rows
        self._admitted: dict[str, AdmittedNames] = {}
        """By project."""
        self._known: dict[str, set[Dim]] = {}
        """By project, what events were kept by that brought nothing new. The view never loses a name."""
        self._rows_seen: set[tuple[str, UserRow]] = set()
        """Rows of full projects that the view has. It never loses one, and looking one up costs most."""

    def knows(self, project: str, columns: Columns) -> bool:
        """Return True if neither `beyond` nor `admit` has anything to say of these events: they bring no new name, and
        there is room for their users and rows. Nearly always so, and looks at none of them."""
        known, view = self._known.get(project), self._view
        return (
            known is not None
            and known.issuperset(columns.dims)
            and view.members(project) < self._users
            and view.rows_of_all_kinds(project) + _ROWS * len(columns.rows) <= self._rows
        )

    def beyond(self, project: str, columns: Columns) -> list[Beyond]:
        """Return the events that would add something to a project that is full. Costs few lookups if it is not. Spans
        add nothing."""
        calls, places = columns.without_spans()
        return [each._replace(row=places[each.row]) for each in self._beyond(project, calls)]

    def _beyond(self, project: str, columns: Columns) -> list[Beyond]:
        view, dims = self._view, columns.dims
        more, admitted = len(dims), self._admitted.get(project, _NOTHING)
        if admitted.settled and self._may_be_full(view.dim_values(project), admitted, more):
            admitted.catch_up(view)
        known = view.dim_values(project)
        found: list[Beyond] = []
        if len(known.days) + len(admitted.days) + more > self._days:
            days = [hour // HOURS_PER_DAY for hour in map(_hour_of, dims)]
            why = (
                f"The project has events of {self._days} days (UTC), the most it may have: only timestamps of these "
                "days are accepted"
            )
            found += _new(columns, days, known.days, admitted.days.keys(), self._days, "timestamp", why)
        if view.members(project) >= self._users:
            found += self._new_users(project, columns)
        if len(known.models) + len(admitted.models) + more > self._models:
            models = list(map(_model_of, dims))
            why = f"The project has {self._models} models, the most it may have"
            found += _new(columns, models, known.models, admitted.models.keys(), self._models, "model", why)
        if len(known.environments) + len(admitted.environments) + more > self._environments:
            environments = list(map(_environment_of, dims))
            why = f"The project has {self._environments} environments, the most it may have"
            limit, on_the_way = self._environments, admitted.environments.keys()
            found += _new(columns, environments, known.environments, on_the_way, limit, "environment", why)
        if view.rows_of_all_kinds(project) + _ROWS * len(columns) > self._rows:
            found += self._new_rows(project, columns)
        return found

    def _may_be_full(self, known: DimValues, admitted: AdmittedNames, more: int) -> bool:
        return (
            len(known.days) + len(admitted.days) + more > self._days
            or len(known.models) + len(admitted.models) + more > self._models
            or len(known.environments) + len(admitted.environments) + more > self._environments
        )

    def admit(self, project: str, columns: Columns) -> DimValues | None:
        """Note what events bring that are going to be taken; returns what of it the view does not have, for `withdraw`
        or `settle`. None: nothing.
        """
        known, calls = self._view.dim_values(project), columns.without_spans()[0]
        if all(
            hour // HOURS_PER_DAY in known.days and model in known.models and environment in known.environments
            for hour, _, model, environment, _, _ in calls.dims
        ):
            seen = self._known.setdefault(project, set())
            if len(seen) > MAX_SEEN:
                seen.clear()
            seen.update(calls.dims)
            return None
        dims = calls.used_dims()
        new = DimValues()
        new.days = {hour // HOURS_PER_DAY for hour in set(map(_hour_of, dims))} - known.days
        new.models = set(map(_model_of, dims)) - known.models
        new.environments = set(map(_environment_of, dims)) - known.environments
        if not (new.days or new.models or new.environments):
            return None
        admitted = self._admitted.setdefault(project, AdmittedNames())
        _add(admitted.days, new.days, known.days)
        _add(admitted.models, new.models, known.models)
        _add(admitted.environments, new.environments, known.environments)
        return new

    def withdraw(self, project: str, new: DimValues) -> None:
        """What `admit` noted is not taken after all: what no other batch brings, too, is forgotten.

        Not for events that may be in the log: see `settle`.
        """
        admitted = self._admitted.get(project)
        if admitted is not None:
            admitted.withdraw(new)

    def settle(self, project: str, new: DimValues, end: Mapping[int, int]) -> None:
        """What `admit` noted is in the log up to `end` (partition -> offset), if it is there at all.

        Once the view contains `end`, only what the view has counts: the events may have been duplicates.
        """
        admitted = self._admitted.get(project)
        if admitted is None:
            return
        admitted.settle(new, end)
        if len(admitted.settled) > admitted.patience:
            admitted.catch_up(self._view)

    def _new_users(self, project: str, columns: Columns) -> list[Beyond]:
        view = self._view
        new = {
            code
            for code, user in enumerate(columns.users)
            if user is not None and view.user_size(project, user) is None
        }
        why = f"The project has {self._users} users, the most it may have"
        return [Beyond(row, "user_id", why) for row, code in enumerate(columns.rows["user"].tolist()) if code in new]

    def _new_rows(self, project: str, columns: Columns) -> list[Beyond]:
        """Return the events with new rows for which there is no room after the events before them."""
        view, dims = self._view, columns.dims
        hours = [(dim[0], *dim[1:4]) for dim in dims]
        new_hours = {hour for hour in set(hours) if not view.has_hour(project, hour)}
        events = [(_row_of(user, dims[code]), hours[code]) for user, code in _users_and_dims(columns)]
        seen = self._rows_seen
        wanted = [row for row in dict.fromkeys(row for row, _ in events) if (project, row) not in seen]
        has = dict(zip(wanted, view.has_users_rows(project, wanted), strict=True))
        new_rows = {row for row, is_there in has.items() if not is_there}
        if len(seen) + len(has) > MAX_SEEN:
            seen.clear()
        seen.update((project, row) for row, is_there in has.items() if is_there)
        room = self._rows - view.rows_of_all_kinds(project)
        why = (
            f"The project has {self._rows} rows, the most it may have: only events that add to one of these rows, by "
            "user, day, model and hour, are accepted"
        )
        found = []
        for number, (row, hour) in enumerate(events):
            needed = (row in new_rows) + (_ROWS - 1) * (hour in new_hours)
            if needed > room:
                found.append(Beyond(number, "user_id", why))
            elif needed:
                room -= needed
                new_rows.discard(row)
                new_hours.discard(hour)
        return found


_NOTHING: Final = AdmittedNames()
_hour_of, _model_of, _environment_of = itemgetter(0), itemgetter(2), itemgetter(3)
"""The parts of a dim."""


def _add(counts: Counter[_T], new: Iterable[_T], known: set[_T]) -> None:
    """Count names once more, and drop those that the view has by now: it never loses one."""
    if not known.isdisjoint(counts):
        for name in counts.keys() & known:
            del counts[name]
    counts.update(new)


def _subtract(counts: Counter[_T], names: Iterable[_T]) -> None:
    """Count names once less, if they are still counted."""
    for name in names:
        if counts[name] > 1:
            counts[name] -= 1
        else:
            counts.pop(name, None)


def _users_and_dims(columns: Columns) -> Iterator[tuple[str | None, int]]:
    """Yield the user and the number of the dim of each event."""
    rows = columns.rows
    for user, dim in zip(rows["user"].tolist(), rows["dim"].tolist(), strict=True):
        yield columns.users[user], dim


def _row_of(user: str | None, dim: Dim) -> UserRow:
    return (user, dim[0] // HOURS_PER_DAY, *dim[1:4])


def _new(
    columns: Columns, values: Sequence[_T], known: set[_T], admitted: Set[_T], limit: int, field: str, why: str
) -> list[Beyond]:
    """Return the events whose dim has a new value for which there is no room after the ones before it."""
    room = limit - len(known) - len(admitted - known)
    new = list(dict.fromkeys(value for value in values if value not in known and value not in admitted))
    refused = set(new[max(room, 0) :])
    if not refused:
        return []
    codes = {code for code, value in enumerate(values) if value in refused}
    return [Beyond(row, field, why) for row, code in enumerate(columns.rows["dim"].tolist()) if code in codes]


def without(
    beyond: Sequence[Beyond],
    decoded: Decoded,
    payload: PayloadFormat,
    records: Sequence[bytes],
    handling: Handling,
    now: int,
) -> Decoded:
    """Return `decoded`, the result of a batch's `records`, with the events `beyond` as faults instead of events."""
    ids = decoded.columns.rows["id"]
    faulty = {index for index, _ in decoded.faults}
    valid = [index for index in range(len(records)) if index not in faulty]
    faults = dict(decoded.faults)
    for row, field, message in beyond:
        event_id = str(UUID(bytes=ids[row].tobytes()))
        faults.setdefault(valid[row], Fault("out_of_range", field, message, event_id))
    kept = [records[index] for index in valid if index not in faults]
    return Decoded(codec.decode(payload, kept, handling, now).columns, sorted(faults.items()))
