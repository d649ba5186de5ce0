"""The answers of the reads, the same for both APIs. Sums are exact: picodollars and Python integers."""

from msgspec import Struct

from processor.core.clock import Kind
from processor.core.tables.row_sums import RowSums, Totals


class UserRow(Struct):
    """One user's row; `user_id` None: the unattributed events.

    Times are in microseconds since the epoch; None if the user has no event in the range that was asked for.
    """

    user_id: str | None
    totals: Totals
    first_seen: int | None
    last_seen: int | None


class UserPage(Struct):
    """One page of users; `total` and `users_total` cover all pages."""

    users: list[UserRow]
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

    user: UserRow
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


def user_row(user_id: str | None, sums: RowSums) -> UserRow:
    """Return a user's sums as all answers and the live feed show them."""
    first, last = (sums.first_seen, sums.last_seen) if sums.requests else (None, None)
    return UserRow(user_id, sums.totals(), first, last)
