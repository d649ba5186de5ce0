"""What tests of the page's views on events read from it."""

import os
import re
from decimal import Decimal
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from playwright.sync_api import Locator, Page, expect

from tests.support.fake_events_api import Fake

WATCH: Final = """() => {
    window.tasks = [];
    window.watcher?.disconnect();
    const note = (list) => window.tasks.push(...list.getEntries().map((each) => each.duration));
    window.watcher = new PerformanceObserver(note);
    window.watcher.observe({ entryTypes: ["longtask"] });
}"""


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


def settled(page: Page) -> None:
    """Wait until nothing is being read."""
    page.wait_for_selector(".view:visible")
    page.wait_for_timeout(150)
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


def watch_tasks(page: Page) -> None:
    """Begin to note tasks of more than 50 ms."""
    page.evaluate(WATCH)


def longest_task(page: Page) -> float:
    """Milliseconds of the longest of them; 0: there was none."""
    return float(max(page.evaluate("window.tasks"), default=0))


def allowed_task() -> float:
    """Milliseconds a task may take: 50, and on a machine with other work as much more as there are others who wait."""
    return 50 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def heap(page: Page) -> int:
    """Bytes of JavaScript's heap, garbage taken out."""
    session: Any = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return int(used)
