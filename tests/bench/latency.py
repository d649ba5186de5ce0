"""Rows `idle` and `half-load`: how long one sender waits, when nobody else sends and when many do."""

from pathlib import Path
from typing import Final

import msgspec

from tests.bench import end_to_end
from tests.bench.context import Bench, outcome_of, quantiles
from tests.bench.programs import Meter
from tests.bench.results import RATE, Figures
from tests.support.traffic import BATCH

IDLE_REQUESTS: Final = 200
IDLE_RATE: Final = 40.0
"""Requests a second on the idle server: the last one is long done when the next comes."""
HALF_LOAD_SECONDS: Final = 8
WATCHERS: Final = 2


def idle(bench: Bench) -> Figures:
    """One request of one event at a time, 25 ms apart."""
    with bench.server("serve") as (_, said):
        bodies = _single_events(bench)
        with bench.load("json", said, bodies=bodies, lanes=1, depth=1, rate=IDLE_RATE, encoding="identity") as load:
            load.tell("go")
            outcome = outcome_of(load, IDLE_REQUESTS)
            return quantiles("one event acknowledged", outcome.latencies)


def _single_events(bench: Bench) -> Path:
    path = bench.directory / "single.bodies"
    lines = [line for lines in bench.corpus.lines[: IDLE_REQUESTS // BATCH + 1] for line in lines]
    path.write_bytes(msgspec.msgpack.encode(lines[:IDLE_REQUESTS]))
    return path


def half_load(bench: Bench) -> Figures:
    """Requests of 100 events at even distances, at half the rate that `e2e-http` reached."""
    rate = end_to_end_rate(bench) / 2
    requests = min(len(bench.corpus.lines), int(HALF_LOAD_SECONDS * rate / BATCH))
    events = requests * BATCH
    with (
        bench.server("serve") as (server, said),
        bench.load("json", said, limit=requests, rate=rate / BATCH, watchers=WATCHERS) as load,
    ):
        meter = Meter({**server.roles(), "loader": load.pid})
        load.tell("go")
        outcome = outcome_of(load, events)
        seconds = outcome.ended - outcome.began
        return {
            "sent, events/s": events / seconds,
            **quantiles("acknowledged", outcome.latencies),
            **quantiles("visible after the ack", outcome.visible),
            "reads that waited for it": len(outcome.visible),
            **meter.figures(events, seconds),
        }


def end_to_end_rate(bench: Bench) -> float:
    """The median of `e2e-http`; measured once if that row was not asked for."""
    row = bench.rows.get("e2e-http")
    rate = row.median(RATE) if row is not None else None
    return rate if rate is not None else end_to_end.over_http(bench)[RATE]
