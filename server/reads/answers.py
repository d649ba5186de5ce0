"""The answers of the reads, the same for both APIs. Sums are exact: picodollars and Python integers."""

from collections.abc import Sequence

from msgspec import Struct

from processor.core.clock import Kind
from processor.core.tables.row_sums import Totals
from processor.view.listing import UserSums


class UserPage(Struct):
    """One page of users; `total` and `users_total` cover all pages."""

    users: Sequence[UserSums]
    total: Totals
    users_total: int
    next_cursor: str | None
    as_of: int


class ModelRow(Struct):
    """A user's share of one model."""

    provider: str
    model: str
    totals: Totals


class DayRow(Struct):
    """A user's share of one UTC day (days since the epoch)."""

    day: int
    totals: Totals


class UserDetail(Struct):
    """One user, by model (most expensive first) and by day (oldest first)."""

    user: UserSums
    by_model: list[ModelRow]
    by_day: list[DayRow]
    as_of: int


class QuotaWindow(Struct):
    """One tumbling window: events charged since `start` (microseconds)."""

    start: int
    used: int
    limit: int | None


class QuotaAnswer(Struct):
    """An organization's month by arrival, and its current windows."""

    organization: str
    period: str
    """`YYYY-MM`, UTC."""
    limit: int | None
    used: int
    resets_at: int
    windows: dict[Kind, QuotaWindow]
    duplicates: int
    conflicts: int

    @property
    def remaining(self) -> int | None:
        """Events left in the month; None without a limit."""
        return None if self.limit is None else max(0, self.limit - self.used)
