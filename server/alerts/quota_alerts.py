"""Which organizations have used how much of their month, and what is notified about it. Pure: no clock, no network."""

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
"""Percent of the monthly quota."""

LATE: Final = HOUR
"""Microseconds after a month's end in which what was reached at its very end is still told."""


class Alert(Struct, frozen=True):
    """That an organization has reached a part of its monthly quota. A quota that is changed begins anew."""

    organization: str
    month: int
    """Its start, microseconds since the epoch."""
    threshold: int
    """Percent."""
    limit: int

    def id(self, log: str) -> str:
        """The same for all who tell of it, whenever; `log` is the identity of the log, for others may use the name."""
        text = msgspec.json.encode([log, self.organization, self.month, self.threshold, self.limit])
        return f"msg_{hashlib.sha256(text).hexdigest()[:32]}"


def due(organizations: Iterable[Organization], charged: Callable[[str, int], int], now: int) -> list[tuple[Alert, int]]:
    """All that has been reached, with the events used; `charged` gives those of an organization in a month."""
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
    """What the receiver is sent."""
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
    """What the webhook's receiver is sent."""
    return msgspec.json.encode(
        {
            "type": "budget.threshold_reached",
            "timestamp": format_timestamp(reached.at),
            "data": {"project": reached.project, **budget_reached(reached)},
        }
    )
