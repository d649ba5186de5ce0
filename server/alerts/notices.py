"""Notices of reached budgets for the live feed. Everything here belongs to one event loop."""

from collections.abc import Callable, Collection
from typing import Final

from server.alerts.budgets import Reached

KEPT: Final = 10_000
"""Notices that are kept of a project; `GET /v1/budgets` has all."""


class BudgetNotices:
    """The thresholds reached in windows that have not ended yet, by project, in the order in which they were posted.

    A subscriber gets all of them at first, also when it reconnects; each has an id by which it recognises duplicates.
    `clock` returns microseconds since the epoch.
    """

    def __init__(self, clock: Callable[[], int] = lambda: 0) -> None:
        self._clock = clock
        self._posted: dict[str, list[tuple[int, Reached]]] = {}
        self._count = 0
        self._listeners: list[Callable[[str], None]] = []

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the project whenever there is something new."""
        self._listeners.append(listener)

    def post(self, reached: Reached) -> None:
        """Add a notice and call all listeners."""
        self._count += 1
        now = self._clock()
        kept = [entry for entry in self._posted.get(reached.project, ()) if entry[1].end > now]
        self._posted[reached.project] = [*kept[-KEPT:], (self._count, reached)]
        for listener in self._listeners:
            listener(reached.project)

    def since(self, project: str, number: int, users: Collection[str] = ()) -> tuple[int, list[Reached]]:
        """Return the number to pass in the next call, and what was posted after `number` (0: the beginning).

        With `users`, only notices of budgets for these users.
        """
        posted = self._posted.get(project)
        if not posted or posted[-1][0] <= number:
            return number, []
        now = self._clock()
        found = [
            reached
            for at, reached in posted
            if at > number and reached.end > now and (not users or reached.user_id in users)
        ]
        return posted[-1][0], found
