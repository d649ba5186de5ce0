"""The page for everybody: accessible in light and dark, on phones and desktops, and soon there with many events."""

import os
import urllib.error
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, expect

from tests.support import browser as browsers
from tests.support.agent_traffic import month
from tests.support.axe import low_contrasts, violations
from tests.support.browser import read, visit
from tests.support.event_views import drawn
from tests.support.fake_events_api import Fake, fake_api, live_frame
from tests.support.page_views import CONTENT, first_content
from tests.support.server import KEY, Server, server, wait_until
from tools.make_segments import make_store

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

expect.set_options(timeout=browsers.PATIENCE)

Event = dict[str, Any]

SCHEMES: Final = ("light", "dark")
SIZES: Final = ({"width": 1280, "height": 900}, {"width": 375, "height": 812})
EVENTS: Final = int(os.environ.get("PAGE_EVENTS", "20000"))
"""Events of the project whose pages are timed; PAGE_STORE names a directory in which they are made once and kept."""


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    """A month of an agent's events, few of each kind: axe takes as long as there are rows. Tests leave it as it is."""
    with fake_api(few_of_each_kind(month(12, datetime.now(UTC)))) as started:
        yield started


def few_of_each_kind(events: list[Event]) -> list[Event]:
    """The trace with the most steps, in which a call fails and one has no price, and a call of each other trace."""
    steps = Counter(each["trace_id"] for each in events if each["kind"] == "span")
    [(whole, _)] = steps.most_common(1)
    calls = {each["trace_id"]: each for each in events if each["kind"] == "call" and each["trace_id"] != whole}
    made = [each for each in events if each["trace_id"] == whole]
    failed, unpriced = [each for each in made if each["kind"] == "call"][:2]
    failed |= {"status": "error", "error_message": "The model is overloaded."}
    unpriced["cost_usd"] = None
    return [*made, *calls.values()]


# --- axe and contrast ------------------------------------------------------------------------------------------------


def addresses(fake: Fake) -> list[str]:
    """Every view, with all that it can show."""
    failed = next(each for each in fake.events if each["status"] != "success")
    ids = {"events": "event_id", "traces": "trace_id", "sessions": "session_id", "users": "user_id"}
    one = [f"#/{view}/{quote(failed[name])}" for view, name in ids.items()]
    prompts = "#/prompts?hash=9f2c1ab0&hash=c41d77e2"
    fake.live.append(live_frame(1, fake.events[:5], 7))
    lists = ["#/", "#/?tz=Asia/Kolkata", "#/explore?compare=1", "#/events", "#/events?live=1", "#/traces", "#/sessions"]
    return [*lists, prompts, *one]


def test_check_12_axe_finds_nothing_in_any_view(chrome: Browser, fake: Fake) -> None:
    with visit(chrome, cast(Any, fake), watch=False, bypass_csp=True) as seen:
        seen.sign_in(fake.key)
        page = seen.page
        expect(page.locator("#users tbody tr").first).to_be_visible()
        every = addresses(fake)
        for address in every:
            page.goto("about:blank")  # views that were seen before stay in the page, and axe goes through them, too
            page.goto(f"{seen.origin}/{address}")
            page.wait_for_timeout(400)
            drawn(page)
            expect(page.locator("[aria-busy]")).to_have_count(0)
            for (size, scheme), at in zip(product(SIZES, SCHEMES), range(4), strict=True):
                page.set_viewport_size(cast(Any, size))
                page.emulate_media(color_scheme=cast(Any, scheme))
                drawn(page)  # charts, too, have the new size
                # Colours differ by scheme, all else by size only.
                others = violations(page, contrast=False) if at in {0, 3} else []
                found = [*low_contrasts(page), *others]
                assert (address, size, scheme, found) == (address, size, scheme, [])
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (address, size)
        for address in every:  # and all of them one after the other, in one document
            page.goto(f"{seen.origin}/{address}")
            drawn(page)
        assert page.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id).sort()") == sorted(
            page.evaluate("[...new Set([...document.querySelectorAll('[id]')].map((each) => each.id))]")
        )
        assert seen.faults == []


def test_a_text_without_contrast_is_found(chrome: Browser, fake: Fake) -> None:
    """In an element of its own, and where only the ground is another than that of all the texts like it."""
    with visit(chrome, cast(Any, fake), watch=False, bypass_csp=True, color_scheme="light") as seen:
        assert low_contrasts(seen.page) == []
        for style in ("color: #bbb", "background: #333"):
            seen.page.evaluate(
                """(style) => {
                    const [made, text] = [document.createElement("div"), document.createElement("p")];
                    made.style = style;
                    made.id = "made";
                    text.textContent = "Nobody can read this.";
                    made.append(text);
                    document.body.append(made);
                }""",
                style,
            )
            [found] = low_contrasts(seen.page)
            assert "Nobody can read this." in found
            seen.page.evaluate("document.querySelector('#made').remove()")


BARS: Final = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const drawn = (...colours) => {
        for (const colour of colours) (canvas.fillStyle = colour, canvas.fillRect(0, 0, 1, 1));
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const linear = (each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    const light = (rgb) => {
        const [r, g, b] = rgb.map((each) => linear(each / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const card = document.body.appendChild(document.createElement("div"));
    card.className = "card";
    const ground = getComputedStyle(card).backgroundColor;
    const colourOf = (name, property, outer = "") => {
        const host = card.appendChild(document.createElement("div"));
        host.className = outer;
        const made = host.appendChild(document.createElement("i"));
        made.className = name;
        return getComputedStyle(made)[property];
    };
    const series = [0, 1, 2, 3, 4, 5, 6, 7, "x"].map((at) => [`series ${at}`, `swatch s${at}`]);
    const bars = {
        ...Object.fromEntries(series.map(([name, swatch]) => [name, colourOf(swatch, "backgroundColor")])),
        "step": colourOf("t-bar", "backgroundColor", "t-row step"),
        "call": colourOf("t-bar", "backgroundColor", "t-row"),
        "error": colourOf("t-bar", "backgroundColor", "t-row error"),
        "strip": colourOf("t-strip", "color"),
        "match": colourOf("t-window", "caretColor"),
    };
    card.remove();
    const low = light(drawn(ground));
    return Object.fromEntries(Object.entries(bars).map(([name, colour]) => {
        const own = light(drawn(ground, colour));
        return [name, (Math.max(own, low) + 0.05) / (Math.min(own, low) + 0.05)];
    }));
}"""
"""The contrast of everything that is read off as a bar or a line against the card that it stands on."""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_check_12_bars_stand_out_from_their_ground(chrome: Browser, fake: Fake, scheme: str) -> None:
    with visit(chrome, cast(Any, fake), color_scheme=scheme) as seen:
        found = seen.page.evaluate(BARS)
    assert {name: round(ratio, 2) for name, ratio in found.items() if ratio < 3} == {}
    assert len(found) == 14


# --- many events -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on an event store of many events, in segments as the role `store` merges them."""
    kept = os.environ.get("PAGE_STORE")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("large")
    if not (folder / "data").exists():
        make_store(folder / "data", EVENTS, days=25, key=KEY)
    with server(folder / "data", role="api", event_store="on") as started:
        start = (datetime.now(UTC) - timedelta(days=30)).strftime("%Y-%m-%dT00:00:00Z")
        wait_until(lambda: has_events(started, start))
        yield started


def has_events(started: Server, start: str) -> bool:
    """Whether events are listed; the server may have to find its store first."""
    try:
        return bool(read(started, f"/v1/events?limit=1&start={start}")["events"])
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return False


def test_check_12_the_first_content_of_each_view_is_there_within_a_second(chrome: Browser, large: Server) -> None:
    with visit(chrome, large) as seen:
        seen.sign_in(large.key)
        expect(seen.page.locator("#users").first).to_be_visible()
        took = {view: first_content(seen, view) for view in CONTENT}
        assert (seen.faults, seen.strangers) == ([], [])
    # A machine with other work lets the page wait as many times longer as there are others who wait.
    patience = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert {view: seconds for view, seconds in took.items() if seconds > patience} == {}
