"""When a view of the page has its first content."""

import time
from typing import Final

from tests.support.browser import Visit

CONTENT: Final = {
    "": "#users table",
    "explore": ".explore-table tbody tr",
    "events": "#view-events tbody tr",
    "traces": "#view-traces tbody tr",
    "sessions": "#view-sessions :is(tbody tr, .notice)",
    "prompts": "#view-prompts :is(tbody tr, .notice)",
}
"""View -> what is there when its first content is."""


def first_content(seen: Visit, view: str) -> float:
    """Seconds from an address to the view's first content, all of the page loaded anew."""
    seen.page.goto("about:blank")
    began = time.monotonic()
    seen.page.goto(f"{seen.origin}/#/{view}", wait_until="commit")
    there = "(content) => document.querySelector(content)?.checkVisibility()"
    seen.page.wait_for_function(there, arg=CONTENT[view], polling="raf")
    return time.monotonic() - began
