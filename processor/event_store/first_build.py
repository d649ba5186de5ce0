"""How far a store is that has many messages to go through, as after its directory was deleted: done, of how many, time
left."""

from typing import Final, NamedTuple

MANY: Final = 20_000
"""Messages behind which a store says how far it is."""

EVERY: Final = 10.0
"""Seconds between two reports."""


class BuildReport(NamedTuple):
    """One report; counts are of messages."""

    done: int
    of: int
    seconds_left: int | None
    """None: it is too early to tell."""
    is_last: bool


class FirstBuild:
    """Counts messages that are to be gone through. `at` is in seconds of any clock."""

    def __init__(self) -> None:
        self._of = 0
        self._began: tuple[float, int] = (0.0, 0)
        self._told = 0.0

    def report(self, behind: int, at: float) -> BuildReport | None:
        """Return what is to be said when the store is `behind` by so many messages; None: nothing now."""
        was_building = bool(self._of)
        found = self.look(behind, at)
        if found is None or (was_building and not found.is_last and at - self._told < EVERY):
            return None
        self._told = at
        return found

    def look(self, behind: int, at: float) -> BuildReport | None:
        """Return how far a store is that is `behind` by so many messages; None: it keeps up."""
        if not self._of:
            if behind < MANY:
                return None
            self._of, self._began = behind, (at, behind)
            return BuildReport(0, behind, None, is_last=False)
        if behind < MANY // 20:
            done, self._of = self._of, 0
            return BuildReport(done, done, 0, is_last=True)
        self._of = max(self._of, behind)
        began, before = self._began
        rate = (before - behind) / (at - began) if at > began else 0
        return BuildReport(self._of - behind, self._of, round(behind / rate) if rate > 0 else None, is_last=False)
