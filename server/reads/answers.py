"""What the reads answer, the same for every wire. Sums are exact: picodollars and Python integers."""

from msgspec import Struct

from processor.core.clock import Kind
from processor.view.row_numbers import TOTALS, Numbers


class Totals(Struct):
    """Sums over unique events."""

    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: int = 0
    """Picodollars."""
    unpriced: int = 0


class UserRow(Struct):
    """One user's row; `user_id` None: the events without a user.

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


def _totals(numbers: Numbers) -> Totals:
    return Totals(*numbers[TOTALS])


def user_row(user_id: str | None, numbers: Numbers) -> UserRow:
    """What a user's numbers say, as every answer and the feed show it."""
    seen = numbers[8:] if numbers[1] else (None, None)
    return UserRow(user_id, _totals(numbers), *seen)
