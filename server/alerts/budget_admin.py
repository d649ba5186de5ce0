"""Setting and deleting budgets, for the command line and the admin API alike."""

from collections.abc import Sequence
from decimal import Decimal

from msgspec import Struct

from server.alerts.budgets import DEFAULT_THRESHOLDS, Window


class NewBudget(Struct, frozen=True):
    """What somebody wants of a budget. Left out: all users, all models."""

    usd: Decimal
    window: Window
    user_id: str | None = None
    model: str | None = None
    thresholds: Sequence[int] = DEFAULT_THRESHOLDS
    """Percent."""
