"""What the reads answer, the same for every wire. Sums are exact: picodollars and Python integers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from processor.core.clock import Kind
from server.tenancy.keys import Key

if TYPE_CHECKING:
    from server.alerts.budgets import BudgetList
    from server.costs import Costs


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
    """An organisation's month by arrival, and its current windows."""

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


class Reads(Protocol):
    """The reads, as both doors call them. `params` are the query parameters by their HTTP names, as text.

    All raise `Refused`: bad_request (a parameter is wrong; the text names it), forbidden (another project),
    not_found, not_yet_visible (`after` was not reached in time).
    """

    async def list_users(self, key: Key, params: Mapping[str, str], after: str | None) -> UserPage: ...
    async def get_user(self, key: Key, user_id: str, params: Mapping[str, str], after: str | None) -> UserDetail: ...
    async def get_costs(self, key: Key, params: Mapping[str, str], after: str | None) -> "Costs": ...
    async def get_quota(self, key: Key, after: str | None) -> QuotaAnswer: ...
    async def get_budgets(self, key: Key, after: str | None) -> "BudgetList": ...


class Health(Protocol):
    """What the probes ask."""

    def unready(self) -> Sequence[str]:
        """Why events cannot be taken now, a sentence each; empty when ready."""
        ...

    def warnings(self) -> Sequence[str]:
        """What an operator has to know though events can be taken, a sentence each: what is gone from the log."""
        ...
