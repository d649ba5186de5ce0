"""What people suffer at pages of this kind, and what ours shows instead: a test for each, by its number in `PAINS`."""

import ast
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, cast

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.support import browser as browsers
from tests.support import fake_events_api
from tests.support.agent_traffic import event, stamp
from tests.support.browser import Visit, box_of, visit
from tests.support.event_views import asked, dollars, rows
from tests.support.fake_events_api import Fake, fake_api

pytestmark = [pytest.mark.browser, pytest.mark.slow]

expect.set_options(timeout=browsers.PATIENCE)

PAINS: Final = {
    1: ("controls that are lost on reload, Back and in links", "test_check_1_"),
    2: ("a range that is another one in the next view", "test_pain_2_"),
    3: ("a history of keystrokes, and Back that leaves the page", "test_pain_3_"),
    4: ("days of the wrong zone", "test_check_2_"),
    5: ("small sums shown as $0.00", "test_pain_5_"),
    6: ("parents that cost nothing", "test_check_7_"),
    7: ("a top ten without the others", "test_check_3_"),
    8: ("figures read off a stack, and a stack that keeps what is hidden", "test_pain_8_"),
    9: ("a previous period as rows that nobody can compare", "test_pain_9_"),
    10: ("large traces that freeze the tab", "test_check_5_"),
    11: ("deep trees whose names and bars are gone", "test_check_6_and_pain_11_"),
    12: ("no way from match to match", "test_pain_12_"),
    13: ("short steps that cannot be seen", "test_pain_13_"),
    14: ("times that were corrected", "test_pain_14_"),
    15: ("a self time with two meanings", "test_pain_15_"),
    16: ("JSON that freezes the tab", "test_pain_16_"),
    17: ("sessions that end after 200 runs", "test_pain_17_"),
    18: ("rows that jump while new ones arrive", "test_pain_18_"),
    19: ("counts that are cut without a word", "test_pain_19_"),
    20: ("data that is late, and pages of two different lists", "test_pain_20_"),
    21: ("rows with a click only", "test_pain_21_"),
    22: ("copy buttons that fail in silence", "test_check_10_copying_"),
    23: ("examples that create nothing", "test_pain_23_"),
    24: ("differences that are chance", "test_pain_24_"),
}
"""What is suffered -> how the name of the test begins that shows ours is without it."""

NOW: Final = datetime.now(UTC).replace(microsecond=0)
LIMIT: Final = 2
"""Groups that Explore shows in these tests."""
LOOKUPS: Final = 41
CHATS: Final = 120
"""Traces of the long session."""
SECOND: Final = 1000
BEGAN: Final = NOW - timedelta(hours=3)

Event = dict[str, Any]


def test_every_pain_has_its_test() -> None:
    found = {
        node.name
        for file in Path(__file__).parent.glob("test_page*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert [number for number, (_, start) in PAINS.items() if not any(name.startswith(start) for name in found)] == []


# --- events ----------------------------------------------------------------------------------------------------------


def compared() -> list[Event]:
    """Calls by models over two periods of seven days: one that is new, one that is gone, and those beyond the limit."""
    costs = {"both": (5, 8), "new": (0, 7), "gone": (9, 0), "small": (1, 2), "least": (2, 1)}
    made = []
    for at, (model, sums) in enumerate(costs.items()):
        for period, cost in enumerate(sums):
            if cost:
                began = NOW - timedelta(days=10 - 7 * period)
                own: Event = {"cost_usd": Decimal(cost) + Decimal(at) / 10**12, "tags": {"set": "compared"}}
                made.append(event(100 + 2 * at + period, began, model=model, **own))
    return made


def priced() -> list[Event]:
    """Calls that cost nothing, next to nothing, much, and nobody knows what."""
    costs = (Decimal(0), Decimal("1e-12"), Decimal("1043.834"), Decimal("0.00999"), None)
    return [
        event(200 + at, NOW - timedelta(hours=2, minutes=at), cost_usd=cost, tags={"set": "priced"})
        for at, cost in enumerate(costs)
    ]


def steps() -> list[Event]:
    """A trace of an hour: look-ups, failed steps, steps outside their parent, children that overlap, a short step."""
    own = {"trace_id": "steps", "user_id": "u", "session_id": "s"}

    def step(number: int, after: float, name: str, **fields: Any) -> Event:
        at = BEGAN + timedelta(milliseconds=after)
        given = {"span_id": f"s{number}", "parent_span_id": "s0" if number else None, "name": name, **own, **fields}
        return event(300 + number, at, **given)

    made = [step(0, 0, "root", latency_ms=3600 * SECOND)]
    made += [step(1 + at, 10 * SECOND + at, f"lookup {at}", latency_ms=1) for at in range(LOOKUPS)]
    made += [step(50 + at, 20 * SECOND + at, f"broken {at}", status="error") for at in range(3)]
    made.append(step(60, 100 * SECOND, "parent", latency_ms=1000))
    made.append(step(61, 100 * SECOND - 250, "early", parent_span_id="s60", latency_ms=500))
    made.append(step(62, 100 * SECOND + 200, "inner", parent_span_id="s60", latency_ms=300))
    made.append(step(63, 100 * SECOND + 900, "late", parent_span_id="s60", latency_ms=600))
    made.append(step(70, 200 * SECOND, "short", latency_ms=0.001))
    return made


def chats() -> list[Event]:
    """A session of many traces; the 100th is the most expensive."""
    return [
        event(
            500 + at,
            NOW - timedelta(minutes=300 - at),
            trace_id=f"chat-{at:03}",
            session_id="long",
            name=f"turn {at}",
            cost_usd=Decimal(9 if at == 100 else 1),
        )
        for at in range(CHATS)
    ]


def large() -> list[Event]:
    """An event with a long list and a long text in its unknown fields."""
    extra = {"list": [f"item {at}" for at in range(250)], "text": "t" * 3000, "map": {"inside": 1}}
    return [event(700, NOW - timedelta(minutes=1), name="large", extra=extra)]


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    """All of them; tests leave it as it is."""
    with fake_api([*compared(), *priced(), *steps(), *chats(), *large()]) as started:
        yield started


@pytest.fixture(scope="module")
def tab(chrome: Browser, fake: Fake) -> Iterator[Visit]:
    """One signed-in tab for all: an address puts it into a state of its own."""
    with visit(chrome, cast(Any, fake), permissions=["clipboard-read", "clipboard-write"]) as seen:
        seen.sign_in(fake.key)
        expect(seen.page.get_by_label("API key")).to_be_hidden()
        yield seen


@pytest.fixture
def opened(tab: Visit, fake: Fake) -> Iterator[Callable[[str], Page]]:
    """`opened(hash)`: the tab at an address. What should not have been in it fails the test."""
    tab.page.goto("about:blank")
    fake.asked.clear()

    def open_at(address: str) -> Page:
        tab.page.goto(f"{tab.origin}/{address}")
        return tab.page

    yield open_at
    tab.page.unroute_all(behavior="wait")
    assert (tab.faults, tab.strangers) == ([], [])


def goes_elsewhere(page: Page, key: str) -> None:
    """Press a key that changes the address, and wait until it has."""
    before = page.url
    page.keyboard.press(key)
    page.wait_for_function("(before) => location.href !== before", arg=before)


def step_of(page: Page, name: str) -> Any:
    """Select a step of the open trace; returns its pane."""
    page.get_by_role("treegrid").locator(".t-row:visible").filter(has=page.get_by_text(name, exact=True)).locator(
        ".t-line"
    ).click()
    pane = page.get_by_role("complementary", name="The selected step")
    expect(pane.get_by_role("heading", level=2)).to_have_text(name)
    expect(pane).to_contain_text("Self time")
    return pane


def beside(pane: Any, title: str) -> str:
    """What a pane has beside a title."""
    return str(
        pane.locator("dt", has_text=re.compile(f"^{title}$")).locator("xpath=following-sibling::dd[1]").inner_text()
    )


# --- the pains -------------------------------------------------------------------------------------------------------


def test_pain_2_what_a_view_cannot_use_is_said_and_goes_along(opened: Callable[[str], Page]) -> None:
    page = opened("#/traces/steps?range=7d&model=gpt-5&tag=team:a&environment=production")
    note = page.locator("#bar-note")
    expect(note).to_have_text("Kept, but not used here: range, model, tag, environment.")
    for name in ("Events", "Explore", "Overview"):
        page.locator("#views").get_by_role("link", name=name).click()
        expect(note).to_have_text("")
        for kept in ("range=7d", "model=gpt-5", "tag=team:a", "environment=production"):
            assert kept in page.url, (name, kept)


def test_pain_3_typing_and_selecting_replace_an_entry_and_back_closes_the_detail(opened: Callable[[str], Page]) -> None:
    page = opened("#/traces/steps")
    tree = page.get_by_role("treegrid")
    expect(tree).to_be_focused()
    entries = page.evaluate("history.length")
    page.keyboard.press("/")
    page.keyboard.type("lookup 4")
    page.wait_for_url("**q=lookup*")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    page.wait_for_url("**event=*")
    tree.focus()
    goes_elsewhere(page, "ArrowDown")
    assert page.evaluate("history.length") == entries
    page.get_by_role("button", name="Critical path").click()
    page.wait_for_url("**critical=1*")
    assert page.evaluate("history.length") == entries + 1
    page = opened("#/events?tag=set:priced&range=7d")
    expect(rows(page, "events")).to_have_count(5)
    listed = page.url
    rows(page, "events").first.get_by_role("link").click()
    pane = page.get_by_role("complementary", name="One event")
    expect(pane).to_be_visible()
    page.go_back()
    expect(pane).to_be_hidden()
    assert page.url == listed
    expect(rows(page, "events")).to_have_count(5)


def test_pain_5_every_digit_of_a_sum_is_shown(opened: Callable[[str], Page]) -> None:
    page = opened("#/events?tag=set:priced&range=7d")
    costs = rows(page, "events").locator("td.c-cost_usd")
    expect(costs).to_have_text(["$0.00", "$0.000000000001", "$1,043.834", "$0.00999", "unpriced"])
    small = costs.locator("small").all_inner_texts()
    assert small == ["0000000001", "4", "999"], "the digits behind the cents are smaller"
    page = opened("#/explore?tag=set:priced&range=7d&measures=cost_usd&measures=unpriced")
    total = page.locator(".explore-table .total td")
    expect(total.first).to_have_text("$1,043.843990000001")
    expect(total.last).to_have_text("1")


PLOTS: Final = """() => {
    const made = (window.plots = []);
    const real = window.uPlot;
    window.uPlot = function (...given) { const plot = new real(...given); made.push(plot); return plot; };
    Object.assign(window.uPlot, real);
}"""
"""Remembers what charts draw."""


def test_pain_8_a_stack_is_made_anew_without_what_is_hidden(opened: Callable[[str], Page]) -> None:
    page = opened("#/traces")
    expect(rows(page, "traces").first).to_be_visible()
    page.evaluate(PLOTS)
    page.evaluate("location.hash = '#/explore?tag=set:compared&range=30d&measures=cost_usd&group_by=model'")
    legend = page.locator("#view-explore .legend li")
    expect(legend).to_have_count(6)
    drawn = "window.plots.at(-1).data.slice(1).map((each) => each.reduce((sum, value) => sum + value, 0))"
    whole = page.evaluate(drawn)
    names = [name.split("$")[0].strip() for name in legend.all_inner_texts()]
    figures = [dollars(text) for text in legend.locator("b").all_inner_texts()]
    assert names == ["both", "gone", "new", "least", "small", "Total"]
    assert sum(figures[:-1]) == figures[-1] == sum(each["cost_usd"] for each in compared())
    sums = [float(sum(figures[: at + 1])) for at in range(5)]
    assert whole == pytest.approx(sums[::-1], rel=1e-12), "the tallest first, each with all below it"
    legend.nth(1).get_by_role("button").click()
    expect(legend.nth(1).get_by_role("button")).to_have_attribute("aria-pressed", "false")
    rest = [figure for at, figure in enumerate(figures[:-1]) if at != 1]
    assert page.evaluate(drawn) == pytest.approx([float(sum(rest[: at + 1])) for at in range(4)][::-1], rel=1e-12)
    assert [dollars(text) for text in legend.locator("b").all_inner_texts()] == figures
    assert "hide=gone" in page.url


def test_pain_9_a_group_has_now_before_and_the_difference_in_one_row(opened: Callable[[str], Page]) -> None:
    query = (
        f"tag=set:compared&range=7d&measures=cost_usd&measures=latency_ms:avg&group_by=model&limit={LIMIT}&compare=1"
    )
    page = opened(f"#/explore?{query}")
    lines = page.locator(".explore-table tbody tr")
    expect(lines).to_have_count(LIMIT + 2)
    head = page.locator(".explore-table thead th").all_inner_texts()
    assert head[:5] == ["Group", "Cost", "Share", "Before", "Change"]
    table = {line.locator("th").inner_text(): line.locator("td").all_inner_texts() for line in lines.all()}
    assert list(table) == ["both", "new", "Other", "Total"]
    found = {name: [dollars(re.sub(r"[+−±]| .*", "", cells[at])) for at in (0, 2, 3)] for name, cells in table.items()}
    tiny = Decimal("1e-12")
    assert found["both"] == [8, 5, 3]
    assert found["new"] == [7 + tiny, 0, 7 + tiny]
    assert found["Other"] == [3 + 7 * tiny, 12 + 9 * tiny, 9 + 2 * tiny]
    assert found["Total"] == [18 + 8 * tiny, 17 + 9 * tiny, 1 - tiny]
    for at in (0, 1):
        assert sum(cells[at] for cells in list(found.values())[:-1]) == found["Total"][at]
    assert [table[name][3][0] for name in table] == ["+", "+", "−", "+"]
    assert table["both"][3].endswith("+60.0%")
    assert table["new"][5] == "–", "what was not there has no mean"
    with page.expect_download() as waiting:
        page.get_by_role("button", name="CSV", exact=True).click()
    file = [line.split(",") for line in Path(waiting.value.path()).read_text().splitlines()]
    place = file[0].index("cost_usd before")
    kept = {line[2]: Decimal(line[place]) for line in file[1:] if not line[0] and line[2] in table}
    assert kept == {name: cells[1] for name, cells in found.items()}


def test_pain_12_from_match_to_match_and_from_error_to_error(opened: Callable[[str], Page]) -> None:
    page = opened("#/traces/steps")
    tree = page.get_by_role("treegrid")
    expect(tree).to_be_focused()
    all_rows = int(str(tree.get_attribute("aria-rowcount"))) - 1
    assert all_rows == len(steps())
    search, said = page.get_by_label("Search in this trace"), page.locator(".t-tools [role=status]")
    search.fill("LOOKUP")
    expect(said).to_have_text(str(LOOKUPS))
    search.press("Enter")
    expect(said).to_have_text(f"1 of {LOOKUPS}")
    page.get_by_role("button", name="Next match").click()
    page.get_by_role("button", name="Next match").click()
    expect(said).to_have_text(f"3 of {LOOKUPS}")
    expect(active(page)).to_have_text("lookup 2")
    for _ in range(3):
        page.get_by_role("button", name="Previous match").click()
    expect(said).to_have_text(f"{LOOKUPS} of {LOOKUPS}")
    expect(active(page)).to_have_text(f"lookup {LOOKUPS - 1}")
    page.get_by_role("button", name="Only matches").click()
    expect(tree).to_have_attribute("aria-rowcount", str(LOOKUPS + 2))  # with the root, and the head
    page.get_by_role("button", name="Only matches").click()
    search.fill("no such step")
    expect(said).to_have_text("none")
    search.fill("")
    page.get_by_role("button", name="Only errors").click()
    expect(tree).to_have_attribute("aria-rowcount", str(3 + 2))
    for number in (0, 1, 2, 0):
        page.get_by_role("button", name="Next error").click()
        expect(active(page)).to_have_text(f"broken {number}")


def active(page: Page) -> Any:
    """The name of the active row."""
    return page.locator(".t-row.active:visible .t-name")


def test_pain_13_a_short_step_is_seen_and_can_be_zoomed_to(opened: Callable[[str], Page]) -> None:
    page = opened("#/traces/steps")
    tree = page.get_by_role("treegrid")
    expect(tree).to_be_focused()
    page.keyboard.press("End")
    row = page.locator(".t-row.active:visible")
    expect(row.locator(".t-name")).to_have_text("short")
    box = box_of(row.locator(".t-bar"))
    assert box is not None
    assert box["width"] >= 2 - 0.01, "a microsecond of an hour is two pixels"
    strip = box_of(page.locator(".t-strip"))
    assert strip is not None
    middle = strip["y"] + strip["height"] / 2
    page.mouse.move(strip["x"] + strip["width"] * 0.05, middle)
    page.mouse.down()
    page.mouse.move(strip["x"] + strip["width"] * 0.06, middle)
    page.mouse.up()
    page.wait_for_url("**from=*")
    assert window_of(page) == pytest.approx((180 * SECOND, 216 * SECOND), abs=6 * SECOND)
    tree.focus()
    goes_elsewhere(page, "+")
    low, high = window_of(page)
    assert high - low == pytest.approx(18 * SECOND, abs=4 * SECOND)
    page.reload()
    expect(tree).to_be_focused()
    assert window_of(page) == (low, high)
    expect(page.locator(".t-window")).to_be_visible()
    goes_elsewhere(page, "-")
    page.keyboard.press("0")
    page.wait_for_function("!location.href.includes('from=')")
    expect(page.locator(".t-window")).to_be_hidden()


def window_of(page: Page) -> tuple[float, float]:
    """Milliseconds of the trace that the address says are shown."""
    first, last = (float(re.findall(rf"{name}=([\d.]+)", page.url)[0]) for name in ("from", "to"))
    return first, last


def test_pain_14_a_step_outside_its_parent_stays_where_it_was_and_says_by_how_much(
    opened: Callable[[str], Page],
) -> None:
    page = opened("#/traces/steps?from=99000&to=103000")
    expect(page.get_by_role("treegrid")).to_be_focused()
    page.keyboard.press("End")
    outside = page.locator(".t-row.out:visible .t-name")
    expect(outside).to_have_text(["early", "late"])
    pane = step_of(page, "early")
    expect(pane).to_contain_text("Outside its parent: starts 250 ms before it.")
    time = pane.locator("dt", has_text=re.compile("^Start$")).locator("xpath=following-sibling::dd[1]").locator("time")
    sent = next(each for each in steps() if each["name"] == "early")["timestamp"]
    assert time.get_attribute("datetime") == sent == stamp(BEGAN + timedelta(milliseconds=99_750))
    expect(step_of(page, "late")).to_contain_text("Outside its parent: ends 500 ms after it.")
    assert "Outside" not in step_of(page, "inner").inner_text()
    ruler = box_of(page.locator(".t-ruler"))
    bar = (
        page.locator(".t-row:visible")
        .filter(has=page.get_by_text("early", exact=True))
        .locator(".t-bar")
        .bounding_box()
    )
    assert ruler is not None
    assert bar is not None
    assert (bar["x"] - ruler["x"]) / ruler["width"] == pytest.approx(750 / 4000, abs=0.01), "drawn where it was sent"


def test_pain_15_self_time_is_the_own_time_that_no_child_covers(opened: Callable[[str], Page]) -> None:
    page = opened("#/traces/steps")
    expect(page.get_by_role("treegrid")).to_be_focused()
    page.keyboard.press("End")
    pane = step_of(page, "parent")
    # Of its second, `early` covers 0 to 250 ms, `inner` 200 to 500 and `late` 900 to 1000.
    assert beside(pane, "Self time") == "400 ms"
    expect(pane.locator("dt", has_text="Self time")).to_have_attribute("title", "Own time that no child covers")
    assert beside(step_of(page, "inner"), "Self time") == "300 ms"
    words = page.evaluate("document.body.innerText").lower()
    assert words.count("self time") == 1


def test_pain_16_json_is_made_as_it_is_opened(opened: Callable[[str], Page], fake: Fake) -> None:
    page = opened(f"#/events/{large()[0]['event_id']}")
    pane = page.get_by_role("complementary", name="One event")
    opener = pane.locator("summary", has_text="list")
    expect(opener).to_contain_text("[250]")
    items = pane.locator(".json-inside > .json")
    expect(items).to_have_count(0)
    opener.click()
    expect(items).to_have_count(100)
    pane.get_by_role("button", name="Show 100 more of 150").click()
    expect(items).to_have_count(200)
    pane.get_by_role("button", name="Show 50 more of 50").click()
    expect(items).to_have_count(250)
    text = pane.locator(".json", has_text=re.compile("^text")).locator(".json-text")
    assert text.inner_text() == "t" * 2000
    pane.get_by_role("button", name="Show all 3,000 characters").click()
    assert text.inner_text() == "t" * 3000
    wanted = {**large()[0], "event_id": "huge", "extra": {"text": "h" * 300_000}}
    fake.events.append(wanted)
    try:
        page = opened("#/events/huge")
        expect(pane.get_by_label("How the unknown fields begin")).to_have_text(re.compile(r'^\{"text":"h+…$'))
        with page.expect_download() as waiting:
            pane.get_by_role("button", name=re.compile("Save all 300,0.. characters")).click()
        assert Path(waiting.value.path()).read_text() == '{"text":"' + "h" * 300_000 + '"}'
    finally:
        fake.events.remove(wanted)


def test_pain_17_a_long_session_goes_on_to_its_end(opened: Callable[[str], Page]) -> None:
    page = opened("#/sessions/long")
    lines = page.locator("ol.session > li")
    expect(lines).to_have_count(50)
    page.get_by_role("button", name="Show more of 70").click()
    expect(lines).to_have_count(100)
    page.get_by_role("button", name="Most expensive").click()
    expect(lines.nth(100).get_by_role("link")).to_be_focused()
    page.get_by_role("button", name="Last", exact=True).click()
    expect(lines).to_have_count(CHATS)
    expect(lines.last.get_by_role("link")).to_be_focused()
    names = lines.locator("> a").all_inner_texts()
    assert names == [f"turn {at}" for at in range(CHATS)], "in order of time"
    assert dollars(lines.last.locator(".sub .sum").inner_text()) == CHATS + 8
    page.get_by_role("button", name="First", exact=True).click()
    expect(lines.first.get_by_role("link")).to_be_focused()


def test_pain_19_a_count_that_was_not_counted_to_its_end_says_so(opened: Callable[[str], Page]) -> None:
    page = opened("#/traces")

    def uncounted(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=re.sub(r'"total":\d+', '"total":null', answer.text()))

    page.route("**/v1/events?*", uncounted)
    page = opened("#/events")
    head = page.locator("#view-events .head").first
    expect(head).to_contain_text("more than 1,000,000")
    page.unroute_all(behavior="wait")
    page = opened(f"#/explore?tag=set:compared&range=30d&group_by=model&limit={LIMIT}")
    expect(page.get_by_text(f"The {LIMIT} largest groups by cost over the whole range.")).to_be_visible()
    expect(page.get_by_role("button", name="Show more groups")).to_be_visible()


def test_pain_20_a_list_says_how_complete_it_is_and_stays_one_list(
    opened: Callable[[str], Page], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = datetime(2026, 11, 28, 14, 3, 11, tzinfo=UTC)
    monkeypatch.setattr(fake_events_api, "stamp", lambda: {"asOf": stamp(at), "lagSeconds": 4.2})
    page = opened("#/events?range=7d")
    expect(page.locator("#view-events .stamp:visible, #view-events .hint:visible").last).to_contain_text(
        "Complete up to 2026-11-28 14:03:11 UTC, 4 s behind."
    )
    page.get_by_role("button", name="Show more").click()
    expect(rows(page, "events")).to_have_count(100)
    first, second = (each for each in asked(fake, "/v1/events") if "extra" in each and each["limit"] == ["50"])
    cursor = second.pop("cursor")
    assert first == second, "the same range to the millisecond"
    assert len(cursor) == 1
    shown = rows(page, "events").locator("th a").evaluate_all("links => links.map((each) => each.href)")
    assert len(set(shown)) == 100


def test_pain_21_every_row_is_a_link_that_opens_in_a_new_tab(
    opened: Callable[[str], Page], tab: Visit, fake: Fake
) -> None:
    found = {}
    for view in ("events", "traces", "sessions"):
        page = opened(f"#/{view}?range=7d&tz=Asia/Kolkata")
        expect(rows(page, view).first).to_be_visible()
        links = rows(page, view).locator("th a[href]")
        assert links.count() == rows(page, view).count()
        found[view] = str(links.first.evaluate("each => each.href"))
        assert "tz=Asia" in found[view]
    other = tab.page.context.new_page()
    try:
        for at, (view, address) in enumerate(found.items()):
            other.goto(address)
            if not at:
                other.get_by_label("API key").fill(fake.key)
                other.get_by_role("button", name="Sign in").click()
            expect(other.locator(f"#view-{view} :is(.event-body, .facts)").first).not_to_be_empty()
            assert other.url == address
    finally:
        other.close()
