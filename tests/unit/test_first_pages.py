"""The first of many users, found among the few that are kept: always what all of them would give."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from processor.core.tables.table_rows import Sums, encode_key, encode_value
from processor.view.listing import Listing
from processor.view.query import SORTS
from processor.view.view import View
from server.reads.params import parse_users
from tests.support.examples import tries

USERS = 2_500
MONTH = 2
"""The day with which "this month" begins."""
SINCE = {"start": "1970-01-03"}


def changes(users: list[int], sums: Sums | None, day: int = 1) -> list[tuple[bytes, bytes | None]]:
    value = None if sums is None else encode_value(sums)
    return [(encode_key(0, "user", "p", f"u{user}", day, "openai", "m", "e"), value) for user in users]


def spent(cost: int, at: int = 5) -> Sums:
    return Sums(b"", 1, 1, 0, cost % 7, cost % 11, 0, cost, 0, 5, at)


def first_pages(view: View, **params: str) -> Iterator[tuple[Listing | None, Listing]]:
    """Page by page: as found among the leaders, and as found among all."""
    cursor: dict[str, str] = {}
    for _ in range(4):
        query = parse_users("p", {"limit": "40", **params, **cursor})
        dims = [dim for dim in view.dims("p") if dim.at in query.days]
        page = view.filtered(query, dims) if query.is_filtered else view.all_time(query)
        yield view.first(query, MONTH), page
        if not page.more:
            break
        user, sums = page.users[-1]
        cursor = {"cursor": query.cursor((query.value_of(sums), user or ""))}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.view.first_pages.KEPT", 100)
    monkeypatch.setattr("processor.view.first_pages.MOST", 150)
    monkeypatch.setattr("processor.view.view.SMALL", 100)


@pytest.mark.slow
@pytest.mark.parametrize("params", [{}, SINCE, {**SINCE, "end": "1970-01-05"}])
@pytest.mark.parametrize("most", [3, 10**6, 10**30])  # nearly all tied; none; some do not fit into columns
def test_pages_from_the_leaders_are_those_of_all_users(
    most: int, params: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.view.view.LARGE", 100)
    rng = random.Random(most)
    view = View()
    costs: dict[tuple[int, int], int] = {}

    def change(user: int, day: int, at: int) -> None:
        cost = costs[user, day] = costs.get((user, day), 0) + rng.randrange(most)
        view.apply(0, changes([user], spent(cost, at), day))

    for user, day in ((user, day) for user in range(400) for day in (1, rng.choice((2, 3)))):
        costs[user, day] = rng.randrange(most)
    view.apply(0, [each for (user, day), cost in costs.items() for each in changes([user], spent(cost), day)])
    found: Counter[bool] = Counter()
    for turn in range(tries(12, least=8)):
        for user in rng.sample(range(400 + 3 * turn), 20):
            change(user, rng.choice((1, 2, 2, 3)), 5 + turn)
        if turn % 4 == 3:  # less than before, or gone
            for user, day in rng.sample(sorted(costs), 20):
                costs[user, day] = rng.randrange(costs[user, day] + 1)
                sums = spent(costs[user, day], 5 + turn)
                view.apply(0, changes([user], sums if rng.randrange(2) else None, day))
        for sort in SORTS:
            for number, (kept, page) in enumerate(first_pages(view, sort=sort, **params)):
                assert kept in (None, page)
                if turn and turn % 4 != 3 and number == 0:
                    found[kept is not None] += 1
        view.tidy()
    if most < 10**30 or not params:  # of rows that do not fit into columns only what is over all time is kept
        assert found[True] > 10 * found[False]


def test_this_month_begins_anew_when_the_month_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.view.view.LARGE", 100)
    view = View()
    for day in (1, 2, 3):
        view.apply(0, changes(list(range(300)), spent(day), day))
    query = parse_users("p", SINCE)
    assert view.first(query, 3) is None, "that is another month"
    assert view.first(query, MONTH) is None
    view.tidy()
    page = view.first(query, MONTH)
    assert page is not None
    assert (page.size, page.totals.requests, page.totals.cost) == (300, 600, 1500)
    later = parse_users("p", {"start": "1970-01-04"})
    assert view.first(later, 3) is None
    view.tidy()
    page = view.first(later, 3)
    assert page is not None
    assert (page.size, page.totals.requests, page.totals.cost) == (300, 300, 900)
    assert view.first(parse_users("p", {**SINCE, "end": "1970-01-04"}), MONTH) is None, "the last day is not in it"
    assert view.first(parse_users("p", {**SINCE, "model": "m"}), MONTH) is None


def test_the_default_order_of_a_large_project_is_kept_before_anybody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.view.first_pages.LARGE", USERS)
    view = View()
    view.apply(0, changes(list(range(USERS - 1)), spent(5)))
    view.tidy()
    assert view.first(parse_users("p", {}), MONTH) is None
    view = View()
    view.apply(0, changes(list(range(USERS)), spent(5)))
    view.tidy()
    assert view.first(parse_users("p", {}), MONTH) == view.all_time(parse_users("p", {}))
    assert view.first(parse_users("p", {"sort": "requests"}), MONTH) is None
    view.tidy()
    assert view.first(parse_users("p", {"sort": "requests"}), MONTH) == view.all_time(
        parse_users("p", {"sort": "requests"})
    )


def test_a_longest_page_is_found_and_a_far_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    view = View()
    view.apply(0, [change for user in range(USERS) for change in changes([user], spent(user))])
    query = parse_users("p", {"limit": "1000"})
    assert view.first(query, MONTH) is None
    view.tidy()
    page = view.first(query, MONTH)
    assert page == view.all_time(query)
    assert [user for user, _ in page.users] == [f"u{user}" for user in range(USERS - 1, USERS - 1001, -1)]
    user, sums = page.users[-1]
    after = parse_users("p", {"limit": "1000", "cursor": query.cursor((query.value_of(sums), user or ""))})
    assert view.first(after, MONTH) is None


def test_users_that_nobody_looks_for_any_more_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View()
    view.apply(0, changes(list(range(USERS)), spent(5)))
    query = parse_users("p", {"sort": "last_seen"})
    assert view.first(query, MONTH) is None
    view.tidy()
    assert view.first(query, MONTH) is not None
    monkeypatch.setattr("processor.view.first_pages.UNASKED", -1.0)
    view.tidy()
    assert view.first(query, MONTH) is None


def test_when_most_users_are_gone_the_rest_is_found_anew() -> None:
    view = View()
    view.apply(0, [change for user in range(USERS) for change in changes([user], spent(user))])
    query = parse_users("p", {"limit": "40"})
    assert view.first(query, MONTH) is None
    view.tidy()
    assert view.first(query, MONTH) is not None
    view.apply(0, changes(list(range(1000, USERS)), None))
    assert view.first(query, MONTH) is None
    view.tidy()
    page = view.first(query, MONTH)
    assert page == view.all_time(query)
    assert page.size == 1000
    assert page.users[0][0] == "u999"
