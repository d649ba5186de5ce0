import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import DAY, HOUR, MINUTE, next_month, parse_timestamp
from processor.core.tables.row_sums import RowSums, Totals
from processor.core.tables.table_rows import encode_key
from processor.view.names import Names
from processor.view.query import CAP, SORTS, top
from processor.view.view import SMALL, View
from processor.view.view_follower import Arrivals
from server import position
from server.errors import Refused
from server.reads.answers import UserPage
from server.reads.read_service import ViewReads
from server.tenancy.directory import Directory, organization_record
from server.tenancy.keys import Key, Organization, make_key, new_secret
from tests.support.tables import NOON, Usage, Worker

KEY = make_key(new_secret(), at=0)
IDENTITY = "fa4e"
TODAY = NOON // DAY
OTHER = {"projectId": "other"}
KNOWN = "start, end, model, environment, unattributed, sort, limit, cursor, projectId, after"


class Rig:
    """A view fed by real tables, and the reads on it."""

    def __init__(self, partitions: int = 1) -> None:
        self.worker = Worker(partitions)
        self.view = View()
        self.directory = Directory()
        self.arrivals = Arrivals(self.view)
        self.now = NOON
        self.reads = ViewReads(self.view, self.arrivals, self.directory, IDENTITY, lambda: self.now, patience=0.05)

    def feed(self, *events: Usage, arrival: int = NOON, key: Key = KEY) -> dict[int, int]:
        """Send one request and bring it into the view."""
        offsets = self.worker.send(
            events, arrival=arrival, project=key.project, organization=key.organization, key=key.id
        )
        for partition, records in enumerate(self.worker.work_all()):
            self.view.apply(partition, records)
        self.view.mark_current(arrival)
        return offsets

    async def users(self, **params: str) -> UserPage:
        return await self.reads.list_users(KEY, params, None)


def ids(page: UserPage) -> list[str | None]:
    return [user.user_id for user in page.users]


# --- lists of users --------------------------------------------------------------------------------------------------


async def test_a_project_without_events_is_empty() -> None:
    assert await Rig().users() == UserPage([], Totals(), 0, None, 0)
    assert await Rig().users(model="gpt-4o") == UserPage([], Totals(), 0, None, 0)
    assert await Rig().users(unattributed="true") == UserPage([], Totals(), 0, None, 0)


async def test_a_row_and_the_total() -> None:
    rig = Rig()
    rig.feed(
        Usage(1, cost=3_000_000_000, at=NOON),
        Usage(2, cost=413_000_000, at=NOON + 1_200_000, input_tokens=64, error=True),
    )
    page = await rig.users()
    (user,) = page.users
    assert (user.user_id, user.sums.first_seen, user.sums.last_seen) == ("u1", NOON, NOON + 1_200_000)
    assert user.sums.totals() == page.total == Totals(2, 1, 576, 256, 0, 3_413_000_000, 0)
    assert (page.users_total, page.next_cursor, page.as_of) == (1, None, NOON)


async def test_users_of_other_projects_are_not_seen() -> None:
    rig = Rig()
    other = make_key(new_secret(), at=0, project="other")
    rig.feed(Usage(1, "theirs"), key=other)
    assert ids(await rig.users()) == []
    assert (await rig.users(model="gpt-4o")).users_total == 0
    with pytest.raises(Refused, match="no such user"):
        await rig.reads.get_user(KEY, "theirs", {}, None)


async def test_events_without_a_user_are_a_row_of_their_own() -> None:
    rig = Rig()
    rig.feed(Usage(1, None), Usage(2, "a"), Usage(3, "b"))
    assert ids(await rig.users()) == [None, "a", "b"]
    for more in ({}, {"model": "gpt-4o"}):
        page = await rig.users(unattributed="true", **more)
        assert ids(page) == [None]
        assert (page.users_total, page.total.requests) == (1, 1)
    assert ids(await rig.users(unattributed="false")) == [None, "a", "b"]
    assert ids(await rig.users(unattributed="true", model="none")) == []


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"model": "m1"}, {"a": 2, "b": 1}),
        ({"environment": "test"}, {"b": 2}),
        ({"model": "m1", "environment": "test"}, {"b": 1}),
        ({"start": "2026-04-20"}, {"a": 1, "b": 2}),
        ({"end": "2026-04-20"}, {"a": 1}),
        ({"start": "2026-04-19T00:00:00Z", "end": "2026-04-20T02:00:00+02:00"}, {"a": 1}),
        ({"start": "2026-04-20", "end": "2026-04-20"}, {}),
        ({"start": "2026-04-21", "end": "2026-04-19"}, {}),
        ({"start": "0001-01-01", "end": "9999-12-31"}, {"a": 2, "b": 2}),
        ({"projectId": "default", "after": "taken out before"}, {"a": 2, "b": 2}),
    ],
)
async def test_filters(params: dict[str, str], expected: dict[str, int]) -> None:
    rig = Rig(partitions=2)
    rig.feed(
        Usage(1, "a", model="m1"),
        Usage(2, "a", model="m1", at=NOON - DAY),
        Usage(3, "b", model="m1", environment="test"),
        Usage(4, "b", model="m2", environment="test"),
    )
    page = await rig.users(**params)
    assert {user.user_id: user.sums.requests for user in page.users} == expected
    assert (page.total.requests, page.users_total) == (sum(expected.values()), len(expected))


async def test_times_of_a_filtered_row_are_those_of_the_range() -> None:
    rig = Rig()
    rig.feed(Usage(1, at=NOON), Usage(2, at=NOON - DAY), Usage(3, at=NOON - 1))
    (user,) = (await rig.users(start="2026-04-20")).users
    assert (user.sums.first_seen, user.sums.last_seen) == (NOON - 1, NOON)


async def test_sorts() -> None:
    rig = Rig()
    rig.feed(
        Usage(1, "cost", cost=9 * 10**18, input_tokens=0, output_tokens=0),
        Usage(2, "requests", cost=0, input_tokens=0, output_tokens=0),
        Usage(3, "requests", cost=0, input_tokens=0, output_tokens=0),
        Usage(4, "input", cost=1, input_tokens=900, output_tokens=0),
        Usage(5, "output", cost=1, output_tokens=900, input_tokens=0),
        Usage(6, "seen", cost=0, at=NOON + 5, input_tokens=0, output_tokens=0),
    )
    assert ids(await rig.users())[0] == "cost"
    for sort, first in zip(SORTS, ("cost", "requests", "input", "output", "seen"), strict=True):
        assert ids(await rig.users(sort=sort))[0] == first
        assert ids(await rig.users(sort=sort, environment="production"))[0] == first


user_ids = st.none() | st.text(min_size=1, max_size=2)


@given(
    amounts=st.lists(st.tuples(user_ids, st.integers(0, 2), st.sampled_from(["m1", "m2"])), max_size=40),
    sort=st.sampled_from(list(SORTS)),
    limit=st.integers(1, 7),
    filters=st.sampled_from([{}, {"model": "m1"}, {"start": "2026-04-20"}, {"unattributed": "true"}]),
)
def test_paging_visits_every_user_once_in_order(
    amounts: list[tuple[str | None, int, str]], sort: str, limit: int, filters: dict[str, str]
) -> None:
    async def walk() -> list[UserPage]:
        rig = Rig(partitions=2)
        if amounts:
            rig.feed(
                *(
                    Usage(
                        n, user, cost=amount, input_tokens=amount, output_tokens=amount, model=model, at=NOON + amount
                    )
                    for n, (user, amount, model) in enumerate(amounts)
                )
            )
        pages = [await rig.users(sort=sort, limit=str(limit), **filters)]
        while (cursor := pages[-1].next_cursor) is not None:
            assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
            pages.append(await rig.users(sort=sort, limit=str(limit), cursor=cursor, **filters))
        return pages

    pages = asyncio.run(walk())
    users = [user for page in pages for user in page.users]
    model, only_null = filters.get("model"), "unattributed" in filters
    expected = {user for user, _, of in amounts if (not model or of == model) and (not only_null or user is None)}
    assert len(users) == len(expected)
    assert {user.user_id for user in users} == expected

    def value(sums: RowSums) -> int:
        values = {"cost_usd": sums.cost, "requests": sums.requests, "input_tokens": sums.input_tokens}
        return {**values, "output_tokens": sums.output_tokens, "last_seen": sums.last_seen}[sort]

    order = [(-value(user.sums), user.user_id or "") for user in users]
    assert order == sorted(order)
    assert all(len(page.users) == limit for page in pages[:-1])
    assert pages[-1].users or len(pages) == 1
    for page in pages:
        assert page.users_total == len(users)
        for name in Totals.__struct_fields__:
            assert getattr(page.total, name) == sum(getattr(user.sums, name) for user in users)


amounts = st.integers(0, 3) | st.integers(CAP - 1, CAP + 2)


@given(
    values=st.lists(amounts, max_size=30),
    after=st.none() | st.tuples(amounts, st.sampled_from(["", "u1", "u15", "zz"])),
    count=st.integers(1, 12),
)
def test_top_is_the_head_of_the_sorted_list(values: list[int], after: tuple[int, str] | None, count: int) -> None:
    names = ["" if n == 0 else f"u{n}" for n in range(len(values))]
    known = Names()
    known.add([name.encode() for name in names])
    whole = sorted(range(len(values)), key=lambda n: (-values[n], names[n]))
    behind = [n for n in whole if after is None or (-values[n], names[n]) > (-after[0], after[1])]
    keys = np.array([min(value, CAP) for value in values], np.int64)
    found = top(keys, np.arange(len(keys)), known, values.__getitem__, after, count)
    assert found == behind[:count]


async def test_a_user_that_rises_past_the_cursor_does_not_come_twice() -> None:
    rig = Rig()
    rig.feed(*(Usage(n, f"u{n}", cost=n) for n in range(1, 6)))
    page = await rig.users(limit="2")
    assert ids(page) == ["u5", "u4"]
    rig.feed(Usage(9, "u4", cost=5), Usage(10, "u1", cost=50))
    assert page.next_cursor is not None
    assert ids(await rig.users(limit="5", cursor=page.next_cursor)) == ["u3", "u2"]


async def test_a_cursor_belongs_to_its_query() -> None:
    rig = Rig()
    rig.feed(Usage(1, "a"), Usage(2, "b"))
    cursor = (await rig.users(limit="1", sort="requests")).next_cursor
    assert cursor is not None
    assert ids(await rig.users(limit="1000", sort="requests", cursor=cursor)) == ["b"]
    others: list[dict[str, str]] = [
        {},
        {"sort": "cost_usd"},
        {"sort": "requests", "model": "gpt-4o"},
        {"sort": "requests", "environment": "gpt-4o"},
        {"sort": "requests", "start": "2026-04-20"},
        {"sort": "requests", "end": "2026-04-20"},
        {"sort": "requests", "unattributed": "true"},
    ]
    for other in others:
        with pytest.raises(Refused, match="cursor belongs to a query"):
            await rig.users(cursor=cursor, **other)
    with pytest.raises(Refused, match="cursor belongs to a query"):
        await rig.reads.list_users(
            make_key(new_secret(), at=0, project="other"), {"sort": "requests", "cursor": cursor}, None
        )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sort": "name"}, "sort must be one of cost_usd, requests, input_tokens, output_tokens, last_seen"),
        ({"limit": "0"}, "limit must be a whole number from 1 to 1000"),
        ({"limit": "1001"}, "limit must be a whole number from 1 to 1000"),
        ({"limit": ""}, "limit must be a whole number from 1 to 1000"),
        ({"limit": "٣"}, "limit must be a whole number from 1 to 1000"),
        ({"limit": "1e2"}, "limit must be a whole number from 1 to 1000"),
        ({"start": "yesterday"}, "start must be an RFC 3339 time with Z, or a date (YYYY-MM-DD)"),
        ({"start": ""}, "start must be an RFC 3339 time with Z, or a date (YYYY-MM-DD)"),
        ({"end": "2026-02-30"}, "end must be an RFC 3339 time with Z, or a date (YYYY-MM-DD)"),
        ({"end": "2026-04-20T12:00:00"}, "end must be an RFC 3339 time with Z, or a date (YYYY-MM-DD)"),
        ({"end": "2026-04-20T12:00:00Z"}, "end must be midnight UTC: users' costs are kept by UTC day"),
        ({"start": "2026-04-20T00:00:00+02:00"}, "start must be midnight UTC: users' costs are kept by UTC day"),
        ({"unattributed": "yes"}, "unattributed must be true or false"),
        ({"model": ""}, "model must not be empty"),
        ({"environment": ""}, "environment must not be empty"),
        ({"cursor": ""}, "cursor is not one that this server gave out"),
        ({"cursor": "ä"}, "cursor is not one that this server gave out"),
        ({"cursor": "A"}, "cursor is not one that this server gave out"),
        ({"cursor": "WzFd"}, "cursor is not one that this server gave out"),
        (
            {"user": "u1"},
            f"unknown parameter 'user'; known are {KNOWN}",
        ),
    ],
)
async def test_a_wrong_parameter_is_named(params: dict[str, str], message: str) -> None:
    with pytest.raises(Refused) as caught:
        await Rig().users(**params)
    assert (caught.value.reason, caught.value.message) == ("bad_request", message)


@given(st.text(max_size=40))
def test_no_cursor_breaks_the_server(cursor: str) -> None:
    with pytest.raises(Refused):
        asyncio.run(Rig().users(cursor=cursor))


async def test_another_project_is_forbidden() -> None:
    rig = Rig()
    for ask in (rig.reads.list_users(KEY, OTHER, None), rig.reads.get_user(KEY, "u1", OTHER, None)):
        with pytest.raises(Refused) as caught:
            await ask
        assert caught.value.reason == "forbidden"


async def test_many_users_are_listed_in_a_thread() -> None:
    rig = Rig()
    rig.view.apply(
        0,
        [
            (
                encode_key(0, "user", "default", f"u{n:05d}", TODAY, "openai", "m", "e"),
                b"[0,1,0,0,0,0,%d,0,5,5]" % (n % 7),
            )
            for n in range(SMALL + 500)
        ],
    )
    for filters in ({}, {"model": "m"}):
        page = await rig.users(limit="3", **filters)
        assert ids(page) == ["u00006", "u00013", "u00020"]
        assert page.users_total == page.total.requests == SMALL + 500


# --- one user --------------------------------------------------------------------------------------------------------


async def test_one_user_by_model_and_by_day() -> None:
    rig = Rig(partitions=3)
    rig.feed(
        Usage(1, "u/1 ü", model="cheap", cost=1, at=NOON - DAY),
        Usage(2, "u/1 ü", model="dear", cost=5),
        Usage(3, "u/1 ü", model="dear", cost=6, environment="test"),
        Usage(4, "u/1 ü", model="cheap", cost=2, at=NOON + DAY),
        Usage(5, "u/1 ü", model="same", provider="custom", cost=3),
        Usage(6, "other", model="dear", cost=99),
    )
    detail = await rig.reads.get_user(KEY, "u/1 ü", {}, None)
    assert (detail.user.sums.requests, detail.user.sums.cost) == (5, 17)
    assert (detail.user.sums.first_seen, detail.user.sums.last_seen) == (NOON - DAY, NOON + DAY)
    assert [(row.provider, row.model, row.totals.requests, row.totals.cost) for row in detail.by_model] == [
        ("openai", "dear", 2, 11),
        ("custom", "same", 1, 3),
        ("openai", "cheap", 2, 3),
    ]
    assert [(row.day - TODAY, row.totals.cost) for row in detail.by_day] == [(-1, 1), (0, 14), (1, 2)]

    detail = await rig.reads.get_user(KEY, "u/1 ü", {"start": "2026-04-20", "end": "2026-04-21"}, None)
    assert (detail.user.sums.cost, len(detail.by_model), len(detail.by_day)) == (14, 2, 1)


async def test_a_known_user_without_events_in_the_range_is_all_zeros() -> None:
    rig = Rig()
    rig.feed(Usage(1, "u1"))
    detail = await rig.reads.get_user(KEY, "u1", {"end": "2000-01-01"}, None)
    assert detail.user.sums == RowSums()
    assert detail.by_model == []
    assert detail.by_day == []


async def test_an_unknown_user_is_not_found_and_faults_are_named() -> None:
    rig = Rig()
    with pytest.raises(Refused) as caught:
        await rig.reads.get_user(KEY, "nobody", {}, None)
    assert caught.value.reason == "not_found"
    with pytest.raises(Refused, match="unknown parameter 'model'; known are start, end, projectId, after"):
        await rig.reads.get_user(KEY, "nobody", {"model": "m"}, None)


# --- the quota -------------------------------------------------------------------------------------------------------


async def test_quota_without_a_limit() -> None:
    rig = Rig()
    quota = await rig.reads.get_quota(KEY, None)
    assert (quota.organization, quota.period, quota.limit, quota.used) == ("default", "2026-04", None, 0)
    assert quota.remaining is None
    assert quota.resets_at == parse_timestamp("2026-05-01T00:00:00Z")
    assert set(quota.windows) == {"minute", "hour", "day", "month"}


async def test_quota_counts_arrivals_of_all_projects_in_the_current_windows() -> None:
    rig = Rig(partitions=2)
    rig.directory.apply(*organization_record(Organization("default", 10)))
    rig.feed(Usage(1), arrival=NOON - HOUR)
    rig.feed(Usage(1), Usage(2, cost=1), arrival=NOON - MINUTE)
    rig.feed(Usage(2, cost=2), key=make_key(new_secret(), at=0, project="other"))
    rig.feed(Usage(2, cost=2), Usage(5, at=NOON - 90 * DAY))
    rig.feed(Usage(1), key=make_key(new_secret(), at=0, organization="theirs"))
    quota = await rig.reads.get_quota(KEY, None)
    assert (quota.limit, quota.used, quota.remaining, quota.duplicates, quota.conflicts) == (10, 4, 6, 2, 1)
    assert {kind: window.used for kind, window in quota.windows.items()} == {
        "minute": 2,
        "hour": 2,
        "day": 4,
        "month": 4,
    }
    assert {kind: window.limit for kind, window in quota.windows.items()} == {
        "minute": None,
        "hour": None,
        "day": None,
        "month": 10,
    }
    rig.now = next_month(NOON)
    quota = await rig.reads.get_quota(KEY, None)
    assert (quota.period, quota.used, quota.remaining) == ("2026-05", 0, 10)


# --- read your own writes --------------------------------------------------------------------------------------------


async def test_a_read_waits_for_its_position() -> None:
    rig = Rig()
    offsets = rig.worker.send([Usage(1)])
    token = position.encode(IDENTITY, offsets)
    asked = asyncio.create_task(rig.reads.list_users(KEY, {}, token))
    await asyncio.sleep(0)
    assert not asked.done()
    rig.view.apply(0, rig.worker.work(0))
    rig.arrivals.notify()
    assert ids(await asked) == ["u1"]
    assert (await rig.reads.get_user(KEY, "u1", {}, token)).user.sums.requests == 1
    assert (await rig.reads.get_quota(KEY, token)).used == 1


async def test_a_position_that_does_not_come_and_one_of_another_log() -> None:
    rig = Rig()
    for token, reason in ((position.encode(IDENTITY, {0: 0}), "not_yet_visible"), ("beef_0-1", "bad_request")):
        with pytest.raises(Refused) as caught:
            await rig.reads.get_quota(KEY, token)
        assert caught.value.reason == reason
