"""Operations on budgets, for the command line and the admin API alike."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from msgspec import Struct

from server.alerts.budget_records import budget_record
from server.alerts.budgets import (
    DEFAULT_THRESHOLDS,
    MAX_BUDGETS,
    MAX_THRESHOLD,
    MAX_THRESHOLDS,
    Budget,
    Window,
    budget_id,
    read_usd,
)
from server.alerts.shelf import BudgetShelf
from server.errors import Refused
from server.tenancy.administration import Administration

MAX_NAME: Final = 256
"""Most characters of a user's or model's name in a budget."""


class NewBudget(Struct, frozen=True):
    """The properties of a new budget. By default it is for all users and all models."""

    usd: Decimal
    window: Window
    user_id: str | None = None
    model: str | None = None
    thresholds: Sequence[int] = DEFAULT_THRESHOLDS
    """Percent."""


class BudgetAdmin:
    """Operations on budgets, with the rights of `administration`, and the same errors. They block."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    @property
    def _shelf(self) -> BudgetShelf:
        return self._administration.directory.shelf(BudgetShelf)

    def budgets(self, project: str | None = None) -> list[Budget]:
        """Return a project's budgets, oldest first; None: those of the actor's own project."""
        return self._shelf.budgets(self._administration.project_of(project))

    def set_budget(self, wanted: NewBudget, project: str | None = None) -> Budget:
        """Set a budget of a project; replace the one for the same user, model and window, if there is one."""
        where = self._administration.project_of(project)
        for name, value in (("user_id", wanted.user_id), ("model", wanted.model)):
            if value is not None and not 1 <= len(value) <= MAX_NAME:
                raise Refused("bad_request", f"{name} has 1 to {MAX_NAME} characters; leave it out for all of them")
        thresholds = tuple(sorted(set(wanted.thresholds)))
        if not 1 <= len(thresholds) <= MAX_THRESHOLDS or not 1 <= thresholds[0] <= thresholds[-1] <= MAX_THRESHOLD:
            raise Refused(
                "bad_request", f"thresholds are 1 to {MAX_THRESHOLDS} whole percentages from 1 to {MAX_THRESHOLD}"
            )
        try:
            usd = read_usd(wanted.usd)
        except ValueError as error:
            raise Refused("bad_request", str(error)) from None
        name = budget_id(where, wanted.user_id, wanted.model, wanted.window)
        there = {budget.id: budget for budget in self._shelf.budgets(where)}
        before = there.get(name)
        if before is None and len(there) >= MAX_BUDGETS:
            raise Refused("conflict", f"A project has at most {MAX_BUDGETS:,} budgets; delete one")
        created = self._administration.at if before is None else before.created
        budget = Budget(name, where, wanted.user_id, wanted.model, wanted.window, usd, thresholds, created)
        if budget != before:
            self._administration.write(budget_record(budget))
        return budget

    def delete_budget(self, name: str, project: str | None = None) -> Budget:
        """Delete a budget by its id, and return it."""
        for budget in self._shelf.budgets(self._administration.project_of(project)):
            if budget.id == name:
                self._administration.write((budget_record(budget)[0], None))
                return budget
        raise Refused("not_found", "This project has no such budget")
