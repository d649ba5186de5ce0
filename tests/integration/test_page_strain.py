"""The page under strain: hostile names and fields, a host that is no secure context, a live tail that does not end."""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast
from urllib.parse import quote, urlencode

import msgspec
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support import browser as browsers
from tests.support.agent_traffic import event
from tests.support.browser import INSECURE, Visit, box_of, visit
from tests.support.event_views import LONG_TASK, drawn, heap, rows, watched
from tests.support.fake_events_api import Fake, fake_api, live_frame

pytestmark = [pytest.mark.browser, pytest.mark.slow]

expect.set_options(timeout=browsers.PATIENCE)

NOW: Final = datetime.now(UTC)
HOSTILE: Final = (
    "<img src=x onerror=alert(1)>",
    "../../healthz",
    "a/b?c#d&e=%2F",
    "\u202eabc",
    "😀" * 256,
    "x" * 10_240,
)
LONGEST_ID: Final = 256
"""Characters of an id, at most; names may have more."""
TEXT: Final = "y" * 1_000_000
DEEP: Final = '{"a":' * 1000 + "1e3" + "}" * 1000
NUMBERS: Final = "[" + ",".join(f"{n}.{n}e1" for n in range(90_000)) + "]"
"""A megabyte of numbers."""
LIVE_SECONDS: Final = float(os.environ.get("PAGE_LIVE_SECONDS", "6"))
"""How long the live tail is followed."""
RUNS: Final = 5
"""How often the page's tasks are watched for a while, at least: what counts is the median."""
RATE: Final = 5000
"""Events a second that arrive."""
SENT: Final = 200
"""Events a second that the server sends of them; the others are counted."""

Event = dict[str, Any]


@contextmanager
def opened(chrome: Browser, events: list[Event], **options: Any) -> Iterator[tuple[Visit, Fake]]:
    """A signed-in tab on some events. What should not have been in it fails the test."""
    with fake_api(events) as fake, visit(chrome, cast(Any, fake), **options) as seen:
        seen.sign_in(fake.key)
        expect(seen.page.get_by_label("API key")).to_be_hidden()
        yield seen, fake
        assert (seen.faults, seen.strangers) == ([], [])


# --- hostile names and fields ----------------------------------------------------------------------------------------


def hostile() -> list[Event]:
    """For each name a trace of two events that have it wherever a name can be, and unknown fields of a megabyte."""
    made = []
    for number, name in enumerate(HOSTILE):
        ids = dict.fromkeys(("user_id", "session_id", "trace_id", "model"), name[:LONGEST_ID])
        own: Event = {**ids, "name": name, "error_message": name, "tags": {"team": name}}
        made += [
            event(2 * number, NOW - timedelta(hours=1, minutes=number), span_id="root", **own),
            event(2 * number + 1, NOW - timedelta(minutes=number), span_id="s", parent_span_id="root", **own),
        ]
        large = NUMBERS if number % 2 else json.dumps(TEXT)
        made[-1]["extra"] = msgspec.Raw(f'{{{json.dumps(name, ensure_ascii=False)}:{large},"deep":{DEEP}}}'.encode())
    return made


def fits(page: Page) -> bool:
    """Whether nothing sticks out sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_check_9_hostile_names_are_text_that_fits_and_costs_no_time(chrome: Browser) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    events = hostile()
    with opened(chrome, events, permissions=permissions) as (tab, _):
        with watched(tab.page) as tasks:
            for address in ("events", "traces", "sessions", "explore?group_by=name&group_by=user_id", "prompts", ""):
                tab.page.goto(f"{tab.origin}/#/{address}")
                tab.page.wait_for_timeout(300)
                drawn(tab.page)
                expect(tab.page.locator("[aria-busy]")).to_have_count(0)
                assert fits(tab.page), address
            for number, name in enumerate(HOSTILE):
                names_fit(tab, name)
                the_event_opens(tab, events[2 * number + 1], name)
        assert tasks.longest <= LONG_TASK
        for number, name in enumerate(HOSTILE):
            whole_text_is_copied(tab, events[2 * number + 1], name)


def names_fit(tab: Visit, name: str) -> None:
    """The trace, the session and the user of a name."""
    for view in ("traces", "sessions", "users"):
        tab.page.goto(f"{tab.origin}/#/{view}/{quote(name[:LONGEST_ID], safe='')}")
        place = tab.page.locator("#p-cost" if view == "users" else f"#view-{view} .facts").first
        expect(place).not_to_be_empty()
        assert fits(tab.page), (view, name)


def the_event_opens(tab: Visit, wanted: Event, name: str) -> Locator:
    """The event with unknown fields of a megabyte."""
    tab.page.goto(f"{tab.origin}/#/events/{wanted['event_id']}")
    pane = tab.page.get_by_role("complementary", name="One event")
    expect(pane).to_contain_text(str(wanted["event_id"]))
    assert fits(tab.page), name
    return pane


def without_blanks(text: str) -> str:
    """JSON without what only makes it readable: too deep for a parser."""
    return re.sub(r"\s", "", text)


def whole_text_is_copied(tab: Visit, wanted: Event, name: str) -> None:
    """What is copied of an event is all of it."""
    pane = the_event_opens(tab, wanted, name)
    pane.get_by_role("button", name="Copy JSON").click()
    expect(pane.get_by_role("button", name="Copied")).to_be_visible()
    copied = tab.page.evaluate("navigator.clipboard.readText()")
    assert without_blanks(bytes(wanted["extra"]).decode()) in without_blanks(copied), name
    pane.get_by_role("button", name="Copy name").click()
    tab.page.wait_for_function("(text) => navigator.clipboard.readText().then((copied) => copied === text)", arg=name)


# --- plain http ------------------------------------------------------------------------------------------------------


def test_check_10_copying_and_links_over_plain_http(chrome: Browser) -> None:
    made = [event(number, NOW - timedelta(minutes=number)) for number in range(3)]
    with fake_api(made) as fake:
        host = replace(fake, http=f"{INSECURE}:{fake.http.rpartition(':')[2]}")
        with visit(chrome, cast(Any, host)) as seen:
            seen.sign_in(fake.key)
            page = seen.page
            assert page.evaluate("isSecureContext") is False
            page.goto(f"{seen.origin}/#/events")
            page.get_by_role("button", name="Export").click()
            expect(page.get_by_label("A curl command that exports")).to_contain_text("--output spendstream-events.csv")
            page.keyboard.press("Escape")
            rows(page, "events").first.get_by_role("link").click()
            for name, text in (("Copy id", made[0]["event_id"]), ("Copy trace", made[0]["trace_id"])):
                page.get_by_role("button", name=name).click()
                box = page.get_by_role("dialog", name="Copy")
                expect(box).to_contain_text("Ctrl+C")
                field = box.get_by_role("textbox")
                expect(field).to_be_focused()
                assert (
                    field.evaluate("each => each.value.slice(each.selectionStart, each.selectionEnd)"),
                    field.input_value(),
                ) == (text, text)
                box.get_by_role("button", name="Close").click()
                expect(page.get_by_role("button", name=name)).to_be_focused()
            page.get_by_role("link", name=made[0]["trace_id"]).click()
            expect(page.get_by_role("treegrid")).to_be_focused()
            page.goto(f"{seen.origin}/#/explore?measures=requests")
            expect(page.locator(".explore-table .total td").first).to_have_text("3")
            # The browser says of such a host that a header of the policy means nothing there.
            assert [fault for fault in seen.faults if "Cross-Origin-Opener-Policy" not in fault] == []
            assert seen.strangers == []


# --- export ----------------------------------------------------------------------------------------------------------

PICKER: Final = """() => {
    window.written = null;
    window.showSaveFilePicker = async ({ suggestedName }) => ({
        createWritable: async () => {
            const parts = [];
            return new WritableStream({
                write: (part) => { parts.push(new TextDecoder().decode(part)); },
                close: () => { window.written = { name: suggestedName, text: parts.join("") }; },
                abort: () => { window.written = { name: suggestedName, aborted: true }; },
            });
        },
    });
}"""
"""The dialog of the system, which no test can use: a file in memory."""


def test_an_export_has_what_the_list_has_or_is_none(chrome: Browser) -> None:
    made = [event(number, NOW - timedelta(minutes=number), model=f"m{number % 3}") for number in range(600)]
    with opened(chrome, made) as (tab, fake):
        page = tab.page
        page.evaluate(PICKER)
        page.goto(f"{tab.origin}/#/events?{urlencode({'model': 'm1', 'range': '7d'})}")
        page.get_by_role("button", name="Export").click()
        page.get_by_label("Format").select_option("ndjson")
        page.get_by_role("button", name="Save…").click()
        expect(page.get_by_text("Saved: 200 events")).to_be_visible()
        written = page.evaluate("window.written")
        ids = [json.loads(line)["event_id"] for line in written["text"].splitlines()]
        assert written["name"] == "spendstream-events.ndjson"
        assert sorted(ids) == sorted(each["event_id"] for each in made if each["model"] == "m1")
        query = fake.asked[-1]
        assert "format=ndjson" in query
        assert "lqt_" not in query
        fake.break_export_after = 100
        page.get_by_role("button", name="Save…").click()
        expect(page.get_by_text("Not saved: ")).to_be_visible()
        assert page.evaluate("window.written.aborted") is True
        tab.faults[:] = [fault for fault in tab.faults if "ERR_" not in fault]


# --- live ------------------------------------------------------------------------------------------------------------


def test_pain_18_live_rows_wait_and_what_was_skipped_is_said(chrome: Browser) -> None:
    made = [event(number, NOW - timedelta(minutes=5)) for number in range(5)]
    with opened(chrome, made) as (tab, fake):
        tab.page.goto(f"{tab.origin}/#/events?live=1")
        expect(tab.page.get_by_text("Following: waiting for events")).to_be_visible()
        fake.live.append(live_frame(1, [event(100, NOW, name="first"), event(101, NOW, name="second")], 1204))
        expect(rows(tab.page, "events")).to_have_count(2)
        expect(rows(tab.page, "events").first).to_contain_text("second")
        expect(tab.page.get_by_text("1,204 skipped")).to_be_visible()
        rows(tab.page, "events").first.hover()
        fake.live.append(live_frame(2, [event(200 + number, NOW) for number in range(600)]))
        expect(tab.page.get_by_role("button", name="500 or more new")).to_be_visible()
        expect(rows(tab.page, "events").first).to_contain_text("second")
        tab.page.get_by_role("button", name="500 or more new").click()
        expect(rows(tab.page, "events")).to_have_count(500)


class Arrivals(threading.Thread):
    """Events that arrive 5,000 a second, as the server tells of them: 200 are sent, the others are counted."""

    TURNS: Final = 10
    """Frames a second."""

    def __init__(self, fake: Fake) -> None:
        super().__init__(daemon=True)
        self.sent = self.skipped = 0
        self._fake = fake
        self._over = threading.Event()

    def run(self) -> None:
        """Send until it is stopped."""
        began, turn = time.monotonic(), 0
        while not self._over.wait(max(0.0, began + turn / self.TURNS - time.monotonic())):
            events = [event(self.sent + at, NOW, name=f"event {self.sent + at}") for at in range(SENT // self.TURNS)]
            skipped = (RATE - SENT) // self.TURNS
            self._fake.live.append(live_frame(turn, events, skipped))
            self.sent, self.skipped, turn = self.sent + len(events), self.skipped + skipped, turn + 1

    def stop(self) -> None:
        """End, and wait for it."""
        self._over.set()
        self.join()


ROW: Final = """(row) => [row.innerText, row.getBoundingClientRect().top]"""


def test_check_11_a_live_tail_of_5000_events_a_second(chrome: Browser) -> None:
    with opened(chrome, [event(1, NOW)]) as (tab, fake):
        page = tab.page
        page.goto(f"{tab.origin}/#/events?live=1")
        expect(page.get_by_text("Following: waiting for events")).to_be_visible()
        page.mouse.move(5, 5)  # rows under the pointer would wait
        arrivals = Arrivals(fake)
        worst: list[float] = []
        with watched(page) as tasks:
            arrivals.start()
            expect(rows(page, "events")).to_have_count(500)
            nothing_moves_under_the_pointer(page)
        worst.append(tasks.longest)
        used, end = [heap(page)], time.monotonic() + LIVE_SECONDS
        while time.monotonic() < end or len(worst) < RUNS:
            with watched(page) as tasks:
                nothing_moves_under_the_pointer(page)
            worst.append(tasks.longest)
            assert rows(page, "events").count() == 500
            used.append(heap(page))
        arrivals.stop()
        shown = page.locator(".live-head [role=status]")
        expect(shown).to_contain_text(f"{arrivals.skipped:,} skipped")
        expect(rows(page, "events").first).to_contain_text(f"event {arrivals.sent - 1}")
        assert arrivals.sent > 500
        assert used[-1] < used[0] * 1.25 + 2_000_000, used
        assert sorted(worst)[len(worst) // 2] <= LONG_TASK, worst


def nothing_moves_under_the_pointer(page: Page) -> None:
    """Point at a row for a while, which stays where it is, then let the rows go on."""
    box = box_of(page.locator(".live-list"))
    assert box is not None
    at = (box["x"] + 300, box["y"] + 150)
    page.mouse.move(*at)
    page.wait_for_timeout(100)
    pointed = page.evaluate_handle("([x, y]) => document.elementFromPoint(x, y).closest('tr')", at)
    before = pointed.evaluate(ROW)
    page.wait_for_timeout(600)
    assert pointed.evaluate(ROW) == before
    page.mouse.move(5, 5)
    page.wait_for_timeout(300)
