"""What the live feed sends besides rows: budgets that were reached. Everything here belongs to one event loop."""

from collections.abc import Callable, Collection
from typing import Final

from server.alerts.budgets import Reached

KEPT: Final = 10_000
"""Of a project; older ones are in `GET /v1/budgets`."""


class BudgetNotices:
    """What was reached in windows that have not ended yet, by project, in the order in which it came.

    Who begins to listen is told all of it, who was away too: each has an id to know it by. `clock` gives microseconds.
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
        """Tell all who listen."""
        self._count += 1
        now = self._clock()
        kept = [entry for entry in self._posted.get(reached.project, ()) if entry[1].end > now]
        self._posted[reached.project] = [*kept[-KEPT:], (self._count, reached)]
        for listener in self._listeners:
            listener(reached.project)

    def since(self, project: str, number: int, users: Collection[str] = ()) -> tuple[int, list[Reached]]:
        """What was posted after `number` (0: the beginning), and the number to ask with the next time.

        With `users`, only budgets of theirs.
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
