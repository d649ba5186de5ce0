"""The reads on a view: lists of users, one user, an organisation's quota; the same answers for every wire."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nlargest, nsmallest
from itertools import islice
from operator import add
from typing import Final, TypeVar

from processor.core.clock import KINDS, format_timestamp, month_start, next_month, window_start
from server import position
from server.answers import DayRow, ModelRow, QuotaAnswer, QuotaWindow, Totals, UserDetail, UserPage, UserRow
from server.arrivals import Arrivals
from server.errors import Refused
from server.keys import Directory, Key
from server.partials import Dim, Numbers, Packed, Partial, User, decode, merge, unpack
from server.queries import Place, Range, UserQuery, parse_user, parse_users
from server.views import View

PATIENCE: Final = 5.0
"""Seconds a read waits for the position it was asked to contain."""

INLINE: Final = 2_000
"""Rows a query may look at in the event loop; more are looked at in a thread."""

SCANS: Final = 2
"""Threads that look at rows at the same time."""

T = TypeVar("T")


class ViewReads:
    """`Reads` on a view. `identity` is the log's name in position tokens; `clock` gives microseconds.

    Users come in descending order of a value and then in ascending order of their id. The events without a user are a
    user too, with the id null: first on a tie, and part of every list and its total; `unattributed=true` asks for that
    row alone. A range that ends before it starts is empty. A user with no event in the range is answered with zeros.
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
        """One page of the key's project's users, and the totals of all pages."""
        query = parse_users(key.project, params)
        await self._catch_up(after)
        as_of = self._view.as_of
        if query.is_filtered:
            dims = self._view.dims(key.project)
            dims = await self._run(len(dims), lambda: _matching(query, dims))
            page = await self._run(sum(len(dim.rows) for dim in dims), lambda: _filtered(query, dims))
        elif query.unattributed:
            nobody = self._view.user(key.project, None)
            users = [nobody] if nobody else []
            page = _unfiltered(query, users, nobody.numbers()[1:8] if nobody else ())
        else:
            users, totals = self._view.all_time(key.project)
            page = await self._run(len(users), lambda: _unfiltered(query, users, totals))
        page.as_of = as_of
        return page

    async def get_user(self, key: Key, user_id: str, params: Mapping[str, str], after: str | None) -> UserDetail:
        """One user's sums, by model and by day."""
        days = parse_user(key.project, params)
        await self._catch_up(after)
        as_of = self._view.as_of
        user = self._view.user(key.project, user_id)
        if user is None:
            raise Refused("not_found", "This project has no such user")
        size = sum(1 for _ in islice(user.rows(), INLINE + 1))
        return await self._run(size, lambda: _detail(user_id, user.rows(), days, as_of))

    async def get_quota(self, key: Key, after: str | None) -> QuotaAnswer:
        """The month of the key's organisation, over all its projects, and its current windows.

        The limit is one of the month only: a key's rate limit counts requests, not events.
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

    async def _catch_up(self, after: str | None) -> None:
        if after is None:
            return
        wanted = position.decode(self._identity, after)
        if not await self._arrivals.wait_for(wanted, self._patience):
            raise Refused("not_yet_visible", "The tables do not contain that position yet; ask again", retry_after=1)

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        if size <= INLINE:
            return work()
        async with self._scans:
            return await asyncio.to_thread(work)


def _matching(query: UserQuery, dims: list[Dim]) -> list[Dim]:
    return [
        dim
        for dim in dims
        if dim.day in query.days
        and (query.model is None or dim.model == query.model)
        and (query.environment is None or dim.environment == query.environment)
    ]


def _filtered(query: UserQuery, dims: list[Dim]) -> UserPage:
    """Add the rows up by user. The total is that of the very numbers the users were summed from."""
    sums: dict[str | None, Packed] = {}
    for dim in dims:
        for row in dim.rows.copy():
            user_id = row.user_id
            if query.unattributed and user_id is not None:
                continue
            value = row.value
            before = sums.get(user_id)
            sums[user_id] = value if before is None else merge(unpack(before), decode(value))
    users = list(sums.values())
    totals = [0] * 7
    values = []
    for packed in users:
        numbers = unpack(packed)
        values.append(numbers[query.column])
        totals = list(map(add, totals, numbers[1:8]))
    return _page(query, list(sums), values, lambda index: unpack(users[index]), totals)


def _unfiltered(query: UserQuery, users: Sequence[User], totals: Sequence[int]) -> UserPage:
    """Users over all time; the numbers of those not on the page are not kept."""
    ids = [user.user_id for user in users]
    values = [user.numbers()[query.column] for user in users]
    return _page(query, ids, values, lambda index: users[index].numbers(), totals)


def _page(
    query: UserQuery,
    ids: Sequence[str | None],
    values: Sequence[int],
    numbers: Callable[[int], Numbers],
    totals: Sequence[int],
) -> UserPage:
    """The page asked for, out of all users: their ids, what they are sorted by, and how to get a user's numbers."""
    chosen = top(ids, values, query.after, query.limit + 1)
    page = chosen[: query.limit]
    cursor = None
    if len(chosen) > len(page):
        last = page[-1]
        cursor = query.cursor((values[last], ids[last] or ""))
    rows = [_user_row(ids[index], numbers(index)) for index in page]
    return UserPage(rows, Totals(*totals), len(ids), cursor, 0)


def top(ids: Sequence[str | None], values: Sequence[int], after: Place | None, count: int) -> list[int]:
    """Indexes of the first `count` by descending value, then by id, behind `after`. Sorts no more than it returns."""
    candidates: Sequence[int] = range(len(ids))
    if after is not None:
        value, user = after
        candidates = [i for i, own in enumerate(values) if own < value or (own == value and (ids[i] or "") > user)]
    if len(candidates) > count:
        least = nlargest(count, (values[i] for i in candidates))[-1]
        above = [i for i in candidates if values[i] > least]
        ties = (i for i in candidates if values[i] == least)
        candidates = above + nsmallest(count - len(above), ties, key=lambda i: ids[i] or "")
    return sorted(candidates, key=lambda i: (-values[i], ids[i] or ""))


def _detail(user_id: str, rows: Iterable[Partial], days: Range, as_of: int) -> UserDetail:
    everything: Numbers | None = None
    models: dict[tuple[str, str], Numbers] = {}
    by_day: dict[int, Numbers] = {}
    for row in rows:
        dim = row.dim
        if dim.day not in days:
            continue
        numbers = row.numbers()
        model = (dim.provider, dim.model)
        everything = merge(everything, numbers) if everything else numbers
        models[model] = merge(models[model], numbers) if model in models else numbers
        by_day[dim.day] = merge(by_day[dim.day], numbers) if dim.day in by_day else numbers
    by_model = [ModelRow(provider, model, _totals(sums)) for (provider, model), sums in models.items()]
    return UserDetail(
        UserRow(user_id, Totals(), None, None) if everything is None else _user_row(user_id, everything),
        sorted(by_model, key=lambda row: (-row.totals.cost, row.provider, row.model)),
        [DayRow(day, _totals(sums)) for day, sums in sorted(by_day.items())],
        as_of,
    )


def _totals(numbers: Numbers) -> Totals:
    return Totals(*numbers[1:8])


def _user_row(user_id: str | None, numbers: Numbers) -> UserRow:
    return UserRow(user_id, _totals(numbers), numbers[8], numbers[9])
