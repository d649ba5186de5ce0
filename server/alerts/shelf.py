"""The shelves of the directory for budgets, reached thresholds, and messages to the webhook."""

from typing import Final, TypeVar

import msgspec

from server.alerts.budget_records import Draft
from server.alerts.budgets import Budget, Reached

T = TypeVar("T")


class BudgetShelf:
    """Budgets and their reached thresholds, by project."""

    kinds: Final = ("budget", "reached")

    def __init__(self) -> None:
        self._budgets: dict[str, dict[str, Budget]] = {}
        self._reached: dict[str, dict[str, Reached]] = {}
        self.changes = 0
        """Counts the records that were applied."""

    def apply(self, kind: str, name: str, value: bytes | None) -> None:
        """See `Shelf.apply`."""
        if kind == "budget":
            _put(self._budgets, name, None if value is None else msgspec.json.decode(value, type=Budget))
        else:
            _put(self._reached, name, None if value is None else msgspec.json.decode(value, type=Reached))
        self.changes += 1

    def budgets(self, project: str | None = None) -> list[Budget]:
        """Return the budgets of a project, or all, oldest first."""
        found = [self._budgets.get(project, {})] if project is not None else list(self._budgets.values())
        return sorted((each for some in found for each in list(some.values())), key=lambda each: each.created)

    def reached(self, project: str | None = None) -> list[Reached]:
        """Return the reached thresholds of a project's budgets, or of all, in the order of the log."""
        found = [self._reached.get(project, {})] if project is not None else list(self._reached.values())
        return [each for some in found for each in list(some.values())]

    def is_reached(self, reached: Reached) -> bool:
        """Return True if the directory has this threshold."""
        return reached.id in self._reached.get(reached.project, {})


class NotificationShelf:
    """The messages that were delivered to the webhook, and the drafts of those that were not."""

    kinds: Final = ("alert",)

    def __init__(self) -> None:
        self._notified: set[str] = set()
        self._drafts: dict[str, bytes] = {}
        """Message id -> body: the first draft in the log. Delivered messages have none."""

    def apply(self, _: str, name: str, value: bytes | None) -> None:
        """See `Shelf.apply`."""
        message_id, _, draft = name.partition("/")
        if draft:
            if value is not None and message_id not in self._notified:
                self._drafts.setdefault(message_id, msgspec.json.decode(value, type=Draft).body.encode())
        elif value is None:
            self._notified.discard(message_id)
        else:
            self._notified.add(message_id)
            self._drafts.pop(message_id, None)

    def is_notified(self, message_id: str) -> bool:
        """Return True if the message was delivered to the webhook."""
        return message_id in self._notified

    def draft(self, message_id: str) -> bytes | None:
        """Return the body that every process sends for this message; None: there is no draft, or it was delivered."""
        return self._drafts.get(message_id)


def _put(kept: dict[str, dict[str, T]], name: str, value: T | None) -> None:
    """Keep the value of a record whose name is a project and an id; None: delete it."""
    project, _, own = name.rpartition("/")
    if value is not None:
        kept.setdefault(project, {})[own] = value
    elif project in kept:
        kept[project].pop(own, None)
