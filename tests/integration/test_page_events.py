"""The views of the page on events, in a real browser, against a stand-in for the server with events in memory."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from server.http_api import static_files
from tests.support import browser as browsers
from tests.support import fake_events_api
from tests.support.agent_traffic import event, month
from tests.support.browser import Visit, box_of, visit
from tests.support.event_views import LONG_TASK, asked, dollars, heap, rows, watched
from tests.support.fake_events_api import Fake, fake_api, sums
from tests.support.page_views import CONTENT
from tests.support.server import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NOW: Final = datetime.now(UTC)
SMALL: Final = {"width": 375, "height": 812}
expect.set_options(timeout=browsers.PATIENCE)


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    """A month of an agent's events; tests leave it as it is."""
    with fake_api(month(400, NOW)) as started:
        yield started


@pytest.fixture(scope="module")
def tab(chrome: Browser, fake: Fake) -> Iterator[Visit]:
    """One signed-in tab, in a window of its own, for all tests that need no more: signing in costs as much as one."""
    with visit(chrome, cast(Any, fake), color_scheme="light") as seen:
        seen.sign_in(fake.key)
        expect(seen.page.get_by_label("API key")).to_be_hidden()
        yield seen


@pytest.fixture
def opened(tab: Visit, fake: Fake) -> Iterator[Callable[[str], Page]]:
    """`opened(hash)`: the tab at an address. What should not have been in it fails the test."""
    fake.asked.clear()

    def open_at(address: str) -> Page:
        tab.page.goto(f"{tab.origin}/{address}")
        return tab.page

    try:
        yield open_at
        assert (tab.faults, tab.strangers) == ([], [])
    finally:
        tab.start_anew()


# --- addresses -------------------------------------------------------------------------------------------------------


def test_pain_2_what_is_shared_goes_along_between_views(opened: Callable[[str], Page]) -> None:
    page = opened("#/events?range=7d&environment=production&tz=Europe/Berlin&model=gpt-5")
    for name in ("Explore", "Traces", "Sessions", "Prompts", "Overview"):
        page.locator("#views").get_by_role("link", name=name).click()
        assert "range=7d" in page.url
        assert "environment=production" in page.url
        assert "tz=Europe%2FBerlin" in page.url
        assert "model=gpt-5" in page.url
    expect(page.locator("#kept")).to_contain_text("Days are those of Europe/Berlin")


def test_an_unknown_parameter_is_named_and_kept(opened: Callable[[str], Page]) -> None:
    page = opened("#/events?colour=red&range=7d")
    expect(page.locator("#bar-note")).to_contain_text("colour")
    page.get_by_role("button", name="Newest first").click()
    assert "colour=red" in page.url


def test_the_zone_is_one_for_the_whole_page(chrome: Browser, fake: Fake) -> None:
    with visit(chrome, cast(Any, fake), timezone_id="America/New_York", locale="de-DE") as seen:
        seen.page.goto(f"{seen.origin}/#/events")
        seen.sign_in(fake.key)
        first = rows(seen.page, "events").first.locator("time")
        utc = first.inner_text()
        expect(seen.page.locator("#zone")).to_have_text("UTC")
        seen.page.locator("#zone").click()
        expect(seen.page.locator("#zone")).to_have_text("America/New_York (browser)")
        expect(first).not_to_have_text(utc)
        local = datetime.fromisoformat(first.inner_text())
        assert datetime.fromisoformat(utc) - local in (timedelta(hours=4), timedelta(hours=5))
        assert "tz=America%2FNew_York" in seen.page.url


def test_find_by_id(opened: Callable[[str], Page], fake: Fake) -> None:
    page = opened("#/events")
    for wanted, view in (
        (fake.events[3]["event_id"], "events"),
        (fake.events[3]["trace_id"], "traces"),
        (fake.events[3]["session_id"], "sessions"),
    ):
        page.get_by_label("Find by id").fill(wanted)
        page.get_by_label("Find by id").press("Enter")
        page.wait_for_url(re.compile(f"#/{view}/"))
        expect(page.get_by_label("Find by id")).to_have_value("")


class Held:
    """The answers to requests of a path, which wait until they are let go."""

    def __init__(self, page: Page, path: str) -> None:
        self._page = page
        self._waiting: list[Route] | None = []
        page.route(path, self._take)

    def _take(self, route: Route) -> None:
        if self._waiting is None:
            route.continue_()
        else:
            self._waiting.append(route)

    def _are_there(self) -> bool:
        self._page.wait_for_timeout(10)
        return bool(self._waiting)

    def let_go(self) -> None:
        """Answer those that wait, of which there has to be one soon, and all that follow."""
        wait_until(self._are_there)
        waiting, self._waiting = self._waiting or [], None
        for route in waiting:
            route.continue_()


def test_what_is_typed_while_an_id_is_looked_for_stays(opened: Callable[[str], Page], fake: Fake) -> None:
    page = opened("#/events")
    expect(rows(page, "events")).to_have_count(50)
    field = page.get_by_label("Find by id")
    held = Held(page, "**/v1/traces?trace_id=*")
    field.fill(fake.events[3]["event_id"])
    field.press("Enter")
    field.fill("the next one")
    held.let_go()
    page.wait_for_url(re.compile("#/events/"))
    expect(field).to_have_value("the next one")


def test_who_types_while_a_view_is_loaded_keeps_the_focus(opened: Callable[[str], Page]) -> None:
    page = opened("#/events")
    expect(rows(page, "events")).to_have_count(50)
    held = Held(page, "**/traces_view.js")
    page.locator("#views").get_by_role("link", name="Traces").click()
    field = page.get_by_label("Find by id")
    field.focus()
    page.keyboard.type("abc")
    held.let_go()
    expect(rows(page, "traces").first).to_be_visible()
    page.keyboard.type("def")
    expect(field).to_have_value("abcdef")


def test_who_types_while_the_place_before_is_read_keeps_the_focus(opened: Callable[[str], Page]) -> None:
    page = opened("#/?range=7d&model=gpt-5")
    page.locator("#users").get_by_role("link").first.click()
    expect(page.locator("#p-cost")).to_contain_text("$")
    held = Held(page, "**/v1/metrics?*")
    page.go_back()
    field = page.get_by_label("Find by id")
    field.focus()
    page.keyboard.type("abc")
    held.let_go()
    expect(page.locator("#overview")).not_to_have_attribute("aria-busy", "true")
    page.keyboard.type("def")
    expect(field).to_have_value("abcdef")


def test_who_types_while_further_rows_are_read_keeps_the_focus(opened: Callable[[str], Page]) -> None:
    page = opened("#/events")
    expect(rows(page, "events")).to_have_count(50)
    held = Held(page, "**/v1/events?*")
    page.get_by_role("button", name="Show more").click()
    field = page.get_by_label("Find by id")
    field.focus()
    page.keyboard.type("abc")
    held.let_go()
    expect(rows(page, "events")).to_have_count(100)
    page.keyboard.type("def")
    expect(field).to_have_value("abcdef")


def test_versions_ticked_while_others_are_read_stay_ticked(opened: Callable[[str], Page]) -> None:
    page = opened("#/prompts?range=90d")
    boxes = rows(page, "prompts").get_by_role("checkbox")
    expect(boxes.nth(2)).to_be_visible()
    held = Held(page, "**/v1/prompts?*")
    for at in range(3):
        boxes.nth(at).click()
        expect(boxes.nth(at)).to_be_checked()
    page.wait_for_timeout(200)
    assert [boxes.nth(at).is_checked() for at in range(3)] == [True] * 3
    held.let_go()
    expect(page.locator("table.compare thead th.number")).to_have_count(3)
    assert [boxes.nth(at).is_checked() for at in range(3)] == [True] * 3


# --- events ----------------------------------------------------------------------------------------------------------


def test_events_from_the_list_to_one_and_back(opened: Callable[[str], Page], fake: Fake) -> None:
    page = opened("#/events?model=gpt-5&range=90d")
    expect(rows(page, "events")).to_have_count(50)
    calls = [each for each in fake.events if each["kind"] == "call" and each["model"] == "gpt-5"]
    expect(page.locator("#view-events .head").first).to_contain_text(f"{len(calls)} in all, 50 shown")
    page.get_by_role("button", name="Show more").click()
    expect(rows(page, "events")).to_have_count(100)
    link = rows(page, "events").nth(70).get_by_role("link")
    wanted = calls[::-1][70]
    link.click()
    pane = page.get_by_role("complementary", name="One event")
    expect(pane).to_contain_text(wanted["event_id"])
    expect(pane).to_contain_text("temperature")
    cost = "unpriced" if wanted["cost_usd"] is None else f"${wanted['cost_usd'].normalize():f}"
    expect(pane.locator("dd", has=page.locator(".sum, .none")).first).to_contain_text(cost)
    expect(rows(page, "events")).to_have_count(100)
    before = len(fake.asked)
    page.keyboard.press("Escape")
    expect(pane).to_be_hidden()
    expect(rows(page, "events")).to_have_count(100)
    expect(rows(page, "events").nth(70).get_by_role("link")).to_be_focused()
    assert fake.asked[before:] == []


def test_columns_can_be_chosen(opened: Callable[[str], Page]) -> None:
    page = opened("#/events")
    expect(rows(page, "events")).to_have_count(50)
    page.get_by_role("button", name="Columns").click()
    page.get_by_label("Trace", exact=True).check()
    expect(page.locator("#view-events thead th", has_text="Trace")).to_have_count(1)
    assert "cols=" in page.url
    page.reload()
    expect(page.locator("#view-events thead th", has_text="Trace")).to_have_count(1)


CUT: Final = """(view) => [...document.querySelectorAll(`#view-${view} table.list :is(th, td)`)].filter((cell) => {
    const list = cell.closest(".list-region");
    if (!cell.checkVisibility()) return false;
    const [own, whole] = [cell.getBoundingClientRect(), list.getBoundingClientRect()];
    return own.left < whole.left - 1 || own.right > whole.right + 1
        || (cell.matches(".time, .number, .c-status") && cell.scrollWidth > cell.clientWidth);
}).map((cell) => cell.textContent)"""
"""Cells beside the list's place, and figures, times and states of which a part is cut."""


@pytest.mark.parametrize("width", [360, 390])
def test_lists_are_whole_on_a_phone(opened: Callable[[str], Page], width: int) -> None:
    for view in ("events", "traces", "sessions", "prompts"):
        page = opened(f"#/{view}")
        page.set_viewport_size({"width": width, "height": 800})
        expect(rows(page, view).first).to_be_visible()
        assert page.evaluate(CUT, view) == [], view
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
    page = opened("#/events")
    first = rows(page, "events").first
    for name in ("c-name", "c-model", "c-cost_usd", "c-status"):
        expect(first.locator(f".{name}")).to_be_in_viewport(ratio=1)
    assert page.locator("#views a").evaluate_all("links => new Set(links.map((each) => each.offsetTop)).size") == 1


def test_no_column_is_cut_beside_an_opened_event(opened: Callable[[str], Page], fake: Fake) -> None:
    page = opened(f"#/events/{fake.events[-1]['event_id']}")
    expect(page.get_by_role("complementary", name="One event")).to_be_visible()
    expect(rows(page, "events").first.locator(".c-status")).to_be_in_viewport(ratio=1)
    assert page.evaluate(CUT, "events") == []


# --- traces ----------------------------------------------------------------------------------------------------------


def test_a_trace_adds_up_to_its_header(opened: Callable[[str], Page], fake: Fake) -> None:
    wanted = max({each["trace_id"] for each in fake.events})
    spans = [each for each in fake.events if each["trace_id"] == wanted]
    page = opened(f"#/traces/{wanted}")
    expect(page.get_by_role("treegrid").locator("[role=row][aria-level]")).to_have_count(len(spans))
    total = sums(spans)["cost_usd"]
    assert dollars(page.locator("#view-traces .t-total .sum").inner_text()) == total
    page.get_by_role("treegrid").press("Home")
    page.get_by_role("treegrid").press("Enter")
    pane = page.get_by_role("complementary", name="The selected step")
    expect(pane).to_contain_text("Self time")
    assert dollars(pane.locator(".t-subtree .sum").inner_text()) == total
    assert "event=" in page.url
    page.reload()
    expect(pane).to_contain_text("Self time")


def test_a_trace_by_keyboard(opened: Callable[[str], Page], fake: Fake) -> None:
    failed = next(each for each in fake.events if each["status"] != "success")
    page = opened(f"#/traces/{failed['trace_id']}")
    tree = page.get_by_role("treegrid")
    expect(tree).to_be_focused()
    count = tree.locator("[role=row][aria-level]").count()
    page.keyboard.press("ArrowLeft")
    expect(tree.locator("[role=row][aria-level]:visible")).to_have_count(1)
    page.keyboard.press("ArrowRight")
    expect(tree.locator("[role=row][aria-level]:visible")).to_have_count(count)
    page.keyboard.press("e")
    active = tree.get_attribute("aria-activedescendant")
    expect(page.locator(f"#{active}")).to_contain_text(failed["name"])
    page.keyboard.press("/")
    page.keyboard.type("plan")
    expect(page.locator(".t-tools [role=status]")).to_have_text("1")
    page.keyboard.press("Enter")
    expect(page.locator(".t-tools [role=status]")).to_have_text("1 of 1")
    page.keyboard.press("Escape")
    expect(tree).to_be_focused()
    page.keyboard.press("c")
    expect(page.locator(".t-row.critical").first).to_be_visible()


def test_a_touch_that_becomes_a_scroll_zooms_nothing(opened: Callable[[str], Page], fake: Fake) -> None:
    """The browser ends the pointer with `pointercancel` then; the next one that is lifted anywhere is another."""
    page = opened(f"#/traces/{fake.events[0]['trace_id']}")
    ruler = page.locator(".t-ruler")
    box = box_of(ruler)
    assert box is not None
    left, right = box["x"] + 10, box["x"] + box["width"] - 10
    ruler.dispatch_event("pointerdown", {"clientX": left})
    ruler.dispatch_event("pointercancel", {"bubbles": True})
    ruler.dispatch_event("pointerup", {"clientX": right, "bubbles": True})
    assert "from=" not in page.url
    ruler.dispatch_event("pointerdown", {"clientX": left})
    ruler.dispatch_event("pointerup", {"clientX": right, "bubbles": True})
    page.wait_for_url("**from=**")


def test_pain_11_the_column_of_names_is_made_wider(opened: Callable[[str], Page], fake: Fake) -> None:
    page = opened(f"#/traces/{fake.events[0]['trace_id']}")
    grip, name = page.get_by_role("separator"), page.locator(".t-head .t-name")
    expect(grip).to_have_attribute("aria-valuenow", "38")
    before = box_of(name)
    box = box_of(grip)
    assert before is not None
    assert box is not None
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 205, box["y"] + 5)
    page.mouse.up()
    after = box_of(name)
    assert after is not None
    assert after["width"] == pytest.approx(before["width"] + 200, abs=12)
    wide = int(str(grip.get_attribute("aria-valuenow")))
    grip.focus()
    page.keyboard.press("ArrowLeft")
    expect(grip).to_have_attribute("aria-valuenow", str(wide - 2))
    page.reload()
    expect(grip).to_have_attribute("aria-valuenow", str(wide - 2))
    expect(page.get_by_role("treegrid")).to_be_focused()


def large_trace(count: int, shape: str) -> list[dict[str, Any]]:
    """A trace of `count` spans: "agent" (hundreds below a few), "chain" or "star"."""
    start = NOW - timedelta(hours=2)
    made = []
    for number in range(count):
        parent = {"chain": number - 1, "star": 0, "agent": (number - 1) // 8}[shape] if number else None
        made.append(
            event(
                number,
                start + timedelta(milliseconds=number),
                trace_id="large",
                span_id=f"s{number}",
                parent_span_id=None if parent is None else f"s{parent}",
                name=f"step {number}",
                status="error" if number % 997 == 996 else "success",
                latency_ms=max(1, 60_000 - number) if shape == "chain" else 20,
            )
        )
    return made


@pytest.mark.parametrize(
    ("size", "runs"),
    [({"width": 1280, "height": 900}, 5), ({"width": 2560, "height": 1440}, 1)],
    ids=["hd", "qhd"],
)
def test_check_5_five_thousand_steps_scroll_smoothly(chrome: Browser, size: dict[str, int], runs: int) -> None:
    with fake_api(large_trace(5000, "agent")) as fake, visit(chrome, cast(Any, fake), viewport=size) as seen:
        seen.sign_in(fake.key)
        worst: list[float] = []
        while not is_decided(worst, runs):
            seen.page.goto(f"{seen.origin}/#/traces")
            expect(rows(seen.page, "traces")).to_have_count(1)
            with watched(seen.page) as tasks:
                seen.page.goto(f"{seen.origin}/#/traces/large")
                assert opened_searched_and_scrolled(seen.page) <= 400
            worst.append(tasks.longest)
        assert sum(took <= LONG_TASK for took in worst) > runs // 2, worst
        assert (seen.faults, seen.strangers) == ([], [])


def is_decided(worst: list[float], runs: int) -> bool:
    """Whether it is known on which side of the bound the median of so many runs is, or would be."""
    good = sum(took <= LONG_TASK for took in worst)
    return max(good, len(worst) - good) > runs // 2


def opened_searched_and_scrolled(page: Page) -> int:
    """Collapse, open, search and scroll a trace of 5,000 steps; return the most elements that its tree had.

    Each frame of the scrolling shows other rows than the one before.
    """
    expect(page.get_by_role("treegrid")).to_be_focused()
    page.get_by_role("button", name="Collapse all").click()
    page.get_by_role("button", name="Open all").click()
    page.get_by_label("Search in this trace").fill("step 4")
    expect(page.locator(".t-tools [role=status]")).to_have_text("1,111")
    page.get_by_label("Search in this trace").fill("")
    most = page.evaluate("""async () => {
        const scroller = document.querySelector(".t-scroll");
        let most = 0;
        for (let top = 0; top < scroller.scrollHeight; top += 1400) {
            scroller.scrollTop = top;
            await new Promise(requestAnimationFrame);
            most = Math.max(most, document.querySelectorAll("[role=treegrid] *").length);
        }
        return most;
    }""")
    return int(most)


@pytest.mark.parametrize(("count", "shape"), [(50_000, "star"), (10_000, "chain")])
def test_check_6_and_pain_11_very_large_and_very_deep_traces_open(chrome: Browser, count: int, shape: str) -> None:
    with fake_api(large_trace(count, shape)) as fake, visit(chrome, cast(Any, fake)) as seen:
        seen.page.goto(f"{seen.origin}/#/traces/large")
        seen.sign_in(fake.key)
        tree = seen.page.get_by_role("treegrid")
        expect(tree).to_be_focused()
        seen.page.keyboard.press("*")
        if shape == "chain":
            seen.page.get_by_role("button", name="Collapse all").click()
            seen.page.get_by_role("button", name="Open all").click()
            tree.focus()
        seen.page.keyboard.press("End")
        last = seen.page.locator(f"#step-{count - 1}")
        expect(last).to_contain_text(f"step {count - 1}")
        if shape == "chain":
            a_deep_row_is_whole(last, count)
        assert heap(seen.page) < 60 * 1024 * 1024
        assert (seen.faults, seen.strangers) == ([], [])


def a_deep_row_is_whole(row: Locator, depth: int) -> None:
    """At any depth a row says its level, has a guide for each level that is indented, and its name and bar in sight."""
    expect(row).to_have_attribute("aria-level", str(depth))
    name = row.locator(".t-name")
    expect(name).to_have_attribute("data-marks", f"(level {depth:,})")
    boxes = [box_of(each) for each in (row, name, row.locator(".t-bar"))]
    outer, text, bar = (cast(dict[str, float], each) for each in boxes)
    assert outer["x"] <= text["x"] < text["x"] + text["width"] <= bar["x"] < outer["x"] + outer["width"]
    padding, guides = name.evaluate(
        "each => [parseFloat(getComputedStyle(each).paddingLeft), getComputedStyle(each).backgroundSize]"
    )
    assert (padding, guides.split()[0]) == (16 * 12 + 18, f"{16 * 12}px")
    assert text["width"] > padding + 100, "there is room for the name"


# --- explore ---------------------------------------------------------------------------------------------------------


def test_explore_adds_up_in_table_series_and_csv(opened: Callable[[str], Page], fake: Fake) -> None:
    page = opened("#/explore?measures=cost_usd&measures=requests&group_by=user_id&limit=3&range=7d")
    table = page.locator(".explore-table tbody tr")
    expect(table).to_have_count(5)
    cells = [row.locator("td").all_inner_texts() for row in table.all()]
    assert sum(dollars(cell[0]) for cell in cells[:-1]) == dollars(cells[-1][0])
    assert sum(int(cell[2].replace(",", "")) for cell in cells[:-1]) == int(cells[-1][2].replace(",", ""))
    page.get_by_text("By interval, as a table").click()
    days = page.get_by_role("region", name="Cost over time: table").locator("tbody tr")
    expect(days.first).to_be_visible()
    parts = [[dollars(text) for text in row.locator("td").all_inner_texts()] for row in days.all()]
    assert all(sum(part[:-1]) == part[-1] for part in parts)
    assert sum(part[-1] for part in parts) == dollars(cells[-1][0])
    with page.expect_download() as waiting:
        page.get_by_role("button", name="CSV").click()
    lines = Path(waiting.value.path()).read_text().splitlines()
    assert lines[0].startswith("start_utc,start UTC,user_id,cost_usd,requests")
    total = next(line for line in lines if line.startswith(",,Total"))
    assert Decimal(total.split(",")[3]) == dollars(cells[-1][0])
    series = [line.split(",") for line in lines[1:] if line.split(",")[0] and ",Total," in line]
    assert sum(Decimal(line[3]) for line in series) == dollars(cells[-1][0])
    assert "largest groups" in lines[-1]
    table.first.get_by_role("link").click()
    expect(page.locator(".chip")).to_have_count(1)


def test_a_bar_leads_to_its_events(opened: Callable[[str], Page], fake: Fake) -> None:
    page = opened("#/explore?range=7d&measures=requests")
    chart = page.locator("#view-explore .stage").first
    expect(chart.locator("canvas")).to_be_visible()
    chart.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    said = page.locator("#view-explore .when").first.inner_text()
    count = page.locator("#view-explore .legend .total b").first.inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("#range-button")).to_have_text(said)
    expect(page.locator("#view-events .head").first).to_contain_text(f"{count} in all")


def test_a_saved_question_comes_back(opened: Callable[[str], Page]) -> None:
    page = opened("#/explore?measures=requests&group_by=status")
    expect(page.locator(".explore-table")).to_be_visible()
    page.get_by_role("button", name="Saved").click()
    page.get_by_label("Name of this question").fill("By status")
    page.get_by_role("button", name="Save", exact=True).click()
    page.keyboard.press("Escape")
    page.goto(page.url.split("#", maxsplit=1)[0] + "#/explore")
    page.get_by_role("button", name="Saved").click()
    page.get_by_role("link", name="By status").click()
    assert "group_by=status" in page.url


def test_scores_are_offered_by_name_and_a_day_that_stands_out_is_named(chrome: Browser) -> None:
    day = NOW.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=8)
    made = [
        event(
            number,
            day - timedelta(days=7 * (number // 10), hours=-(number % 10)),
            prompt_hash="p",
            eval_scores={"helpful": Decimal("0.5"), "polite": Decimal("0.25")},
            cost_usd=Decimal(3 if number < 10 else 1),
        )
        for number in range(50)
    ]
    with fake_api(made) as fake, visit(chrome, cast(Any, fake)) as seen:
        page = seen.page
        seen.sign_in(fake.key)
        weeks = f"start={day - timedelta(days=28):%Y-%m-%d}T00:00:00Z&end={day + timedelta(days=7):%Y-%m-%d}T00:00:00Z"
        page.goto(f"{seen.origin}/#/explore?{weeks}")
        hint = page.get_by_role("note").locator("visible=true")
        expect(hint).to_have_text(f"Cost on {day:%Y-%m-%d} is 3.0 times the median of 4 other {day:%A}s.")
        page.get_by_label("Another measure").select_option("score")
        offered = page.locator("#score-names option")
        expect(offered).to_have_count(2)
        assert [each.get_attribute("value") for each in offered.all()] == ["helpful", "polite"]
        page.get_by_label("Statistic of the score").select_option("p95")
        page.get_by_label("Name of the score").fill("polite")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.locator(".explore-table thead")).to_contain_text("Score polite, 95th percentile")
        expect(page.locator(".explore-table .total td").last).to_have_text("0.25")
        assert len(asked(fake, "/v1/metrics")) == 2, "once each"
        hint.get_by_role("link").click()
        expect(page.locator("#range-button")).to_have_text(f"{day:%Y-%m-%d}")
        expect(rows(page, "events")).to_have_count(10)
        assert (seen.faults, seen.strangers) == ([], [])


# --- sessions, prompts -----------------------------------------------------------------------------------------------


def test_a_session_in_order_of_time(opened: Callable[[str], Page], fake: Fake) -> None:
    wanted = fake.events[10]["session_id"]
    events = [each for each in fake.events if each.get("session_id") == wanted]
    page = opened("#/sessions")
    expect(rows(page, "sessions").first).to_be_visible()
    page.goto(page.url.split("#", maxsplit=1)[0] + f"#/sessions/{quote(wanted)}")
    lines = page.locator("ol.session > li")
    expect(lines).to_have_count(len({each["trace_id"] for each in events}))
    assert dollars(page.locator("#view-sessions .facts .sum").first.inner_text()) == sums(events)["cost_usd"]
    last = lines.last.locator(".sub .sum").inner_text()
    assert dollars(last) == sums(events)["cost_usd"]
    lines.first.get_by_text("slowest and dearest steps").click()
    lines.first.locator("li a").first.click()
    expect(page.get_by_role("complementary", name="The selected step")).to_contain_text("Self time")


def test_a_session_older_than_the_range_leads_to_all_of_its_events(chrome: Browser) -> None:
    at = NOW - timedelta(days=90)
    made = [event(n, at + timedelta(minutes=n), session_id="old", kind=("call", "span")[n % 2]) for n in range(4)]
    with fake_api([*made, event(9, NOW, session_id="new")]) as fake, visit(chrome, cast(Any, fake)) as seen:
        seen.sign_in(fake.key)
        seen.page.goto(f"{seen.origin}/#/sessions/old?model=another&tz=Asia/Kolkata")
        expect(seen.page.locator("#view-sessions .facts").first).to_contain_text("4 traces, 2 calls0 errors")
        seen.page.get_by_role("link", name="its events").click()
        expect(rows(seen.page, "events")).to_have_count(4)
        expect(seen.page.locator("#zone")).to_have_text(re.compile("^Asia/Kolkata"))
        assert (seen.faults, seen.strangers) == ([], [])


def test_pain_19_a_session_of_too_many_traces_says_what_is_left_out(opened: Callable[[str], Page]) -> None:
    page = opened("#/sessions")

    def cut(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        body["session"]["traces"], body["truncated"] = 60_000, True
        route.fulfill(response=answer, json=body)

    page.route("**/v1/sessions/*", cut)
    rows(page, "sessions").first.get_by_role("link").first.click()
    said = page.locator("#view-sessions").get_by_text(" of 60,000 traces are listed")
    expect(said).to_have_text(re.compile(r"^Only the first \d+ of 60,000 traces are listed"))


def test_versions_of_a_prompt_beside_each_other(opened: Callable[[str], Page]) -> None:
    page = opened("#/prompts")
    expect(rows(page, "prompts")).to_have_count(3)
    boxes = page.locator("#view-prompts input[type=checkbox]")
    boxes.nth(0).check()
    boxes.nth(1).check()
    compared = page.locator("table.compare")
    expect(compared.locator("tbody tr").first).to_contain_text("Cost per request")
    listed = page.get_by_role("region", name="List of versions").locator("tbody tr").first
    expect(listed.locator("td").last).to_contain_text(re.compile(r"^helpful 0\.\d+"))
    assert listed.locator(".sum").inner_text() == compared.locator("tbody td").first.inner_text()
    expect(compared).to_contain_text("Score helpful")
    page.get_by_role("radio").nth(1).check()
    assert "base=" in page.url


def test_pain_24_a_difference_that_is_no_chance_is_marked(chrome: Browser) -> None:
    made = []
    for number in range(600):
        slow = number % 2
        made.append(
            event(
                number,
                NOW - timedelta(minutes=number),
                prompt_hash="slow" if slow else "fast",
                latency_ms=900 + number % 7 + 200 * slow,
                cost_usd=Decimal("0.001") * (1 + number % 5),
                name="answer",
            )
        )
    made += [event(1000 + number, NOW - timedelta(minutes=number), prompt_hash="rare") for number in range(20)]
    with fake_api(made) as fake, visit(chrome, cast(Any, fake)) as seen:
        seen.page.goto(f"{seen.origin}/#/prompts?hash=fast&hash=slow&hash=rare&base=fast")
        seen.sign_in(fake.key)
        latency = seen.page.locator("table.compare tbody tr", has_text="Latency, mean").locator("td")
        expect(latency.nth(1)).to_contain_text("▲ higher, p < 0.001")
        sizes = "▲ higher, p < 0.001, 300 and 300 requests"
        expect(latency.nth(1).locator(".mark")).to_have_attribute("title", sizes)
        expect(latency.nth(2)).to_contain_text("too few to tell")
        cost = seen.page.locator("table.compare tbody tr", has_text="Cost per request").locator("td")
        assert "p <" not in cost.nth(1).inner_text()


# --- when something is missing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["explore", "events", "traces", "sessions", "prompts"])
def test_pain_23_an_empty_project_says_how_to_begin(chrome: Browser, view: str) -> None:
    with fake_api([]) as fake, visit(chrome, cast(Any, fake)) as seen:
        seen.page.goto(f"{seen.origin}/#/{view}")
        seen.sign_in(fake.key)
        expect(seen.page.locator(f"#view-{view}").get_by_role("heading", name="No events yet")).to_be_visible()
        expect(seen.page.locator(f"#view-{view}")).to_contain_text("/v1/ingest")
        fake.events.append(
            event(1, datetime.now(UTC) - timedelta(seconds=5), session_id="s", prompt_hash="p", name="n")
        )
        expect(seen.page.locator(f"#view-{view} tbody tr").first).to_be_visible()
        assert (seen.faults, seen.strangers) == ([], [])


def test_pain_23_nothing_in_the_range_is_not_an_empty_project(opened: Callable[[str], Page]) -> None:
    for address, longer in (("range=all&", []), ("", ["Last 400 days"]), ("range=7d&", ["Last 30 days"])):
        page = opened(f"#/events?{address}model=nobody")
        links = page.locator(".notice a")
        expect(links).to_have_text(["Clear filters", *longer])
    page = opened("#/events?model=nobody")
    expect(page.get_by_role("heading", name="Nothing in this range")).to_be_visible()
    page.get_by_role("link", name="Clear filters").click()
    expect(rows(page, "events")).to_have_count(50)


def test_pain_23_a_missing_field_is_named(chrome: Browser) -> None:
    with fake_api([event(1, NOW - timedelta(hours=1))]) as fake, visit(chrome, cast(Any, fake)) as seen:
        seen.page.goto(f"{seen.origin}/#/sessions")
        seen.sign_in(fake.key)
        expect(seen.page.get_by_role("heading", name="No events with a session_id")).to_be_visible()
        seen.page.goto(f"{seen.origin}/#/prompts")
        expect(seen.page.get_by_role("heading", name="No events with a prompt_hash")).to_be_visible()


def test_a_first_build_is_told(chrome: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {**fake_events_api.stamp(), "building": {"done": 12_345, "of": 30_000, "secondsLeft": 90}}
    monkeypatch.setattr(fake_events_api, "stamp", lambda: said)
    with fake_api([event(1, NOW - timedelta(hours=1))]) as fake, visit(chrome, cast(Any, fake)) as seen:
        seen.page.goto(f"{seen.origin}/#/events")
        seen.sign_in(fake.key)
        text = "The event store is being built: 41 % of 30,000 messages, 90 s left. Complete up to"
        expect(seen.page.locator("#view-events")).to_contain_text(text)


FAILURES: Final = (
    (501, "event_store_off", "SPENDSTREAM_EVENT_STORE", None),
    (404, "not_found", "SPENDSTREAM_EVENT_STORE", None),
    (503, "event_store_missing", "SPENDSTREAM_STORE_DIR", None),
    (400, "range_too_wide", "too wide", "Show the last 400 days of it"),
    (422, "query_too_heavy", "too heavy", "Take half of the range"),
    (503, "unavailable", "cannot answer now", "Try again"),
)
"""Status, reason, words on the page, a button that helps."""
EMPTY: Final = re.compile("No events yet|Nothing in this range")


@pytest.mark.parametrize("view", ["explore", "events", "traces", "sessions", "prompts"])
def test_check_10_a_failure_says_what_it_is(chrome: Browser, view: str) -> None:
    path = "/v1/metrics" if view == "explore" else f"/v1/{view}"
    with fake_api(month(3, NOW)) as fake, visit(chrome, cast(Any, fake)) as seen:
        seen.page.goto(f"{seen.origin}/#/{view}")
        seen.sign_in(fake.key)
        expect(seen.page.locator(f"#view-{view} tbody tr").first).to_be_visible()
        for status, reason, words, button in FAILURES:
            fake.fail[path] = (status, {"error": "that is so", "reason": reason}, {"Retry-After": "2"})
            seen.page.reload()
            card = seen.page.locator(f"#view-{view} [role=alert]")
            expect(card).to_contain_text(words)
            if button:
                expect(card.get_by_role("button", name=button)).to_be_visible()
            assert seen.page.locator(f"#view-{view}").get_by_text(EMPTY).count() == 0


def test_check_10_rows_stay_when_those_after_them_fail(chrome: Browser) -> None:
    with fake_api(month(60, NOW)) as fake, visit(chrome, cast(Any, fake)) as seen:
        page = seen.page
        seen.sign_in(fake.key)
        page.goto(f"{seen.origin}/#/events?range=90d")
        expect(rows(page, "events")).to_have_count(50)
        fake.fail["/v1/events"] = (400, {"error": "the cursor has expired", "reason": "bad_request"}, {})
        page.get_by_role("button", name="Show more").click()
        expect(page.get_by_text("The rows after this one could not be read: the cursor has expired")).to_be_visible()
        expect(rows(page, "events")).to_have_count(50)
        del fake.fail["/v1/events"]
        page.get_by_role("button", name="Read the list anew").click()
        page.get_by_role("button", name="Show more").click()
        expect(rows(page, "events")).to_have_count(100)


@pytest.mark.parametrize("view", ["explore", "events", "traces", "sessions", "prompts"])
def test_a_question_that_has_to_wait_is_asked_again(chrome: Browser, view: str) -> None:
    path = "/v1/metrics" if view == "explore" else f"/v1/{view}"
    with fake_api(month(3, NOW)) as fake, visit(chrome, cast(Any, fake)) as seen:
        fake.fail[path] = (503, {"error": "that is so", "reason": "queries_busy"}, {"Retry-After": "2"})
        seen.page.goto(f"{seen.origin}/#/{view}")
        seen.sign_in(fake.key)
        card = seen.page.locator(f"#view-{view} [role=alert]")
        expect(card).to_contain_text("Trying again in")
        expect(card.get_by_role("button", name="Try again")).to_be_visible()
        del fake.fail[path]
        expect(seen.page.locator(f"#view-{view} tbody tr").first).to_be_visible()


def test_an_id_that_is_not_there(chrome: Browser, fake: Fake) -> None:
    with visit(chrome, cast(Any, fake)) as seen:
        seen.sign_in(fake.key)
        for address in ("#/traces/none", "#/sessions/none", "#/events/none"):
            seen.page.goto(f"{seen.origin}/{address}")
            expect(seen.page.get_by_role("alert").filter(has_text="newer than")).to_be_visible()


def test_a_wrong_key_ends_the_session(chrome: Browser, fake: Fake) -> None:
    with visit(chrome, cast(Any, fake)) as seen:
        seen.page.goto(f"{seen.origin}/#/traces?range=7d")
        seen.sign_in("lqt_" + "0" * 64)
        expect(seen.page.get_by_role("alert")).to_contain_text("not known here")
        seen.sign_in(fake.key)
        expect(rows(seen.page, "traces").first).to_be_visible()
        assert "range=7d" in seen.page.url


# --- how a view is loaded --------------------------------------------------------------------------------------------

VIEWS: Final = ("", "explore", "events", "traces", "sessions", "prompts")


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_that_was_seen_asks_for_the_page_and_its_figures_alone(opened: Callable[[str], Page], view: str) -> None:
    """Modules under their digest are not even asked about again."""
    page = opened(f"#/{view}")
    for _ in range(2):
        expect(page.locator(CONTENT[view]).first).to_be_visible()
        page.goto("about:blank")
        page = opened(f"#/{view}")
    expect(page.locator(CONTENT[view]).first).to_be_visible()
    sent = page.evaluate(
        "() => performance.getEntriesByType('resource').filter((e) => e.transferSize > 0).map((e) => e.name)"
    )
    assert [url for url in sent if "/v1/" not in url] == []


@pytest.mark.parametrize("view", VIEWS)
def test_all_modules_of_a_view_are_asked_for_before_any_has_run(chrome: Browser, fake: Fake, view: str) -> None:
    held: list[Route] = []
    with visit(chrome, cast(Any, fake)) as seen:
        seen.sign_in(fake.key)
        expect(seen.page.get_by_label("API key")).to_be_hidden()
        seen.page.goto("about:blank")
        seen.page.route("**/page/*/*.js", lambda route: held.append(route) if is_module(route) else route.continue_())
        seen.page.goto(f"{seen.origin}/#/{view}", wait_until="commit")
        files = static_files.load()
        wanted = {*static_files.imported(files, "main.js"), *static_files.imported(files, static_files.VIEWS[view])}
        until(seen.page, lambda: wanted <= {route.request.url.rpartition("/")[2] for route in held})
        for route in held:
            route.continue_()
        seen.page.unroute("**/page/*/*.js")
        expect(seen.page.locator(CONTENT[view]).first).to_be_visible()
        assert (seen.faults, seen.strangers) == ([], [])


def is_module(route: Route) -> bool:
    """Whether a script is not one of those that run before the modules."""
    return route.request.url.rpartition("/")[2] not in {"theme.js", "preload.js", "uplot.js"}


def until(page: Page, condition: Callable[[], bool]) -> None:
    """Let the browser go on until a condition holds; the limit of time is that of the test."""
    while not condition():
        page.wait_for_timeout(20)


def test_a_list_does_not_wait_for_the_chart_library_and_the_chart_does(chrome: Browser, fake: Fake) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    with visit(chrome, cast(Any, fake)) as seen:
        seen.sign_in(fake.key)
        expect(seen.page.get_by_label("API key")).to_be_hidden()
        seen.page.goto("about:blank")
        seen.page.route("**/page/*/uplot.js", hold)
        seen.page.goto(f"{seen.origin}/#/explore", wait_until="commit")
        expect(seen.page.locator(CONTENT["explore"]).first).to_be_visible()
        assert seen.page.locator("#view-explore canvas").count() == 0
        assert seen.page.get_by_text("The chart library is missing").count() == 0
        until(seen.page, lambda: bool(held))
        held[0].continue_()
        expect(seen.page.locator("#view-explore canvas").first).to_be_visible()
        assert (seen.faults, seen.strangers) == ([], [])


def test_without_the_chart_library_the_page_says_so(chrome: Browser, fake: Fake) -> None:
    with visit(chrome, cast(Any, fake)) as seen:
        seen.sign_in(fake.key)
        expect(seen.page.get_by_label("API key")).to_be_hidden()
        seen.page.goto("about:blank")
        seen.page.route("**/page/*/uplot.js", lambda route: route.abort())
        seen.page.goto(f"{seen.origin}/#/explore", wait_until="commit")
        expect(seen.page.get_by_text("The chart library is missing")).to_be_visible()
