"""Walks through the page's views: a way there and back, controls set one after the other, and the keyboard alone."""

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final, cast

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support import browser as browsers
from tests.support.agent_traffic import event
from tests.support.browser import Visit, box_of, choose_range, visit
from tests.support.event_views import drawn, rows
from tests.support.fake_events_api import Fake, fake_api
from tests.support.patience import PROCESS_PATIENCE

pytestmark = [pytest.mark.browser, pytest.mark.slow]

expect.set_options(timeout=browsers.PATIENCE)

NOW: Final = datetime.now(UTC)
TWO_DAYS_AGO: Final = NOW.replace(hour=0, minute=0, second=1, microsecond=0) - timedelta(days=2)
LOW: Final = {"width": 1280, "height": 600}
"""So low that every view scrolls."""
STEPS: Final = 5000
SLOWEST: Final = "slowest"
FIRST_ERROR: Final = 996

Event = dict[str, Any]


def traffic() -> list[Event]:
    """Calls of three users over two days, and the slowest trace of the dearest of them, of many steps."""
    made = [
        event(
            number,
            TWO_DAYS_AGO + timedelta(minutes=7 * number),
            user_id=("ada", "bob", "eve")[number % 3],
            session_id=f"chat-{number % 5}",
            name=f"call {number}",
            trace_id=f"trace-{number // 2:03}",
            parent_span_id=None,
            prompt_hash=("old", "new")[number % 2],
            environment=("production", "staging")[number % 7 == 0],
            cost_usd=Decimal(number % 3 + 1),
        )
        for number in range(400)
    ]
    for number in range(STEPS):
        failed = number % 997 == FIRST_ERROR
        made.append(
            event(
                10_000 + number,
                TWO_DAYS_AGO + timedelta(hours=1, milliseconds=number),
                user_id="eve",
                session_id="chat-long",
                trace_id=SLOWEST,
                span_id=f"s{number}",
                parent_span_id="s0" if number else None,
                name=f"step {number}",
                status="error" if failed else "success",
                cost_usd=Decimal("0.000001"),
                latency_ms=20 if number else 3_600_000,
                kind="call" if number % 50 == 0 else "span",
            )
        )
    return made


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    """The traffic; tests leave it as it is."""
    with fake_api(traffic()) as started:
        yield started


@pytest.fixture
def tab(chrome: Browser, fake: Fake) -> Iterator[Visit]:
    """A tab that is not signed in. What should not have been in it fails the test."""
    permissions = ["clipboard-read", "clipboard-write"]
    with visit(chrome, cast(Any, fake), viewport=LOW, permissions=permissions) as seen:
        yield seen
        assert (seen.faults, seen.strangers) == ([], [])


# --- controls and addresses ------------------------------------------------------------------------------------------


def still(page: Page, fake: Fake, quiet: float = 60) -> None:
    """Wait until nothing is read, and nothing was asked for so many milliseconds."""
    while True:
        before = len(fake.asked)
        page.wait_for_timeout(quiet)
        drawn(page)
        expect(page.locator("[aria-busy]")).to_have_count(0)
        if len(fake.asked) == before:
            return


def pick(label: str, value: str) -> Callable[[Page], None]:
    """Choose an option of a list."""

    def choose(page: Page) -> None:
        page.get_by_label(label, exact=True).select_option(value)

    return choose


def press(name: str) -> Callable[[Page], None]:
    """Press a button."""
    return lambda page: page.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def tick(label: str) -> Callable[[Page], None]:
    """Tick a box."""
    return lambda page: page.get_by_label(label, exact=True).check()


def column(page: Page) -> None:
    """Add a column to the list of events."""
    page.get_by_role("button", name="Columns").click()
    page.get_by_label("Trace", exact=True).check()
    page.keyboard.press("Escape")


def environment(page: Page) -> None:
    """Take only what runs in production."""
    page.locator("#environment-button").click()
    page.get_by_role("link", name="production").click()


def filtered(page: Page) -> None:
    """Take only one model."""
    page.get_by_role("button", name="Add filter").click()
    page.get_by_label("Value").fill("gpt-5")
    page.get_by_role("button", name="Add", exact=True).click()


SHARED: Final = (lambda page: choose_range(page, "Last 7 days"), environment, filtered)
"""The controls of every view."""
CONTROLS: Final[dict[str, tuple[Callable[[Page], None], ...]]] = {
    "": (),
    "explore": (
        pick("Measure 1", "requests"),
        pick("Another measure", "latency_ms:p95"),
        pick("Group 1", "user_id"),
        pick("Interval", "hour"),
        pick("Groups shown", "5"),
        press("Lines"),
        tick("Previous period"),
    ),
    "events": (press("Newest first"), column),
    "traces": (press("Cost"),),
    "sessions": (press("Calls"),),
    "prompts": (tick("Compare old"), tick("Compare new")),
}
"""The controls that a view has beside them."""

SHOWN: Final = """() => [...document.querySelectorAll(
    "#bar button, .pickers :is(select, button), .view .head button, th[aria-sort], input:checked"
)].filter((each) => each.checkVisibility()).map((each) => each.value || each.textContent)"""
"""What the controls of a view are set to."""


def test_check_1_every_control_is_in_the_address(tab: Visit, fake: Fake, chrome: Browser) -> None:
    page = tab.page
    tab.sign_in(fake.key)
    expect(page.locator("#users tbody tr")).to_have_count(3)
    with visit(chrome, cast(Any, fake), viewport=LOW) as other:
        other.sign_in(fake.key)
        expect(other.page.locator("#users tbody tr")).to_have_count(3)
        for view, own in CONTROLS.items():
            page.goto(f"{tab.origin}/#/{view}")
            still(page, fake)
            steps = []
            for control in (*own, *SHARED):
                entries = page.evaluate("history.length")
                steps.append((page.url, page.evaluate(SHOWN)))
                control(page)
                still(page, fake)
                assert page.evaluate("history.length") == entries + 1, (view, page.url)
            reloaded = asked_by(fake, page.reload, page)
            pasted = asked_by(fake, partial(paste, other.page, page.url), other.page)
            assert reloaded == pasted != [], view
            for address, controls in steps[:-4:-1]:
                page.go_back()
                page.wait_for_url(address)
                page.wait_for_function(f"(wanted) => String(({SHOWN})()) === String(wanted)", arg=controls)
        assert other.faults == []


def paste(page: Page, address: str) -> None:
    """Open an address as if it was pasted into a tab."""
    page.goto("about:blank")
    page.goto(address)


NOW_IN_A_QUERY: Final = re.compile(r"end=[^&]*\.(?!000)\d{3}Z")
"""The end of the period before one that goes on: the same part of it, to the millisecond."""


def asked_by(fake: Fake, act: Callable[[], Any], page: Page) -> list[str]:
    """What is asked of the server when something is opened, in order; the overview may ask again."""
    fake.asked.clear()
    act()
    expect(page.locator("#bar")).to_be_visible()
    while not any(each.startswith(("/v1/events", "/v1/metrics", "/v1/traces", "/v1/sessions")) for each in fake.asked):
        page.wait_for_timeout(50)
    still(page, fake, quiet=400)
    return sorted({NOW_IN_A_QUERY.sub("end=now", each) for each in fake.asked})


# --- there and back --------------------------------------------------------------------------------------------------

PLACE: Final = """() => ({
    scroll: scrollY,
    rows: [...document.querySelectorAll("table tbody, ol.session, .t-inner")].filter((each) => each.checkVisibility())
        .map((each) => each.children.length),
    focus: document.activeElement.matches("body, main") ? "" : document.activeElement.outerHTML,
})"""


def place(page: Page) -> dict[str, Any]:
    """Where somebody is in a view."""
    return cast(dict[str, Any], page.evaluate(PLACE))


def test_check_4_from_the_overview_down_to_a_user_and_back_to_the_start(tab: Visit, fake: Fake) -> None:
    page = tab.page
    tab.sign_in(fake.key)
    expect(page.locator("#users tbody tr")).to_have_count(3)
    page.evaluate("scrollTo(0, 160)")
    left: list[tuple[str, dict[str, Any]]] = []

    def follow(click: Callable[[], None], arrived: Callable[[], None]) -> None:
        drawn(page)  # the last scrolling is noted
        before = (page.url, place(page))
        click()
        arrived()
        left.append((before[0], place_left.pop() if place_left else before[1]))

    place_left: list[dict[str, Any]] = []

    def press(selector: str) -> Callable[[], None]:
        """Go by a link that has the focus, which is part of the place that is left."""

        def go() -> None:
            link = page.locator(selector).locator("visible=true").first
            link.focus()
            drawn(page)
            place_left.append(place(page))
            link.press("Enter")

        return go

    def chart() -> None:
        over = page.locator("#chart .u-over")
        box = box_of(over)
        assert box is not None
        over.click(position={"x": box["width"] - 50, "y": 40})

    follow(chart, lambda: expect(rows(page, "events")).to_have_count(50))
    page.get_by_role("button", name="Show more").click()
    expect(rows(page, "events")).to_have_count(100)
    chosen = rows(page, "events").nth(70).locator("a").first
    name = rows(page, "events").nth(70).locator("td").first.inner_text()
    pane = page.get_by_role("complementary", name="One event")
    chosen.scroll_into_view_if_needed()
    follow(
        press("#view-events tbody tr:nth-child(71) a"),
        lambda: expect(pane.get_by_role("heading", level=2)).to_have_text(name),
    )
    step = page.get_by_role("complementary", name="The selected step")
    follow(press("#view-events .pane a[href*='#/traces/']"), lambda: expect(step).to_contain_text("Self time"))
    expect(step.get_by_role("heading", level=2)).to_have_text(name)
    active = page.get_by_role("treegrid").get_attribute("aria-activedescendant")
    expect(page.locator(f"#{active} .t-name")).to_have_text(name)
    follow(
        press("#view-traces .facts a[href*='#/sessions/']"),
        lambda: expect(page.locator("ol.session > li").first).to_be_visible(),
    )
    page.evaluate("scrollTo(0, 300)")
    follow(
        press("#view-sessions .facts a[href*='#/users/']"), lambda: expect(page.locator("#p-cost")).not_to_be_empty()
    )
    fake.asked.clear()
    for address, before in reversed(left):
        page.go_back()
        page.wait_for_url(address)
        deadline = time.monotonic() + PROCESS_PATIENCE
        while (now := place(page)) != before and time.monotonic() < deadline:
            page.wait_for_timeout(100)
        assert now == before, address
    assert [each for each in fake.asked if each.startswith(("/v1/events", "/v1/traces", "/v1/sessions"))] == []


# --- the keyboard alone ----------------------------------------------------------------------------------------------


def test_check_8_the_first_error_of_the_dearest_users_slowest_trace_by_keyboard(tab: Visit, fake: Fake) -> None:
    page, press = tab.page, tab.page.keyboard.press

    def tab_to(wanted: str) -> None:
        for _ in range(80):
            press("Tab")
            found = page.locator(wanted).locator("visible=true").first
            if found.count() and found.evaluate("element => element === document.activeElement"):
                return
        pytest.fail(f"no way to {wanted} with the tabulator")

    tab_to("#key")
    page.keyboard.type(fake.key)
    press("Enter")
    expect(page.locator("#users tbody tr")).to_have_count(3)
    tab_to("#users tbody a")
    press("Enter")
    expect(page.locator("#person-title")).to_have_text("eve")
    tab_to("#person-links a[href*='#/traces']")
    press("Enter")
    expect(rows(page, "traces").first).to_be_visible()
    tab_to("#view-traces thead button >> text=Duration")
    press("Enter")
    expect(page.locator("#view-traces th[aria-sort]")).to_have_text("Duration")
    expect(rows(page, "traces").first).to_contain_text("step 0")
    tab_to("#view-traces tbody a")
    press("Enter")
    tree = page.get_by_role("treegrid")
    expect(tree).to_be_focused()
    press("e")
    expect(page.locator(f"#{tree.get_attribute('aria-activedescendant')}")).to_contain_text(f"step {FIRST_ERROR}")
    press("Enter")
    step = page.get_by_role("complementary", name="The selected step")
    expect(step.get_by_role("heading", level=2)).to_be_focused()
    expect(step.get_by_role("button", name="Copy id")).to_be_visible()
    tab_to("#view-traces .pane button >> text=Copy id")
    press("Enter")
    wanted = next(each for each in fake.events if each["span_id"] == f"s{FIRST_ERROR}")
    expect(step.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == wanted["event_id"]
    press("Escape")
    expect(tree).to_be_focused()
    press("Home")
    for _ in range(200):
        press("PageDown")
    active = str(tree.get_attribute("aria-activedescendant"))
    at = int(active.removeprefix("step-"))
    assert at > 1000
    assert any(name.startswith(f"step {at},") for name in rows_of_the_accessibility_tree(page))


def rows_of_the_accessibility_tree(page: Page) -> list[str]:
    """The names of the rows that assistive technology sees."""
    session: Any = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    return [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "row" and "name" in node]
