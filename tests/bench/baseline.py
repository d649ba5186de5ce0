"""Row `baseline`: the textbook application (`textbook.py`) over a log of one event a message."""

import time
from itertools import chain, islice
from typing import Final

import msgspec

from processor.log.embedded.log import Log
from processor.log.records import TopicPartition
from tests.bench.context import Bench
from tests.bench.loading import now
from tests.bench.processing import PATIENCE, fill
from tests.bench.programs import Failed, Meter, running, stopped_with_log_free
from tests.bench.results import RATE, Figures
from tests.bench.textbook import TABLES, changelog, create_log

EVENTS: Final = 10_000
"""At most: its rate does not depend on how long it runs, and it takes its time."""


def baseline(bench: Bench) -> Figures:
    """The clock runs until both of its tables' changelogs have all of the events."""
    lines = list(islice(chain.from_iterable(bench.corpus.lines), EVENTS))
    unique = len({msgspec.json.decode(line)["event_id"] for line in lines})
    with bench.fresh() as directory:
        data = directory / "data"
        create_log(data)
        with running(["-m", "tests.bench.textbook", str(data)], directory) as program:
            program.line()
            log = Log(data, create=False)
            with stopped_with_log_free(program, data):
                fill(log, lines)
                meter = Meter({"worker": program.pid})
                began = now()
            seconds = _wait(log, unique) - began
            log.close()
            return {RATE: len(lines) / seconds, **meter.figures(len(lines), seconds)}


def _wait(log: Log, unique: int) -> float:
    deadline = now() + PATIENCE
    topics = [TopicPartition(changelog(table), 0) for table in TABLES]
    while now() < deadline:
        if all(log.end(topic) >= unique for topic in topics):
            return now()
        time.sleep(0.01)
    raise Failed(f"the textbook application did not apply {unique} events in {PATIENCE:.0f} s")
