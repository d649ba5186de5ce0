"""Row `page-views`: until each view of the page shows its first content, on a project of a million events."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from playwright.sync_api import Browser

from server.cli.demo_traffic import month
from tests.bench.context import KEY, Bench, outcome_of
from tests.bench.corpus import write_bodies
from tests.bench.end_to_end import Reader
from tests.bench.programs import Failed, Skipped, running
from tests.bench.results import Figures
from tests.support.browser import Visit, browser, find, visit
from tests.support.page_views import CONTENT, first_content
from tests.support.traffic import BATCH

EVENTS: Final = 1_000_000
TRACES: Final = 150_000
"""More than have so many events."""
VISITS: Final = 5
RATE: Final = 5000
"""Events a second beside the visits."""
AHEAD: Final = 300
"""Seconds of load at most."""
STORE_PATIENCE: Final = 600.0
WARM_UP: Final = 3.0
"""Seconds in which events come in before a view is opened."""


class _Site(NamedTuple):
    http: str


def page_views(bench: Bench) -> Figures:
    """The median and the longest of `VISITS` to each view, everything loaded anew; quiet, and beside ingest."""
    if find() is None:
        raise Skipped("no Chromium on PATH")
    with bench.server("serve", settings={"event_store": "on"}) as (_, said):
        bodies, calls = _a_month(bench)
        with bench.load("json", said, bodies=bodies) as fill:
            fill.tell("go")
            outcome_of(fill, EVENTS)
        reader = Reader(said)
        reader.wait_for(calls)
        reader.wait_for_store(calls, STORE_PATIENCE)
        with browser() as chromium:
            figures = _views(chromium, said, "quiet")
            with _events_beside(bench, said):
                return figures | _views(chromium, said, f"beside {RATE:,} events/s")


def _views(chromium: Browser, said: dict[str, Any], when: str) -> Figures:
    with visit(chromium, _Site(said["http"])) as seen:
        seen.sign_in(KEY)
        seen.page.locator("#users").first.wait_for()
        took = {view: sorted(first_content(seen, view) for _ in range(VISITS)) for view in CONTENT}
        _nothing_else(seen)
    figures = {}
    for view, seconds in took.items():
        figures[f"{view or 'overview'}, {when}, ms"] = 1e3 * seconds[VISITS // 2]
        figures[f"{view or 'overview'}, {when}, longest, ms"] = 1e3 * seconds[-1]
    return figures


def _nothing_else(seen: Visit) -> None:
    if seen.faults or seen.strangers:
        raise Failed(f"the page complained, or asked somebody else: {seen.faults} {seen.strangers}")


def _a_month(bench: Bench) -> tuple[Path, int]:
    """The first million events of what `spendstream demo` sends, with many more runs of the agent; and the calls."""
    path = bench.directory / "month.bodies"
    events = list(itertools.islice(month(TRACES, datetime.now(UTC)), EVENTS))
    lines = iter([msgspec.json.encode(event) for event in events])
    write_bodies(path, [b"\n".join(batch) for batch in _batches(lines)])
    return path, sum(event.get("kind") != "span" for event in events)


def _batches(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    while batch := list(itertools.islice(lines, BATCH)):
        yield batch


@contextmanager
def _events_beside(bench: Bench, said: dict[str, Any]) -> Iterator[None]:
    """`spendstream loadtest` meanwhile, into the same project."""
    options = ["--target", f"http://{said['http']}", "--events", str(RATE * AHEAD), "--rate", str(RATE), "--json"]
    with (
        bench.fresh() as directory,
        running(["-m", "server", "loadtest", *options], directory, {"SPENDSTREAM_KEY": KEY}),
    ):
        time.sleep(WARM_UP)
        yield
