"""What is spent of budgets, read from the tables; sums that cannot have changed are not read again."""

from collections.abc import Iterable
from typing import NamedTuple

from processor.core.clock import DAY, HOUR, window_start
from processor.view.query import Range
from processor.view.view import View
from server.alerts.budgets import Budget, BudgetState, Reached, window_end
from server.alerts.shelf import BudgetShelf
from server.tenancy.directory import Directory


def states(view: View, directory: Directory, project: str, now: int) -> list[BudgetState]:
    """Return the budgets of a project and what is spent of them. Blocks; call it in a thread."""
    reached: dict[tuple[str, str, int], list[Reached]] = {}
    for each in directory.shelf(BudgetShelf).reached(project):
        reached.setdefault((each.budget, each.usd, each.start), []).append(each)
    costs = Spending(view)
    found = []
    for budget in directory.shelf(BudgetShelf).budgets(project):
        start = window_start(budget.window, now)
        told = sorted(reached.get((budget.id, budget.usd, start), ()), key=lambda each: each.threshold)
        found.append(BudgetState(budget, start, costs(budget, start), tuple(told)))
    return found


class _Key(NamedTuple):
    project: str
    user_id: str | None
    model: str | None
    start: int
    window: str


class Spending:
    """The picodollars of budgets in their windows, cached until `look` finds that rows have changed.

    For one thread at a time.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._position: dict[int, int] = {}
        self._known: dict[_Key, int] = {}
        self._models: dict[tuple[str, int, int], dict[str, int]] = {}

    def look(self) -> bool:
        """Drop cached sums whose rows have changed; return True if any sum may have changed."""
        position, changed = self._view.changes(self._position)
        if position == self._position:
            return False
        self._position = position
        if changed is None:
            self._known.clear()
            self._models.clear()
            return True
        touched = {name: users for name in self._projects() if (users := changed.get(self._number(name))) is not None}
        if not touched:
            return False
        for span in [span for span in self._models if span[0] in touched]:
            del self._models[span]
        numbers = {name: set(users.tolist()) for name, users in touched.items()}
        for key in [key for key in self._known if key.project in touched]:
            if key.user_id is None or not self._users(key).isdisjoint(numbers[key.project]):
                del self._known[key]
        return True

    def forget(self, budgets: Iterable[Budget], since: int) -> None:
        """Drop all cached sums but those of these budgets in windows that start at `since` or later."""
        wanted = {(each.project, each.user_id, each.model, each.window) for each in budgets}
        self._known = {
            key: cost
            for key, cost in self._known.items()
            if key.start >= since and (key.project, key.user_id, key.model, key.window) in wanted
        }
        self._models = {span: costs for span, costs in self._models.items() if span[1] >= since}

    def __call__(self, budget: Budget, start: int) -> int:
        """Return the picodollars of a budget in the window that starts at `start`. Blocks; call it in a thread."""
        key = _Key(budget.project, budget.user_id, budget.model, start, budget.window)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._ask(budget, start)
        return found

    def _ask(self, budget: Budget, start: int) -> int:
        view, project, end = self._view, budget.project, window_end(budget.window, start)
        if budget.user_id is not None:
            days = Range(start // DAY, end // DAY)
            rows = view.user(project, budget.user_id, view.user_size(project, budget.user_id) or 0)
            return sum(
                sums.cost
                for dim, sums in rows
                if dim.at in days and (budget.model is None or dim.model == budget.model)
            )
        span = (project, start, end)
        costs = self._models.get(span)
        if costs is None:
            costs = self._models[span] = view.costs(project, Range(start // HOUR, end // HOUR))
        return sum(costs.values()) if budget.model is None else costs.get(budget.model, 0)

    def _projects(self) -> set[str]:
        return {key.project for key in self._known} | {project for project, _, _ in self._models}

    def _number(self, project: str) -> int:
        number = self._view.number_of(project)
        return -1 if number is None else number

    def _users(self, key: _Key) -> set[int]:
        return set() if key.user_id is None else set(self._view.find(key.project, [key.user_id]).values())
