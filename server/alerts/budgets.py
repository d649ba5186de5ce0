"""Budgets: what a project, one of its users or models may cost in a day or month, and when that was reached.

A budget refuses nothing; it notifies. Costs count by the events' own time, as in the tables. Pure: no clock.
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
"""Most budgets of one project."""

LATE: Final = HOUR
"""Microseconds after a window's end for which late events of it are still counted against budgets."""

KEPT: Final = 40 * DAY
"""Microseconds after a window's end for which reached thresholds of it are kept."""

_EXACT: Final = Context(prec=100)


class Budget(Struct, frozen=True):
    """One budget, as its record in the directory; there is one for each project, user, model and window."""

    id: str
    project: str
    user_id: str | None
    """None: all users."""
    model: str | None
    """None: all models."""
    window: Window
    usd: str
    """The amount, an exact decimal number."""
    thresholds: tuple[int, ...]
    """In percent, ascending."""
    created: int
    """Microseconds since the epoch."""

    @property
    def limit(self) -> int:
        """The amount in picodollars."""
        return to_pico(self.usd)


class Reached(Struct, frozen=True):
    """A threshold that was reached in a window, as its record in the directory: one for all kinds of notification."""

    id: str
    """The same in every process that finds it, at any time: by it a receiver recognises duplicates."""
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
    """What was spent when it was found: dollars, a decimal number."""
    at: int

    @property
    def end(self) -> int:
        """The first instant after the window, in microseconds since the epoch."""
        return window_end(self.window, self.start)


def to_pico(usd: str) -> int:
    """Return the picodollars of a decimal number with at most 12 places."""
    return int(Decimal(usd).scaleb(PLACES, _EXACT))


def budget_id(project: str, user_id: str | None, model: str | None, window: Window) -> str:
    """Return the id of the budget for this project, user, model and window."""
    return "bud_" + _digest([project, user_id, model, window])[:24]


def window_end(window: Window, start: int) -> int:
    """Return the first instant after the window that starts at `start`; microseconds since the epoch."""
    return start + DAY if window == "day" else next_month(start)


def read_usd(value: Decimal) -> str:
    """Return a budget's amount as it is stored. Raises `ValueError` for one out of range or with too many places."""
    if not value.is_finite() or not 0 < value <= MAX_USD:
        raise ValueError(f"usd must be above 0 and at most {MAX_USD:,}")
    if value != value.quantize(Decimal(1).scaleb(-PLACES), ROUND_FLOOR, _EXACT):
        raise ValueError(f"usd may have at most {PLACES} decimal places")
    return format_cost(int(value.scaleb(PLACES, _EXACT)))


def due(budgets: Iterable[Budget], spent: Callable[[Budget, int], int], log: str, now: int) -> list[Reached]:
    """Return all thresholds that are reached at `now`, in the current windows and those that ended within `LATE`.

    `spent(budget, start)` returns the picodollars of a budget in the window that starts at `start`; `log` is the
    identity of the log. Changing a budget's amount makes all of its thresholds new.
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


# --- current state ---------------------------------------------------------------------------------------------------


class BudgetState(Struct, frozen=True):
    """A budget and what is spent of it in its current window."""

    budget: Budget
    start: int
    spent: int
    """In picodollars."""
    reached: tuple[Reached, ...]
    """The thresholds reached in this window for this amount, the lowest first."""


class BudgetList(Struct, frozen=True):
    """The budgets of a project."""

    budgets: list[BudgetState]
    as_of: int
