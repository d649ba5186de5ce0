"""The windows of a view: what was charged, by organisation and key. Few, and each found by its key."""

from typing import Any

from msgspec import Struct

from processor.core import tables


class Charged(Struct, gc=False):
    """What a window counted, over all partitions."""

    unique: int = 0
    duplicates: int = 0
    conflicts: int = 0

    def add(self, value: bytes, sign: int = 1) -> None:
        """Add what one partition's share says, a value of the changelog."""
        _, unique, duplicates, conflicts = tables.decode_value(value)
        self.unique += sign * unique
        self.duplicates += sign * duplicates
        self.conflicts += sign * conflicts


class Windows:
    """All windows by their raw keys. An organisation's months are what quotas are about: their sums are at hand."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._months: dict[tuple[str, int], Charged] = {}

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
        if (scope, kind) != ("org", "month"):
            return
        month = self._months.get((owner, start))
        if month is None:
            month = self._months[owner, start] = Charged()
        if value is not None:  # first, so that a live count never falls while it is replaced
            month.add(value)
        if before is not None:
            month.add(before, -1)

    def month(self, organization: str, start: int) -> Charged | None:
        """The live count of an organisation's month."""
        return self._months.get((organization, start))

    def get(self, key: bytes) -> bytes | None:
        """One partition's share of a window."""
        return self._rows.get(key)
