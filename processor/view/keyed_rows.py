"""What a view has beside rows of users and hours: windows and latencies, each as the changelog has it, by its key."""

from collections.abc import Callable
from sys import intern
from typing import Any, Final

from msgspec import Struct

from processor.core.tables import table_rows
from processor.core.tables.table_rows import HourPlace, Scope

Place = tuple[int, int, str, str, str]
"""Of latencies: partition, hour since the epoch, provider, model, environment."""

_NOTHING = (0, 0, 0, 0)
_WATCHED: Final = {"org": ("month",), "lease": ("lease",)}


class Charged(Struct, gc=False):
    """What a window counted, over all partitions."""

    unique: int = 0
    duplicates: int = 0
    conflicts: int = 0

    def add(self, value: bytes) -> None:
        """Add what one partition's share says, a value of the changelog."""
        self.replace(value, None)

    def replace(self, value: bytes | None, before: bytes | None) -> None:
        """Add one share instead of another, in one step: no reader ever sees both, or neither."""
        _, unique, duplicates, conflicts = _NOTHING if value is None else table_rows.decode_value(value)
        _, unique0, duplicates0, conflicts0 = _NOTHING if before is None else table_rows.decode_value(before)
        self.unique += unique - unique0
        self.duplicates += duplicates - duplicates0
        self.conflicts += conflicts - conflicts0


class Windows:
    """All windows by their raw keys, of which there are few.

    An organization's months are what quotas are about: their sums are at hand.
    """

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._months: dict[tuple[str, str, int], Charged] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def replace(self, key: bytes, parts: tuple[Any, ...], value: bytes | None) -> None:
        """Take in a record; None: the window is gone."""
        before = self._rows.get(key)
        if value is not None:
            self._rows[key] = value
        elif before is not None:
            del self._rows[key]
        scope, owner, kind, start = parts
        if kind not in _WATCHED.get(scope, ()):
            return
        month = self._months.get((scope, owner, start))
        if month is None:
            month = self._months[scope, owner, start] = Charged()
        month.replace(value, before)

    def month(self, scope: Scope, owner: str, start: int) -> Charged | None:
        """The live count of the month of an organization, or of its lease."""
        return self._months.get((scope, owner, start))

    def months(self, scope: Scope) -> list[Charged]:
        """The live counts of all months of all organizations, or of their leases."""
        return [count for (kind, _, _), count in list(self._months.items()) if kind == scope]

    def get(self, key: bytes) -> bytes | None:
        """One partition's share of a window."""
        return self._rows.get(key)


class Latencies:
    """Histograms by project, hour, provider, model and environment.

    One thread replaces; who reads keeps that thread out.
    """

    def __init__(self) -> None:
        self._projects: dict[str, dict[Place, bytes]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._projects.values()))

    def count(self, project: str) -> int:
        """How many a project has."""
        return len(self._projects.get(project, ()))

    def replace(self, at: HourPlace, value: bytes | None) -> None:
        """Take in a record; None: there is no such row any more."""
        rows = self._projects.setdefault(at.project, {})
        place = (at.partition, at.hour, at.provider, at.model, at.environment)
        if value is None:
            rows.pop(place, None)
        elif place in rows:
            rows[place] = value
        else:
            rows[at.partition, at.hour, intern(at.provider), intern(at.model), intern(at.environment)] = value

    def by_model(self, project: str, is_wanted: Callable[[int], bool]) -> dict[tuple[str, str], dict[int, int]]:
        """(provider, model) -> bucket -> events, over the wanted hours (since the epoch)."""
        found: dict[tuple[str, str], dict[int, int]] = {}
        for (_, hour, provider, model, _), value in self._projects.get(project, {}).items():
            if is_wanted(hour):
                total = found.setdefault((provider, model), {})
                for bucket, count in table_rows.histogram_of(table_rows.decode_value(value)).items():
                    total[bucket] = total.get(bucket, 0) + count
        return found
