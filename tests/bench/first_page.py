"""Row `first-page`: the first of a million users, as they are read while events come in as fast as they are taken."""

import itertools
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.bench.context import Bench, outcome_of, quantiles
from tests.bench.corpus import write_bodies
from tests.bench.end_to_end import Reader
from tests.bench.loading import now
from tests.bench.results import Figures
from tests.support.traffic import BATCH, bulk_line, micros, user_name
from tests.support.truth import Fact

USERS: Final = 1_000_000
QUIET: Final = 100
"""Reads of each kind before the load."""
PAUSE: Final = 0.01
"""Seconds between two reads."""


def first_page(bench: Bench) -> Figures:
    """Over all time and of this month in turn, of a project with a million users, each with an event of this month."""
    kinds = {
        "over all time": {"limit": "50"},
        "of this month": {"limit": "50", "start": f"{_first():%Y-%m-%d}"},
    }
    with bench.server("serve") as (_, said):
        with bench.load("json", said, bodies=an_event_each(bench)) as fill:
            fill.tell("go")
            outcome_of(fill, USERS)
        reader = Reader(said)
        reader.wait_for(USERS)
        quiet = {name: [_seconds(reader, query) for _ in range(QUIET)] for name, query in kinds.items()}
        busy: dict[str, list[float]] = {name: [] for name in kinds}
        with bench.load("json", said, bodies=_of_today(bench)) as load:
            load.tell("go")
            for name, query in itertools.cycle(kinds.items()):
                busy[name].append(_seconds(reader, query))
                if reader.page(limit="1")["total"]["requests"] == USERS + bench.corpus.truth.unique:
                    break
            outcome = outcome_of(load, bench.corpus.count)
        figures = {"events/s meanwhile": bench.corpus.count / (now() - outcome.began), "reads meanwhile": 0.0}
        for name, seconds in busy.items():
            figures["reads meanwhile"] += len(seconds)
            figures |= quantiles(f"{name}, during ingest", seconds) | quantiles(f"{name}, quiet", quiet[name])
        return figures


def _seconds(reader: Reader, query: dict[str, str]) -> float:
    time.sleep(PAUSE)
    began = now()
    reader.page(**query)
    return now() - began


def an_event_each(bench: Bench) -> Path:
    """A million events of this month, each of another user, the users of the corpus among them."""
    path = bench.directory / "million.bodies"
    if not path.exists():
        first = f"{_first():%Y-%m-%dT00:00:00.000Z}"
        lines = []
        for number, fact in enumerate(facts()):
            inputs, outputs, cost = fact.numbers[2], fact.numbers[3], fact.numbers[5]
            event_id = f"{number:08x}-0000-4000-8000-{number:012x}"
            lines.append(bulk_line(event_id, str(fact.user), first, inputs, outputs, cost))
        write_bodies(path, [b"\n".join(lines[start : start + BATCH]) for start in range(0, USERS, BATCH)])
    return path


def facts() -> Iterator[Fact]:
    """What the million events add to the tables."""
    rng = random.Random(2)
    at = micros(_first())
    for number in range(USERS):
        cost = rng.randrange(10**6) * 10**6
        numbers = (1, 0, rng.randrange(4000), rng.randrange(1200), 0, cost, 0)
        yield Fact(user_name(number), at, "openai", "gpt-4o", numbers)


def _first() -> datetime:
    """When this month began."""
    return datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _of_today(bench: Bench) -> Path:
    """The corpus as if it had all happened today."""
    path = bench.directory / "today.bodies"
    if not path.exists():
        today = f"{datetime.now(UTC):%Y-%m-%d}".encode()
        write_bodies(path, [b"\n".join(lines).replace(b"2026-04-20", today) for lines in bench.corpus.lines])
    return path
