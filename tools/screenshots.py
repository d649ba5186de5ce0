"""Takes the pictures of the page in docs/images: `make screenshots`. Needs Chromium on PATH."""

import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.support import browser as browsers
from tests.support.server import Server, server
from tests.support.traffic import month

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
LIMIT = 200 * 1024
"""Bytes a picture may have."""


def take(chrome: Browser, at: Server, name: str, scheme: str, size: dict[str, int], user: str | None = None) -> None:
    with browsers.visit(chrome, at, color_scheme=scheme, viewport=size) as seen:
        seen.sign_in(at.key)
        page = seen.page
        expect(page.locator("#users tbody tr")).to_have_count(50)
        expect(page.locator("#live")).to_have_text("Live")
        if user is not None:
            page.get_by_role("link", name=user, exact=True).click()
            expect(page.locator("#p-chart canvas")).to_be_visible()
            expect(page.locator("#p-models tbody tr").first).to_be_visible()
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)  # the chart has been drawn
        path = FOLDER / f"{name}.png"
        page.screenshot(path=path)
        assert path.stat().st_size <= LIMIT, f"{path} is too large"
        print(path, path.stat().st_size)


def take_view(chrome: Browser, at: Server, key: str, name: str, address: str, ready: str) -> None:
    """Take a view on events of the demo project, once there is something of `ready`."""
    with browsers.visit(chrome, at, color_scheme="light", viewport=browsers.DESKTOP) as seen:
        seen.sign_in(key)
        seen.page.goto(f"{seen.origin}/{address}")
        expect(seen.page.locator(ready).first).to_be_visible()
        seen.page.mouse.move(0, 0)
        seen.page.wait_for_timeout(1000)  # charts and panes have been drawn
        path = FOLDER / f"{name}.png"
        seen.page.screenshot(path=path)
        assert path.stat().st_size <= LIMIT, f"{path} is too large"
        print(path, path.stat().st_size)


def take_demo(chrome: Browser, at: Server) -> None:
    """Take the views on events, of the traffic of `spendstream demo`."""
    done = at.cli("demo", "--url", f"http://{at.http}", "--traces", "1500")
    assert done.returncode == 0, done.stderr
    key = done.stdout.split()[-1]
    time.sleep(5)  # the event store is some seconds behind
    start = (datetime.now(UTC) - timedelta(days=29)).strftime("%Y-%m-%dT00:00:00Z")
    trace = browsers.read(at, f"/v1/traces?sort=errors&limit=1&start={start}", key)["traces"][0]["trace_id"]
    spans = browsers.read(at, f"/v1/traces/{trace}?extra=none", key)["spans"]
    event = next(span["event_id"] for span in spans if span["status"] != "success")
    explore = "#/explore?measures=cost_usd&measures=latency_ms:p95&group_by=user_id&limit=5"
    take_view(chrome, at, key, "explore", explore, ".explore-table")
    take_view(chrome, at, key, "events", "#/events", "#view-events tbody tr")
    take_view(chrome, at, key, "trace-page", f"#/traces/{trace}?event={event}&critical=1", ".event-body dl")
    take_view(chrome, at, key, "prompts", "#/prompts?hash=9f2c1ab0&hash=e0b35f91", "table.compare")


def main() -> int:
    if browsers.find() is None:
        print(f"None of {', '.join(browsers.NAMES)} is on PATH.", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    expect.set_options(timeout=browsers.PATIENCE)
    with server(event_store="on") as started, browsers.browser() as chrome:
        limit = started.cli("orgs", "set", "default", "--monthly-quota", "1000000")
        assert limit.returncode == 0, limit.stderr
        browsers.ingest(started, month(30_000, datetime.now(UTC)))
        take(chrome, started, "page-light", "light", browsers.DESKTOP)
        take(chrome, started, "page-dark", "dark", browsers.DESKTOP)
        take(chrome, started, "page-phone", "dark", browsers.PHONE)
        take(chrome, started, "page-user", "light", browsers.DESKTOP, user="search-ada")
        take_demo(chrome, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
