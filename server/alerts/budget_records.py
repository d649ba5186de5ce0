"""The records of budgets and notifications in the directory topic."""

import secrets

import msgspec
from msgspec import Struct

from server.alerts.budgets import Budget, Reached


def budget_record(budget: Budget) -> tuple[bytes, bytes]:
    """Return the record of a budget in the directory topic."""
    return f"budget/{budget.project}/{budget.id}".encode(), msgspec.json.encode(budget)


def reached_record(reached: Reached) -> tuple[bytes, bytes]:
    """Return the record that a budget has reached a threshold."""
    return f"reached/{reached.project}/{reached.id}".encode(), msgspec.json.encode(reached)


class Draft(Struct):
    """The value of a draft's record."""

    at: int
    """Microseconds since the epoch."""
    body: str


def draft_record(message_id: str, body: bytes, at: int) -> tuple[bytes, bytes]:
    """Return the record that fixes the body of a webhook's message: the first one of a message counts.

    Each draft has a key of its own, as compaction keeps only the newest record of a key.
    """
    name = f"alert/{message_id}/{secrets.token_hex(8)}"
    return name.encode(), msgspec.json.encode(Draft(at, body.decode()))


def alert_record(message_id: str, at: int) -> tuple[bytes, bytes]:
    """Return the record that a message was delivered to the webhook."""
    return f"alert/{message_id}".encode(), msgspec.json.encode(at)
