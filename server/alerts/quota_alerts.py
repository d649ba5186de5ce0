"""Alerts for organizations that have used a part of their monthly quota, and the webhook's messages. Pure."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from msgspec import Struct

from processor.core.clock import HOUR, format_timestamp, month_start, next_month
from server.alerts.budget_json import budget_reached
from server.alerts.budgets import Reached
from server.tenancy.keys import Organization

THRESHOLDS: Final = (80, 100)
"""In percent of the monthly quota."""

LATE: Final = HOUR
"""Microseconds after a month's end for which thresholds reached at its end are still notified."""


class Alert(Struct, frozen=True):
    """A threshold of its monthly quota that an organization has reached. A changed quota makes all thresholds new."""

    organization: str
    month: int
    """The month's start, microseconds since the epoch."""
    threshold: int
    """In percent."""
    limit: int

    def id(self, log: str) -> str:
        """Return the message id, the same in every process; `log`, the log's identity, makes it unique."""
        text = msgspec.json.encode([log, self.organization, self.month, self.threshold, self.limit])
        return f"msg_{hashlib.sha256(text).hexdigest()[:32]}"


def due(organizations: Iterable[Organization], charged: Callable[[str, int], int], now: int) -> list[tuple[Alert, int]]:
    """Return all alerts that are reached at `now`, each with the events used.

    `charged(organization, month)` returns the unique events of an organization in the month with that start.
    """
    found = []
    for organization in organizations:
        limit = organization.monthly_quota
        if not limit:
            continue
        for month in sorted({month_start(now - LATE), month_start(now)}):
            used = charged(organization.id, month)
            reached = [percent for percent in THRESHOLDS if used * 100 >= limit * percent]
            found += [(Alert(organization.id, month, percent, limit), used) for percent in reached]
    return found


def body(alert: Alert, used: int, now: int) -> bytes:
    """Return the webhook's message for a quota."""
    return msgspec.json.encode(
        {
            "type": "quota.threshold_reached",
            "timestamp": format_timestamp(now),
            "data": {
                "organization": alert.organization,
                "period": format_timestamp(alert.month)[:7],
                "threshold": alert.threshold,
                "limit": alert.limit,
                "used": used,
                "resetsAt": format_timestamp(next_month(alert.month)),
            },
        }
    )


def budget_body(reached: Reached) -> bytes:
    """Return the webhook's message for a budget."""
    return msgspec.json.encode(
        {
            "type": "budget.threshold_reached",
            "timestamp": format_timestamp(reached.at),
            "data": {"project": reached.project, **budget_reached(reached)},
        }
    )
