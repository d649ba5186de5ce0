"""The reads, answered from the view: lists of users, one user, costs, quota, budgets; the same for both APIs."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Final, TypeVar

from processor.core.clock import DAY, KINDS, format_timestamp, month_start, next_month, window_start
from processor.core.tables.row_sums import NO_SUMS, RowSums
from processor.view.listing import UserSums
from processor.view.projects import Dim
from processor.view.query import Range, UserQuery
from processor.view.view import SMALL, View
from processor.view.view_follower import Arrivals
from server import position
from server.alerts.budgets import BudgetList
from server.alerts.spending import states
from server.errors import Refused
from server.reads import costs
from server.reads.answers import (
    DayRow,
    ModelRow,
    QuotaAnswer,
    QuotaWindow,
    UserDetail,
    UserPage,
)
from server.reads.costs import Costs
from server.reads.params import parse_user, parse_users
from server.tenancy.directory import Directory
from server.tenancy.keys import Key

PATIENCE: Final = 5.0
"""Seconds that a read waits until the tables contain the position of `after`."""

SCANS: Final = 2
"""Threads that scan rows at the same time."""

T = TypeVar("T")


class ViewReads:
    """`Reads` on a view. `identity` is the log's name in position tokens; `clock` returns microseconds.

    Users are in descending order of a value, then in ascending order of their id. The unattributed events are a user
    with the id null: first on a tie, and part of every list and its total; `unattributed=true` asks for that row alone.
    A range that ends before it starts is empty. A user without events in the range is answered with zeros.
    """

    def __init__(
        self,
        view: View,
        arrivals: Arrivals,
        directory: Directory,
        identity: str,
        clock: Callable[[], int],
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._view = view
        self._arrivals = arrivals
        self._directory = directory
        self._identity = identity
        self._clock = clock
        self._patience = patience
        self._scans = asyncio.Semaphore(SCANS)

    async def list_users(self, key: Key, params: Mapping[str, str], after: str | None) -> UserPage:
        """Return one page of the users of the key's project, and the totals of all pages."""
        query = parse_users(key.project, params)
        await self._catch_up(after)
        as_of = self._view.as_of
        listing = self._view.first(query, month_start(as_of) // DAY)
        if listing is None and query.is_filtered:
            dims = self._view.dims(key.project)
            dims = await self._run(len(dims), lambda: _matching(query, dims))
            size = max(self._view.members(key.project), sum(len(dim.rows) for dim in dims))
            listing = await self._run(size, lambda: self._view.filtered(query, dims))
        elif listing is None:
            size = 1 if query.unattributed else self._view.members(key.project)
            listing = await self._run(size, lambda: self._view.all_time(query))
        cursor = None
        if listing.more:
            user_id, sums = listing.users[-1]
            cursor = query.cursor((query.value_of(sums), user_id or ""))
        return UserPage(listing.users, listing.totals, listing.size, cursor, as_of)

    async def get_user(self, key: Key, user_id: str, params: Mapping[str, str], after: str | None) -> UserDetail:
        """Return one user's sums, by model and by day."""
        days = parse_user(key.project, params)
        await self._catch_up(after)
        as_of = self._view.as_of
        size = self._view.user_size(key.project, user_id)
        if size is None:
            raise Refused("not_found", "This project has no such user")
        view = self._view
        return await self._run(size, lambda: _detail(user_id, view.user(key.project, user_id, size), days, as_of))

    async def get_costs(self, key: Key, params: Mapping[str, str], after: str | None) -> Costs:
        """Return the costs of the key's project, over all of its users."""
        now = self._clock()
        hours = costs.parse_costs(key.project, params, now)
        await self._catch_up(after)
        view, as_of, range_ = self._view, self._view.as_of, costs.needed(hours, now)

        def add_up() -> Costs:
            rows, latencies = view.hours(key.project, range_), view.latencies(key.project, hours)
            return costs.summarise(rows, hours, now, as_of, latencies)

        return await self._run(view.hour_count(key.project), add_up)

    async def get_quota(self, key: Key, after: str | None) -> QuotaAnswer:
        """Return the month of the key's organization, over all of its projects, and its current windows.

        Only the month has a limit: a key's rate limit counts requests, not events.
        """
        await self._catch_up(after)
        now = self._clock()
        limit = self._directory.organization(key.organization).monthly_quota
        counts = {
            kind: (start, self._view.window("org", key.organization, kind, start))
            for kind, start in ((kind, window_start(kind, now)) for kind in KINDS)
        }
        _, month = counts["month"]
        return QuotaAnswer(
            organization=key.organization,
            period=format_timestamp(month_start(now))[:7],
            limit=limit,
            used=month.unique,
            resets_at=next_month(now),
            windows={
                kind: QuotaWindow(start, counted.unique, limit if kind == "month" else None)
                for kind, (start, counted) in counts.items()
            },
            duplicates=month.duplicates,
            conflicts=month.conflicts,
        )

    async def get_budgets(self, key: Key, after: str | None) -> BudgetList:
        """Return the budgets of the key's project, and what is spent of them now."""
        await self._catch_up(after)
        as_of = self._view.as_of
        return BudgetList(
            await asyncio.to_thread(states, self._view, self._directory, key.project, self._clock()), as_of
        )

    async def _catch_up(self, after: str | None) -> None:
        if after is None:
            return
        wanted = position.decode(self._identity, after)
        if not await self._arrivals.wait_for(wanted, self._patience):
            raise Refused("not_yet_visible", "The tables do not contain that position yet; ask again", retry_after=1)

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        if size <= SMALL:
            return work()
        async with self._scans:
            return await asyncio.to_thread(work)


def _matching(query: UserQuery, dims: list[Dim]) -> list[Dim]:
    return [
        dim
        for dim in dims
        if dim.at in query.days
        and (query.model is None or dim.model == query.model)
        and (query.environment is None or dim.environment == query.environment)
    ]


def _detail(user_id: str, rows: Iterable[tuple[Dim, RowSums]], days: Range, as_of: int) -> UserDetail:
    models: dict[tuple[str, str], RowSums] = {}
    by_day: dict[int, RowSums] = {}
    for dim, sums in rows:
        if dim.at not in days:
            continue
        model = (dim.provider, dim.model)
        models[model] = models[model].merge(sums) if model in models else sums
        by_day[dim.at] = by_day[dim.at].merge(sums) if dim.at in by_day else sums
    by_model = [ModelRow(provider, model, sums) for (provider, model), sums in models.items()]
    return UserDetail(
        UserSums(user_id, reduce(RowSums.merge, by_day.values(), NO_SUMS)),
        sorted(by_model, key=lambda row: (-row.totals.cost, row.provider, row.model)),
        [DayRow(day, sums) for day, sums in sorted(by_day.items())],
        as_of,
    )
