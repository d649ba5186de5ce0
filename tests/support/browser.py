"""A real browser on the page: Chromium as the system has it, steered by Playwright, and what may not happen in it."""

import json
import os
import shutil
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    FloatRect,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)

from tests.support.events import to_ndjson
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import Server
from tests.support.tenants import Tenant

NAMES: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE: Final = 1000 * PROCESS_PATIENCE
"""Milliseconds, as Playwright counts."""
ARGUMENTS: Final = (
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--renderer-process-limit=1",
    "--host-resolver-rules=MAP plain.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
"""There is no other host than this machine: what is asked of one fails, and is written down (`Visit`). All tabs share a
process, which has the page's modules compiled; one of its own for each tab costs as much as signing in."""
INSECURE: Final = "plain.test"
"""A name of this machine that browsers do not trust as they trust 127.0.0.1."""
DESKTOP: Final = {"width": 1280, "height": 900}
PHONE: Final = {"width": 390, "height": 844}


def find() -> str | None:
    """The Chromium of this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def required() -> bool:
    """Whether a missing browser is a failure."""
    return os.environ.get("REQUIRE_BROWSER") == "1"


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium for the length of the block. While it runs this thread can have no other event loop."""
    path = find()
    assert path is not None, f"none of {', '.join(NAMES)} is on PATH"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS])
        try:
            yield started
        finally:
            started.close()


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    """A browser for the tests of a module, which must not be async; without one they are skipped, or fail."""
    if find() is None:
        said = f"no Chromium: none of {', '.join(NAMES)} is on PATH (REQUIRE_BROWSER=1 makes this a failure)"
        if required():
            pytest.fail(said)
        pytest.skip(said)
    with browser() as started:
        yield started


class Site(Protocol):
    """What has a page: a server, or a project of one."""

    @property
    def http(self) -> str:
        """Host and port."""
        ...


@dataclass
class Visit:
    """One tab, and everything in it that should not have been."""

    page: Page
    origin: str
    faults: list[str] = field(default_factory=list)
    """Messages of the console and exceptions, in order."""
    strangers: list[str] = field(default_factory=list)
    """Requests to anywhere but the server."""

    def sign_in(self, key: str) -> None:
        """Type a key in and send it."""
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()

    def start_anew(self) -> None:
        """Leave the page and all that it keeps but the key: the next address finds it as in a new tab."""
        self.page.unroute_all(behavior="wait")
        if self.page.url != "about:blank":
            self.page.evaluate("localStorage.clear()")
            self.page.goto("about:blank")
        size: Any = DESKTOP
        self.page.set_viewport_size(size)
        self.faults.clear()
        self.strangers.clear()

    def note(self, message: ConsoleMessage) -> None:
        """Write a message of the console down."""
        if message.type in {"error", "warning"}:
            self.faults.append(message.text)

    def watch(self, request: Request) -> None:
        """Write a request down that is not to the server. To route them all would cost as much as the page."""
        url = request.url.removeprefix("blob:")  # made by the page itself
        if f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" != self.origin:
            self.strangers.append(request.url)

    def forget(self, request: Request) -> None:
        """Take back what the page's own policy stopped: that was not asked of anybody."""
        if request.failure == "csp":
            self.strangers.remove(request.url)


@contextmanager
def visit(browser: Browser, server: Site, *, watch: bool = True, **options: Any) -> Iterator[Visit]:
    """A fresh tab at `/`. With `watch`, what it asks of others is written down.

    Tabs without other `options` than the size follow each other in one window, whose storage is emptied after each: a
    window of its own costs a browser as much as a whole test.
    """
    origin = f"http://{server.http}"
    size: Any = options.pop("viewport", DESKTOP)
    context = browser.new_context(viewport=size, **options) if options else _window(browser)
    page = context.new_page()
    try:
        if not options:
            page.set_viewport_size(size)
        made = Visit(page, origin)
        page.set_default_timeout(PATIENCE)
        page.on("console", made.note)
        page.on("pageerror", lambda error: made.faults.append(str(error)))
        if watch:
            page.on("request", made.watch)
            page.on("requestfailed", made.forget)
        page.goto(origin + "/")
        yield made
    finally:
        if options:
            context.close()
        else:
            _close(page, origin)


_windows: Final[WeakKeyDictionary[Browser, BrowserContext]] = WeakKeyDictionary()


def _window(browser: Browser) -> BrowserContext:
    """The window that is shared; an empty tab keeps it open."""
    if browser not in _windows:
        _windows[browser] = browser.new_context()
        _windows[browser].new_page()
    return _windows[browser]


def _close(page: Page, origin: str) -> None:
    """Close a tab and those that it opened, and leave nothing that the origin has stored."""
    context = page.context
    first, *others = context.pages
    for each in others:
        each.close()
    devtools = context.new_cdp_session(first)
    devtools.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
    devtools.detach()


def choose_range(page: Page, name: str) -> None:
    """Take one of the ranges that the bar offers."""
    page.locator("#range-button").click()
    page.get_by_role("link", name=name, exact=True).click()


def ingest(server: Server | Tenant, events: Iterable[dict[str, Any]], key: str | None = None) -> str:
    """Send events, 100 a request; returns the position of the last request. Raises for any answer but 202."""
    waiting = list(events)
    position = ""
    for start in range(0, len(waiting), 100):
        request = urllib.request.Request(
            f"http://{server.http}/v1/ingest",
            to_ndjson(waiting[start : start + 100]),
            {"x-api-key": key or server.key, "Content-Type": "application/x-ndjson"},
        )
        with urllib.request.urlopen(request, timeout=PROCESS_PATIENCE) as response:
            assert response.status == 202
            assert "rejected" not in json.loads(response.read())
            position = response.headers["x-ingest-position"]
    return position


def read(server: Server | Tenant, path: str, key: str | None = None) -> Any:
    """The JSON of a read, numbers as they are written."""
    request = urllib.request.Request(f"http://{server.http}{path}", headers={"x-api-key": key or server.key})
    with urllib.request.urlopen(request, timeout=PROCESS_PATIENCE) as response:
        return json.loads(response.read(), parse_float=str, parse_int=str)


def box_of(found: Locator) -> FloatRect:
    """Where an element is, once it is to be seen."""
    expect(found).to_be_visible()
    box = found.bounding_box()
    assert box is not None
    return box
