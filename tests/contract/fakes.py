"""What stands behind the doors in these tests, besides the log: quotas, reads and health that do as they are told."""

from collections.abc import Callable, Mapping, Sequence

from processor.core.clock import HOUR
from processor.core.tables.row_sums import RowSums, Totals
from processor.view.listing import UserSums
from server.alerts.budgets import Budget, BudgetList, BudgetState, Reached
from server.errors import Refused
from server.limits.rate_limit_headers import Allowance
from server.reads.answers import DayRow, ModelRow, QuotaAnswer, QuotaWindow, UserDetail, UserPage
from server.reads.costs import Costs, DayCost, Latency, ModelCost, ModelDay
from server.tenancy.keys import Key

NOW = 1_776_686_400_000_000
"""2026-04-20T12:00:00Z"""


class FakeReservation:
    """Remembers how it ended."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.ended: list[str] = []

    def settle(self, offsets: dict[int, int]) -> None:
        self.ended.append("settled")

    def release(self) -> None:
        self.ended.append("released")

    def doubt(self) -> None:
        self.ended.append("doubted")


class FakeQuotas:
    """Refuses what it is told to refuse."""

    def __init__(self) -> None:
        self.refuse_request: Refused | None = None
        self.refuse_events: Refused | None = None
        self.reservations: list[FakeReservation] = []
        self.requests = 0
        """That were counted against a rate."""
        self.left: list[Allowance] = []
        self.waiting: list[Callable[[Mapping[int, int]], None]] = []
        """For the end of a grace."""

    def admit_request(self, key: Key, now: int, count: int = 1) -> None:
        self.requests += count
        if self.refuse_request is not None:
            raise self.refuse_request

    async def reserve(self, key: Key, events: int, now: int) -> FakeReservation:
        if self.refuse_events is not None:
            raise self.refuse_events
        self.reservations.append(FakeReservation(events))
        return self.reservations[-1]

    def try_reserve(self, key: Key, events: int, now: int) -> FakeReservation | None:
        if self.refuse_events is not None:
            return None
        self.reservations.append(FakeReservation(events))
        return self.reservations[-1]

    def allowances(self, key: Key, now: int) -> list[Allowance]:
        return self.left

    def after_grace(self, then: Callable[[Mapping[int, int]], None]) -> None:
        self.waiting.append(then)


SUMS = Totals(2, 1, 576, 2**64 + 5, 0, 3_413_000_000, 1)
ROW = UserSums("u/1 ä%", RowSums(2, 1, 576, 2**64 + 5, 0, 3_413_000_000, 1, NOW - HOUR, NOW - HOUR + 1_200_000))
UNATTRIBUTED = UserSums(None, RowSums())
DETAIL = UserDetail(ROW, [ModelRow("openai", "gpt-4o", SUMS)], [DayRow(20_563, SUMS)], NOW)
PAGE = UserPage([ROW, UNATTRIBUTED], SUMS, 2, "next", NOW)
QUOTA = QuotaAnswer(
    "default",
    "2026-04",
    10_000,
    1,
    NOW + HOUR,
    {"minute": QuotaWindow(NOW, 1, None), "month": QuotaWindow(0, 1, 5)},
    3,
    4,
)
COSTS = Costs(
    [ModelCost("openai", "gpt-4o", Totals(3, 1, 600, 2**64, 200, 10**12, 0), Latency(857.0, 1.25, 2.0**31, 2))],
    [DayCost(20_563, SUMS)],
    [ModelDay(20_563, "openai", "gpt-4o", SUMS)],
    Totals(3, 1, 600, 2**64, 200, 10**12, 0),
    1_500_000_000_000,
    10**31,
    NOW,
)


_BUDGET = Budget("bud_1", "default", "u1", None, "day", "0.1", (80, 100), NOW)
REACHED = Reached("evt_1", "bud_1", "default", "u1", None, "day", NOW - 12 * HOUR, "0.1", 80, "0.081", NOW)
BUDGETS = BudgetList([BudgetState(_BUDGET, NOW - 12 * HOUR, 120_000_000_001, (REACHED,))], NOW)


class FakeReads:
    """Gives fixed answers, remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], str | None]] = []
        self.refuse: Refused | None = None

    async def list_users(self, key: Key, params: Mapping[str, str], after: str | None) -> UserPage:
        self._ask("", params, after)
        return PAGE

    async def get_user(self, key: Key, user_id: str, params: Mapping[str, str], after: str | None) -> UserDetail:
        self._ask(user_id, params, after)
        return DETAIL

    async def get_costs(self, key: Key, params: Mapping[str, str], after: str | None) -> Costs:
        self._ask("", params, after)
        return COSTS

    async def get_quota(self, key: Key, after: str | None) -> QuotaAnswer:
        self._ask("", {}, after)
        return QUOTA

    async def get_budgets(self, key: Key, after: str | None) -> BudgetList:
        self._ask("", {}, after)
        return BUDGETS

    def _ask(self, user_id: str, params: Mapping[str, str], after: str | None) -> None:
        self.asked.append((user_id, dict(params), after))
        if self.refuse is not None:
            raise self.refuse


class FakeHealth:
    """Ready until reasons are given."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.gone: list[str] = []

    def unready(self) -> Sequence[str]:
        return self.reasons

    def warnings(self) -> Sequence[str]:
        return self.gone
