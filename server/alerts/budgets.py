"""Budgets: what a project, one of its users or models may cost in a day or month, and what is notified then.

A budget refuses nothing: it informs. Costs count by the events' own time, as in the tables. Pure: no clock.
"""

import hashlib
from collections.abc import Callable, Iterable
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Final, Literal

import msgspec
from msgspec import Struct

from processor.core.clock import DAY, HOUR, next_month, window_start
from processor.core.money import PLACES, format_cost

Window = Literal["day", "month"]
WINDOWS: Final[tuple[Window, ...]] = ("day", "month")

DEFAULT_THRESHOLDS: Final = (80, 100)
MAX_THRESHOLD: Final = 1000
MAX_THRESHOLDS: Final = 10
MAX_USD: Final = 10**9
MAX_BUDGETS: Final = 1000
"""Of one project."""

LATE: Final = HOUR
"""Microseconds after a window's end in which what came late is still looked at."""

KEPT: Final = 40 * DAY
"""Microseconds after a window's end until it is forgotten that something was reached in it."""

_EXACT: Final = Context(prec=100)


class Budget(Struct, frozen=True):
    """One budget; of the same project, user, model and window there is one only. Its record in the directory."""

    id: str
    project: str
    user_id: str | None
    """None: all users."""
    model: str | None
    """None: all models."""
    window: Window
    usd: str
    """A decimal number, exact."""
    thresholds: tuple[int, ...]
    """Percent, ascending."""
    created: int
    """Microseconds since the epoch."""

    @property
    def limit(self) -> int:
        """Picodollars."""
        return to_pico(self.usd)


class Reached(Struct, frozen=True):
    """That a threshold was reached in a window: once for all that notify of it. Its record in the directory."""

    id: str
    """The same in whichever process it is found, whenever: by it a receiver knows what it was notified of twice."""
    budget: str
    project: str
    user_id: str | None
    model: str | None
    window: Window
    start: int
    """Microseconds since the epoch, as `at`."""
    usd: str
    threshold: int
    spent: str
    """When it was seen: dollars, a decimal number."""
    at: int

    @property
    def end(self) -> int:
        """The first instant after the window."""
        return window_end(self.window, self.start)


def to_pico(usd: str) -> int:
    """Picodollars of a decimal number with at most 12 places."""
    return int(Decimal(usd).scaleb(PLACES, _EXACT))


def budget_id(project: str, user_id: str | None, model: str | None, window: Window) -> str:
    """The name of the one budget for that."""
    return "bud_" + _digest([project, user_id, model, window])[:24]


def window_end(window: Window, start: int) -> int:
    """The first instant after the window that starts at `start`."""
    return start + DAY if window == "day" else next_month(start)


def read_usd(value: Decimal) -> str:
    """A budget's amount as it is kept. Raises `ValueError`."""
    if not value.is_finite() or not 0 < value <= MAX_USD:
        raise ValueError(f"usd must be above 0 and at most {MAX_USD:,}")
    if value != value.quantize(Decimal(1).scaleb(-PLACES), ROUND_FLOOR, _EXACT):
        raise ValueError(f"usd may have at most {PLACES} decimal places")
    return format_cost(int(value.scaleb(PLACES, _EXACT)))


def due(budgets: Iterable[Budget], spent: Callable[[Budget, int], int], log: str, now: int) -> list[Reached]:
    """All that has been reached at `now`, in the windows of now and in those that ended just before.

    `spent` gives the picodollars of a budget in the window that starts there; `log` is the identity of the log. A
    budget of another amount begins anew.
    """
    found = []
    for budget in budgets:
        limit = budget.limit
        for start in sorted({window_start(budget.window, at) for at in (now - LATE, now)}):
            cost = spent(budget, start)
            found += [
                _reached(budget, start, percent, cost, log, now)
                for percent in budget.thresholds
                if cost * 100 >= limit * percent
            ]
    return found


def _reached(budget: Budget, start: int, percent: int, cost: int, log: str, now: int) -> Reached:
    return Reached(
        "evt_" + _digest([log, budget.id, budget.usd, start, percent])[:32],
        budget.id,
        budget.project,
        budget.user_id,
        budget.model,
        budget.window,
        start,
        budget.usd,
        percent,
        format_cost(cost),
        now,
    )


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


# --- how they stand --------------------------------------------------------------------------------------------------


class BudgetState(Struct, frozen=True):
    """A budget and how it stands in the window of now."""

    budget: Budget
    start: int
    spent: int
    """Picodollars."""
    reached: tuple[Reached, ...]
    """In this window and for this amount, the lowest threshold first."""


class BudgetList(Struct, frozen=True):
    """The budgets of a project."""

    budgets: list[BudgetState]
    as_of: int
