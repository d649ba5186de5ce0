"""axe-core in a page: what its rules find."""

from collections.abc import Sequence
from typing import Any, Final, cast

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

CONTRAST: Final = ("color-contrast",)
"""The rules that go by the colour scheme."""

_RUN: Final = """async (options) => {
    const { violations } = await axe.run(document, { resultTypes: ["violations"], ...options });
    return violations.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => node.html).join(" ")}`);
}"""
"""Only what fails comes out of the browser: all that passes would be as much again."""


def violations(page: Page, rules: Sequence[str] = ()) -> list[str]:
    """Return what all of axe's rules find, or these only. axe-core is put into a document once.

    It writes markup into the page, which the page's policy forbids: the tab has to be one with `bypass_csp`.
    """
    if not page.evaluate("'axe' in window"):
        page.evaluate(Axe().axe_script)
    options: dict[str, Any] = {"runOnly": list(rules)} if rules else {}
    return cast(list[str], page.evaluate(_RUN, options))
