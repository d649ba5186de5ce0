"""What the directory says of budgets, of thresholds that were reached, and of what the webhook was sent."""

from typing import Final, TypeVar

import msgspec

from server.alerts.budgets import Budget, Reached
from server.alerts.records import Draft

T = TypeVar("T")


class BudgetShelf:
    """Budgets and the thresholds that were reached of them, by project."""

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
        """The budgets of a project, or all, oldest first."""
        found = [self._budgets.get(project, {})] if project is not None else list(self._budgets.values())
        return sorted((each for some in found for each in list(some.values())), key=lambda each: each.created)

    def reached(self, project: str | None = None) -> list[Reached]:
        """What was reached of a project's budgets, or of all, in the order in which it was written."""
        found = [self._reached.get(project, {})] if project is not None else list(self._reached.values())
        return [each for some in found for each in list(some.values())]

    def is_reached(self, reached: Reached) -> bool:
        """True if that is known already."""
        return reached.id in self._reached.get(reached.project, {})


class NotificationShelf:
    """What the webhook was notified of, and what it is to be sent."""

    kinds: Final = ("alert",)

    def __init__(self) -> None:
        self._notified: set[str] = set()
        self._drafts: dict[str, bytes] = {}
        """Message id -> the body to send: the first draft that the log has. None of messages that were delivered."""

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
        """True if the webhook was notified of that (`server.alerts.delivery`)."""
        return message_id in self._notified

    def draft(self, message_id: str) -> bytes | None:
        """The body under which a message goes to the webhook, whichever process sends it; None if none has drafted
        it, or it was delivered."""
        return self._drafts.get(message_id)


def _put(kept: dict[str, dict[str, T]], name: str, value: T | None) -> None:
    """Keep a record whose name is a project and an id, or forget it."""
    project, _, own = name.rpartition("/")
    if value is not None:
        kept.setdefault(project, {})[own] = value
    elif project in kept:
        kept[project].pop(own, None)
