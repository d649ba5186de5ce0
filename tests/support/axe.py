"""axe-core in a page: what its rules find."""

from typing import Any, Final, cast

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

CONTRAST: Final = "color-contrast"
"""The rule that goes by the colour scheme."""

_RUN: Final = """async ([context, options]) => {
    const { violations } = await axe.run(context ?? document, { resultTypes: ["violations"], ...options });
    return violations.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => node.html).join(" ")}`);
}"""
"""Only what fails comes out of the browser: all that passes would be as much again."""

_KINDS: Final = """() => {
    const grounds = new Map();
    const groundOf = (each) => {
        if (each === null) return "";
        if (!grounds.has(each)) {
            const { backgroundColor, backgroundImage, opacity, position } = getComputedStyle(each);
            const own = [backgroundColor, backgroundImage, opacity, position].join();
            grounds.set(each, `${groundOf(each.parentElement)} ${own}`);
        }
        return grounds.get(each);
    };
    const has = (each) => each.matches("input, select, textarea")
        || [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim() !== "");
    const kinds = new Map();
    for (const each of document.body.querySelectorAll("*")) {
        if (!each.checkVisibility() || !has(each)) continue;
        const { color, fontSize, fontWeight, textShadow } = getComputedStyle(each);
        const kind = [each.tagName, color, fontSize, fontWeight, textShadow, groundOf(each)].join();
        if (!kinds.has(kind)) kinds.set(kind, each);
    }
    return { include: [...kinds.values()] };
}"""
"""Of texts with the same colours and size on the same grounds axe finds the same, and takes as long for each."""


def violations(page: Page, *, contrast: bool = True) -> list[str]:
    """Return what all of axe's rules find, or all but the one of contrast. axe-core is put into a document once.

    It writes markup into the page, which the page's policy forbids: the tab has to be one with `bypass_csp`.
    """
    _put_in(page)
    options: dict[str, Any] = {} if contrast else {"rules": {CONTRAST: {"enabled": False}}}
    return cast(list[str], page.evaluate(_RUN, [None, options]))


def low_contrasts(page: Page) -> list[str]:
    """Return what the rule of contrast finds, of texts that look the same once."""
    _put_in(page)
    options = {"runOnly": [CONTRAST]}
    return cast(list[str], page.evaluate(_RUN, [page.evaluate_handle(_KINDS), options]))


def _put_in(page: Page) -> None:
    if not page.evaluate("'axe' in window"):
        page.evaluate(Axe().axe_script)
