"""Row `memory`: what worker and API process occupy at rest, and for each row of the tables after that.

Once with a million rows of a million users, once with 80,000 rows of 10,000 users. Pages of files are counted apart:
those of the id index are the worker's, and the system may take them back.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from tests.bench import machine
from tests.bench.context import Bench, outcome_of
from tests.bench.end_to_end import Reader
from tests.bench.first_page import USERS, an_event_each, facts
from tests.bench.load_fresh import Stretch
from tests.bench.machine import MIB, Memory
from tests.bench.passes import Pass
from tests.bench.programs import Failed, Program
from tests.bench.results import Figures
from tests.support.truth import GroundTruth

SETTLED: Final = 2.0
"""Seconds after which what a start, or the last event, leaves to do is done."""

Fill = Callable[[Bench, dict[str, Any]], GroundTruth]
"""Sends events to a server that said this; what the tables must say."""


def memory(bench: Bench) -> Figures:
    """Both projects, each on a server of its own."""
    return {**_rows(bench, "a million users", USERS, _a_million), **_rows(bench, "10,000 users", 80_000, _a_pass)}


def _a_million(bench: Bench, said: dict[str, Any]) -> GroundTruth:
    with bench.load("json", said, bodies=an_event_each(bench)) as load:
        load.tell("go")
        outcome_of(load, USERS)
    truth = GroundTruth(has_details=False)
    truth.count(facts())
    return truth


def _a_pass(bench: Bench, said: dict[str, Any]) -> GroundTruth:
    made = Pass.make()
    with bench.fresh_loads(said, made) as [load]:
        load.tell(Stretch(requests=made.requests))
        load.outcome()
    return made.truth(made.counted_first(made.requests))


def _rows(bench: Bench, name: str, rows: int, fill: Fill) -> Figures:
    with bench.server("serve") as (server, said):
        time.sleep(SETTLED)
        rest = _occupied(server)
        truth = fill(bench, said)
        reader = Reader(said)
        reader.wait_for(truth.unique)
        time.sleep(SETTLED)
        after = _occupied(server)
        found: Figures = {}
        for role in ("worker", "api"):
            found[f"{name}: RSS {role} at rest, MiB"] = rest[role].rss
            found[f"{name}: RSS {role} after {rows:,} rows, MiB"] = after[role].rss
            found[f"{name}: {role}, bytes a row"] = MIB * (after[role].rss - rest[role].rss) / rows
            found[f"{name}: {role}, bytes a row without pages of files"] = (
                MIB * (after[role].anon - rest[role].anon) / rows
            )
        reader.compare(truth)
        return found


def _occupied(server: Program) -> dict[str, Memory]:
    found = {role: machine.memory(pid) for role, pid in server.roles().items()}
    here = {role: each for role, each in found.items() if each is not None}
    if len(here) < len(found):
        raise Failed("what a process occupies is not known on this system")
    return here
