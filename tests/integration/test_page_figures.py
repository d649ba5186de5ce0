"""The page's figures: what a chart, a table, a file and the events behind them say is the same to the last digit."""

import csv
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support import browser as browsers
from tests.support.agent_traffic import event, stamp
from tests.support.browser import Visit, box_of, visit
from tests.support.event_views import asked, dollars, rows, settled, whole
from tests.support.fake_events_api import Fake, fake_api, sums

pytestmark = [pytest.mark.browser, pytest.mark.slow]

expect.set_options(timeout=browsers.PATIENCE)

ZONES: Final = ("UTC", "Asia/Kolkata", "America/New_York")
FIRST: Final = date(2026, 10, 29)
"""The first of seven days; in New York the fourth has 25 hours."""
DAYS: Final = 7
MODELS: Final = 40
NAMES: Final = {"requests": "Requests", "input_tokens": "Input tokens", "cost_usd": "Cost"}

Event = dict[str, Any]
Row = dict[str, str]


@pytest.fixture
def seen(chrome: Browser) -> Iterator[Callable[[list[Event]], tuple[Visit, Fake]]]:
    """`seen(events)`: a signed-in tab. What should not have been in it fails the test."""
    opened: list[Any] = []

    def open_on(events: list[Event]) -> tuple[Visit, Fake]:
        opened.append(fake_api(events))
        fake = opened[0].__enter__()
        opened.append(visit(chrome, cast(Any, fake)))
        made = opened[1].__enter__()
        made.sign_in(fake.key)
        expect(made.page.get_by_label("API key")).to_be_hidden()
        return made, fake

    yield open_on
    for each in reversed(opened):
        each.__exit__(None, None, None)


def saved(page: Page) -> list[Row]:
    """The rows of the file that the button CSV gives."""
    with page.expect_download() as waiting:
        page.get_by_role("button", name="CSV", exact=True).click()
    with Path(waiting.value.path()).open(newline="") as file:
        return list(csv.DictReader(file))


def by_interval(page: Page, title: str) -> dict[str, list[str]]:
    """The table of a measure over time: the interval's name -> its cells."""
    table = page.get_by_role("region", name=f"{title} over time: table")
    if not table.is_visible():
        page.get_by_text("By interval, as a table").click()
    expect(table.locator("tbody tr").first).to_be_visible()
    lines = table.locator("tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.cells].map((each) => each.textContent))"
    )
    return {line[0]: line[1:] for line in lines}


# --- days of a zone --------------------------------------------------------------------------------------------------


def days_of(zone: str) -> list[tuple[datetime, datetime]]:
    """Each day of the week from its first instant to the one behind its last."""
    starts = [datetime.combine(FIRST + timedelta(days=at), time(), ZoneInfo(zone)) for at in range(DAYS + 1)]
    return [(start.astimezone(UTC), end.astimezone(UTC)) for start, end in pairwise(starts)]


@pytest.mark.parametrize("zone", ZONES)
def test_check_2_days_of_a_zone_are_the_same_in_chart_table_file_and_events(
    seen: Callable[[list[Event]], tuple[Visit, Fake]], zone: str
) -> None:
    began = datetime(2026, 10, 28, tzinfo=UTC)
    made = [event(n, began + timedelta(minutes=37 * n), cost_usd=Decimal(10**9 + n**3) / 10**12) for n in range(380)]
    tab, _ = seen(made)
    page, days = tab.page, days_of(zone)
    wanted = [
        sum((each["cost_usd"] for each in made if stamp(start) <= each["timestamp"] < stamp(end)), Decimal(0))
        for start, end in days
    ]
    query = {"measures": "cost_usd", "start": stamp(days[0][0]), "end": stamp(days[-1][1])}
    page.goto(f"{tab.origin}/#/explore?{urlencode(query | ({} if zone == 'UTC' else {'tz': zone}))}")
    settled(page)
    names = [f"{FIRST + timedelta(days=at)}" for at in range(DAYS)]
    table = by_interval(page, "Cost")
    assert {name: dollars(cells[-1]) for name, cells in table.items()} == dict(zip(names, wanted, strict=True))
    assert dollars(page.locator(".explore-table .total td").first.inner_text()) == sum(wanted)
    lines = [row for row in saved(page) if row["start_utc"]]
    totals = [row for row in lines if row["model"] == "Total"] or lines
    assert [(row[f"start {zone}"][:10], Decimal(row["cost_usd"])) for row in totals] == list(
        zip(names, wanted, strict=True)
    )
    assert [datetime.fromisoformat(row["start_utc"]) for row in totals] == [start for start, _ in days]
    chart = page.locator("#view-explore .stage").first
    for at in range(DAYS):
        chart.focus()
        page.keyboard.press("Home")
        for _ in range(at):
            page.keyboard.press("ArrowRight")
        expect(page.locator("#view-explore .when").first).to_have_text(names[at])
        assert dollars(page.locator("#view-explore .legend b").first.inner_text()) == wanted[at]
        page.keyboard.press("Enter")
        expect(page.locator("#range-button")).to_have_text(names[at])
        settled(page)
        cells = rows(page, "events").locator(".sum").all_inner_texts()
        assert (len(cells) < 50, sum(map(dollars, cells))) == (True, wanted[at])
        page.go_back()
        expect(chart).to_be_visible()
    assert (tab.faults, tab.strangers) == ([], [])


# --- groups, Other and Total -----------------------------------------------------------------------------------------


def test_check_3_groups_and_other_are_the_total(seen: Callable[[list[Event]], tuple[Visit, Fake]]) -> None:
    began = datetime(2026, 11, 20, tzinfo=UTC)
    made = [
        event(
            n,
            began + timedelta(minutes=29 * n),
            model=f"model-{(n % 7 if n % 3 else n % MODELS):02}",
            input_tokens=n,
            cost_usd=Decimal(n * n + 1) / 10**12,
        )
        for n in range(300)
    ] + [event(1000 + n, began, model=f"model-{n:02}", cost_usd=Decimal(n) / 10**12) for n in range(MODELS)]
    assert len({each["model"] for each in made}) == MODELS
    tab, fake = seen(made)
    page = tab.page
    query = [("measures", name) for name in NAMES] + [
        ("limit", "5"),
        ("start", stamp(began)),
        ("end", "2026-11-27T00:00:00Z"),
    ]
    page.goto(f"{tab.origin}/#/explore?{urlencode(query)}")
    settled(page)
    total = {"requests": len(made), **{name: sums(made)[name] for name in ("input_tokens", "cost_usd")}}
    value: dict[str, Callable[[str], Any]] = {"requests": whole, "input_tokens": whole, "cost_usd": dollars}
    head = page.locator(".explore-table thead th").all_inner_texts()
    lines = [row.locator("th, td").all_inner_texts() for row in page.locator(".explore-table tbody tr").all()]
    assert [line[0] for line in lines[-2:]] == ["Other", "Total"]
    assert len(asked(fake, "/v1/metrics")) == 1, "the total has a series of its own"
    assert len(lines) == 5 + 2
    file = saved(page)
    for name, title in NAMES.items():
        column = [value[name](line[head.index(title)]) for line in lines]
        assert (column[-1], sum(column[:-1])) == (total[name], total[name]), name
        ranged = [Decimal(row[name]) for row in file if row["model"] and not row["start_utc"]]
        assert ranged == column, name
        over_time = [row for row in file if row["start_utc"] and row["model"]]
        parts = [Decimal(row[name]) for row in over_time if row["model"] != "Total"]
        sums_of_days = [Decimal(row[name]) for row in over_time if row["model"] == "Total"]
        assert sum(parts) == sum(sums_of_days) == total[name], name
        legend_is_the_table(page, name, title, value[name], column)
    assert "largest groups" in file[-1]["start_utc"]
    assert (tab.faults, tab.strangers) == ([], [])


def legend_is_the_table(page: Page, name: str, title: str, value: Callable[[str], Any], ranged: list[Any]) -> None:
    """What is read off a chart, over all and at each bar, is what the tables say."""
    figure = page.locator("#view-explore figure").nth(list(NAMES).index(name))
    figures = figure.locator(".legend b")
    expect(figure.locator(".when")).to_have_text("")
    assert [value(text) for text in figures.all_inner_texts()] == ranged
    table = by_interval(page, title)
    over = figure.locator(".u-over")
    box = box_of(over)
    assert box is not None
    for at, (day, cells) in enumerate(sorted(table.items())):
        over.hover(position={"x": box["width"] * (at + 0.5) / len(table), "y": 20})
        expect(figure.locator(".when")).to_have_text(day)
        assert figures.all_inner_texts() == cells
        texts = [value(text) for text in cells]
        assert sum(texts[:-1]) == texts[-1]
    page.mouse.move(0, 0)


# --- a trace ---------------------------------------------------------------------------------------------------------


def odd_trace(began: datetime) -> list[Event]:
    """Spans, an orphan, a cycle, a repeated span, an unpriced call, a step outside its parent."""
    cost = Decimal
    steps: list[tuple[str, str | None, str, dict[str, Any]]] = [
        ("root", None, "root", {"latency_ms": 1000, "kind": "span", "cost_usd": None}),
        ("a", "root", "late", {"latency_ms": 2000, "cost_usd": cost("0.1")}),
        ("a", "root", "again", {"cost_usd": None}),
        ("o", "gone", "orphan", {"cost_usd": cost("0.000000000001")}),
        ("x", "y", "x", {"cost_usd": cost(2)}),
        ("y", "x", "y", {"cost_usd": cost(3)}),
    ]
    own = {"trace_id": "odd", "user_id": "u", "session_id": "s"}
    return [
        event(number, began, span_id=span, parent_span_id=parent, name=name, **own, **fields)
        for number, (span, parent, name, fields) in enumerate(steps)
    ]


def beside(pane: Locator, title: str) -> int:
    """The count that a step's pane has beside a title."""
    value = pane.locator("dt", has_text=title).locator("xpath=following-sibling::dd[1]")
    return whole(value.inner_text())


def test_check_7_roots_header_list_and_metrics_say_the_same(
    seen: Callable[[list[Event]], tuple[Visit, Fake]],
) -> None:
    made = odd_trace(datetime.now(UTC) - timedelta(hours=1))
    tab, _ = seen(made)
    page, total = tab.page, sums(made)
    tokens = total["input_tokens"] + total["output_tokens"]
    page.goto(f"{tab.origin}/#/traces?range=24h")
    line = rows(page, "traces").first
    assert dollars(line.locator(".sum").inner_text()) == total["cost_usd"] == Decimal("5.100000000001")
    assert whole(line.locator("td").nth(4).inner_text()) == tokens
    line.get_by_role("link").first.click()
    facts = page.locator("#view-traces .facts")
    expect(facts).to_contain_text(f"{tokens:,} tokens")
    expect(facts).to_contain_text("+1 unpriced")
    assert dollars(page.locator(".t-total .sum").inner_text()) == total["cost_usd"]
    for mark in ("orphan", "cycle", "out"):
        expect(page.locator(f".t-row.{mark}:visible")).to_have_count(1)
    roots = page.locator(".t-row[aria-level='1']:visible")
    pane = page.get_by_role("complementary", name="The selected step")
    found: list[tuple[Decimal, int, int]] = []
    for at in range(roots.count()):
        roots.nth(at).locator(".t-line").click()
        expect(pane.locator("h2")).to_have_text(roots.nth(at).locator(".t-name").inner_text())
        below = pane.locator(".t-subtree")
        counts = beside(pane, "Tokens with"), beside(pane, "Calls with")
        found.append((dollars(below.locator(".sum").inner_text()), *counts))
        assert ("unpriced" in below.inner_text()) is (at == 0)
    assert len(found) == 3
    assert tuple(map(sum, zip(*found, strict=True))) == (total["cost_usd"], tokens, total["calls"])
    measures = ("cost_usd", "input_tokens", "output_tokens", "requests", "unpriced")
    query = [("measures", name) for name in measures[:4]] + [("trace_id", "odd"), ("range", "24h"), ("group_by", "")]
    page.goto(f"{tab.origin}/#/explore?{urlencode(query)}")
    cells = page.locator(".explore-table .total td")
    expect(cells.first).to_be_visible()
    shown = [text for text in cells.all_inner_texts() if not text.endswith("%")]
    assert (dollars(shown[0]), whole(shown[1]) + whole(shown[2]), whole(shown[3])) == (
        total["cost_usd"],
        tokens,
        total["calls"],
    )
    assert (tab.faults, tab.strangers) == ([], [])


# --- the overview ----------------------------------------------------------------------------------------------------


def test_of_more_users_than_an_answer_has_the_others_are_counted_and_summed(
    seen: Callable[[list[Event]], tuple[Visit, Fake]],
) -> None:
    now = datetime.now(UTC)
    made = [
        event(n, now - timedelta(minutes=n), user_id=f"user-{n}" if n else None, cost_usd=Decimal(n + 1) / 10**6)
        for n in range(1005)
    ]
    tab, _ = seen(made)
    page = tab.page
    page.goto(f"{tab.origin}/#/?environment=production")
    others = sum((Decimal(n + 1) / 10**6 for n in range(5)), Decimal(0))
    expect(page.locator("#users-sub")).to_have_text(
        "1,005 users, last 30 days; listed are the first 1,000, "
        f"the 5 others spent ${others.normalize():f} in 5 requests"
    )
    while page.locator("#more").is_visible():
        shown = page.locator("#users tbody tr").count()
        page.locator("#more").click()
        expect(page.locator("#users tbody tr")).not_to_have_count(shown)
    costs = page.locator("#users tbody td.money").all_inner_texts()
    assert (len(costs), sum(map(dollars, costs)) + others) == (1000, sums(made)["cost_usd"])
    page.locator("#search").fill("user-399")
    expect(page.locator("#users-sub")).to_contain_text("1 found among the first 1,000")
    page.locator("#search").fill("user-0001")
    expect(page.locator("#users-none")).to_contain_text("None of the first 1,000 users")
    page.locator("#search").fill("user-2")  # as it is: the search is among the others too
    expect(page.locator("#users tbody")).to_contain_text("user-2")


def test_a_model_has_the_same_colour_in_every_view(seen: Callable[[list[Event]], tuple[Visit, Fake]]) -> None:
    now = datetime.now(UTC)
    tab, _ = seen([event(n, now - timedelta(hours=n), model=f"model-{n % 5}") for n in range(40)])
    colours = []
    for address, legend in (("", "#chart .legend"), ("explore?group_by=model", "#view-explore .legend")):
        tab.page.goto(f"{tab.origin}/#/{address}")
        items = tab.page.locator(f"{legend} li:has(.swatch)")
        expect(items).to_have_count(5)
        found = items.evaluate_all(
            "items => items.map((each) => [/model-./.exec(each.textContent)[0], each.querySelector('i').className])"
        )
        colours.append(dict(found))
    assert colours[0] == colours[1]
    assert len(set(colours[0].values())) == 5


def test_the_overview_of_a_zone_and_of_filters_is_made_of_the_same_events(
    seen: Callable[[list[Event]], tuple[Visit, Fake]],
) -> None:
    began = datetime(2026, 10, 28, tzinfo=UTC)
    made = [
        event(
            n,
            began + timedelta(minutes=37 * n),
            cost_usd=Decimal(10**9 + n**3) / 10**12,
            user_id=f"user-{n % 4}",
            environment=("production", "staging")[n % 3 == 0],
            model=f"model-{n % 2}",
        )
        for n in range(380)
    ]
    tab, fake = seen(made)
    page = tab.page
    week = {"start": "2026-10-29T04:00:00.000Z", "end": "2026-11-05T05:00:00.000Z", "tz": "America/New_York"}
    for more in ({}, {"environment": "staging"}):
        page.goto(f"{tab.origin}/#/?{urlencode(week | more)}")
        expect(page.locator("#kept")).to_contain_text("America/New_York")
        expect(page.locator("#t-spend-sub")).to_have_text("2026-10-29 to 2026-11-04")
        own = [
            each
            for each in made
            if week["start"] <= each["timestamp"] < week["end"]
            and each["environment"] == more.get("environment", each["environment"])
        ]
        total = sums(own)["cost_usd"]
        expect(page.locator("#t-spend")).to_have_text(f"${total.normalize():f}")
        expect(page.locator("[aria-busy]")).to_have_count(0)  # users are listed after the tiles
        if page.locator("#chart details").get_attribute("open") is None:
            page.get_by_text("Show as a table").first.click()
        expect(page.locator("#chart tbody tr")).to_have_count(DAYS)
        lines = [line.locator("th, td").all_inner_texts() for line in page.locator("#chart tbody tr").all()]
        wanted = {
            f"{FIRST + timedelta(days=at)}": sums(
                [each for each in own if stamp(start) <= each["timestamp"] < stamp(end)]
            )
            for at, (start, end) in enumerate(days_of("America/New_York"))
        }
        assert {line[0]: sum(map(dollars, line[1:])) for line in lines} == {
            day: found["cost_usd"] for day, found in wanted.items()
        }
        costs = page.locator("#users tbody td.money").all_inner_texts()
        assert (len(costs), sum(map(dollars, costs))) == (4, total)
        page.locator("#users tbody a").first.click()
        expect(page.locator("#p-cost")).to_have_text(costs[0])
        assert sum(map(dollars, page.locator("#p-models td.money").all_inner_texts())) == dollars(costs[0])
        page.go_back()
    fake.fail["/v1/metrics"] = (501, {"error": "off", "reason": "event_store_off"}, {})
    page.reload()
    expect(page.get_by_role("alert").filter(has_text="SPENDSTREAM_EVENT_STORE")).to_be_visible()
    expect(page.locator("#overview")).to_be_hidden()
    page.goto(f"{tab.origin}/#/?start=2026-10-29T00:00:00.000Z&end=2026-11-05T00:00:00.000Z")
    expect(page.locator("#chart-sub")).to_contain_text("from 2026-10-29 to 2026-11-04")
    assert [fault for fault in tab.faults if "501" not in fault] == []
