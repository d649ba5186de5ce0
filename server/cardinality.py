"""How many users, models and environments a project may have: an answer for who goes beyond, not a slow death for all.

Each of them is a row in every front end's memory. What is known of a project is what the view has: a burst may go
beyond a bound by what is on its way. Tags, sessions and the like are kept with the event only and need no bound but its
size.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from processor.core import codec
from processor.core.codec import Decoded, Wire
from processor.core.columns import Columns
from processor.core.event import Fault, Handling
from server.views import View

MAX_USERS: Final = 10_000_000
MAX_MODELS: Final = 10_000
MAX_ENVIRONMENTS: Final = 1_000


class Beyond(NamedTuple):
    """An event that cannot be taken: its number among the valid ones, and why."""

    row: int
    field: str
    message: str


class _Seen:
    """The names a project's rows are kept by."""

    def __init__(self) -> None:
        self.dims = 0
        self.models: set[str] = set()
        self.environments: set[str] = set()


class Cardinality:
    """The bounds, on a view. For one event loop."""

    def __init__(
        self,
        view: View,
        users: int = MAX_USERS,
        models: int = MAX_MODELS,
        environments: int = MAX_ENVIRONMENTS,
    ) -> None:
        self._view = view
        self._users = users
        self._models = models
        self._environments = environments
        self._seen: dict[str, _Seen] = {}

    def beyond(self, project: str, columns: Columns) -> list[Beyond]:
        """The events that would bring something new to a project that is full. A few lookups if it is not."""
        found = self._new_users(project, columns) if self._view.members(project) >= self._users else []
        seen = self._look(project)
        if len(seen.models) >= self._models:
            found += _new(columns, 2, "model", seen.models, self._models)
        if len(seen.environments) >= self._environments:
            found += _new(columns, 3, "environment", seen.environments, self._environments)
        return found

    def _new_users(self, project: str, columns: Columns) -> list[Beyond]:
        view = self._view
        new = {
            code
            for code, user in enumerate(columns.users)
            if user is not None and view.user_size(project, user) is None
        }
        why = f"The project has {self._users} users, the most it may have"
        return [Beyond(row, "user_id", why) for row, code in enumerate(columns.rows["user"].tolist()) if code in new]

    def _look(self, project: str) -> _Seen:
        seen = self._seen.get(project)
        if seen is None:
            seen = self._seen[project] = _Seen()
        size = self._view.kinds(project)
        if size != seen.dims:
            for dim in self._view.dims(project)[seen.dims :]:
                seen.models.add(dim.model)
                seen.environments.add(dim.environment)
                seen.dims += 1
        return seen


def _new(columns: Columns, place: int, field: str, known: set[str], limit: int) -> list[Beyond]:
    new = {code for code, dim in enumerate(columns.dims) if dim[place] not in known}
    why = f"The project has {limit} {field}s, the most it may have"
    return [Beyond(row, field, why) for row, code in enumerate(columns.rows["dim"].tolist()) if code in new]


def without(
    beyond: Sequence[Beyond], decoded: Decoded, wire: Wire, records: Sequence[bytes], handling: Handling, now: int
) -> Decoded:
    """What a batch's `records` came to, less the events that are `beyond`: those are faults of it, too."""
    faulty = {index for index, _ in decoded.faults}
    valid = [index for index in range(len(records)) if index not in faulty]
    faults = dict(decoded.faults)
    for row, field, message in beyond:
        index = valid[row]
        event_id = codec.decode_event(wire, records[index], handling, now).event_id
        faults.setdefault(index, Fault("out_of_range", field, message, event_id))
    kept = [records[index] for index in valid if index not in faults]
    return Decoded(codec.decode(wire, kept, handling, now).columns, sorted(faults.items()))
