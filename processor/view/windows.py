"""The windows of a view: what was charged, by organization and key. Few, and each found by its key."""

from typing import Any, Final

from msgspec import Struct

from processor.core.tables import table_rows
from processor.core.tables.table_rows import Scope

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
    """All windows by their raw keys. An organization's months are what quotas are about: their sums are at hand."""

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
