"""What tests of the page's views on events read from it."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from playwright.sync_api import Locator, Page, expect

from tests.support.fake_events_api import Fake

LONG_TASK: Final = 50.0
"""Milliseconds of CPU that one task of the page may take: what is longer is felt."""


def asked(fake: Fake, path: str) -> list[dict[str, list[str]]]:
    """The parameters of the requests to a path, in order."""
    found = []
    for each in fake.asked:
        parts = urlsplit(each)
        if parts.path == path:
            parameters: dict[str, list[str]] = {}
            for name, value in parse_qsl(parts.query, keep_blank_values=True):
                parameters.setdefault(name, []).append(value)
            found.append(parameters)
    return found


def drawn(page: Page) -> None:
    """Wait until the page has taken in what was done to it, and has drawn itself: scrolling is noted by then, too."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def settled(page: Page) -> None:
    """Wait until nothing is being read."""
    page.wait_for_selector(".view:visible")
    page.wait_for_timeout(150)
    drawn(page)
    expect(page.locator("[aria-busy]")).to_have_count(0)
    page.wait_for_timeout(150)


def rows(page: Page, view: str) -> Locator:
    """The rows of a view's first list."""
    return page.locator(f"#view-{view} table.list tbody tr")


def dollars(text: str) -> Decimal:
    """A sum as the page writes it."""
    return Decimal(re.sub(r"[$,]", "", text.strip()))


def whole(text: str) -> int:
    """A count as the page writes it."""
    return int(text.replace(",", ""))


class Tasks:
    """What the page's own thread did in one go, by the CPU that it took: a busy machine makes no task longer."""

    def __init__(self) -> None:
        self.longest = 0.0
        """Milliseconds of the longest task, once the watching is over."""

    def read(self, trace: bytes) -> None:
        """Read a trace of the browser."""
        events = json.loads(trace)["traceEvents"]
        names = {(each["pid"], each["tid"]): each["args"]["name"] for each in events if each["name"] == "thread_name"}
        own = [each for each in events if names.get((each["pid"], each["tid"])) == "CrRendererMain"]
        took = [each["tdur"] / 1000 for each in own if each["name"].endswith("RunTask") and "tdur" in each]
        assert took, "the browser noted no task"
        self.longest = max(took)


@contextmanager
def watched(page: Page) -> Iterator[Tasks]:
    """Watch the page's tasks for the length of the block."""
    browser = page.context.browser
    assert browser is not None
    browser.start_tracing(page=page, categories=["toplevel"])
    tasks = Tasks()
    try:
        yield tasks
    finally:
        trace = browser.stop_tracing()
    tasks.read(trace)


def heap(page: Page) -> int:
    """Bytes of JavaScript's heap, garbage taken out."""
    session: Any = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return int(used)
