"""Takes the pictures of the page in docs/images: `python -m tools.screenshots`. Needs Chromium on PATH."""

import sys
from datetime import UTC, datetime
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


def main() -> int:
    if browsers.find() is None:
        print(f"None of {', '.join(browsers.NAMES)} is on PATH.", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    expect.set_options(timeout=browsers.PATIENCE)
    with server() as started, browsers.browser() as chrome:
        limit = started.cli("orgs", "set", "default", "--monthly-quota", "1000000")
        assert limit.returncode == 0, limit.stderr
        browsers.ingest(started, month(30_000, datetime.now(UTC)))
        take(chrome, started, "page-light", "light", browsers.DESKTOP)
        take(chrome, started, "page-dark", "dark", browsers.DESKTOP)
        take(chrome, started, "page-phone", "dark", browsers.PHONE)
        take(chrome, started, "page-user", "light", browsers.DESKTOP, user="search-ada")
    return 0


if __name__ == "__main__":
    sys.exit(main())
