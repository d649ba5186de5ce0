"""Row `store-lag`: what the event store costs ingest at saturation, and how far it is behind then and at half load."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.bench.context import KEY, Bench, FreshLoad, port_of, quantiles
from tests.bench.end_to_end import START_OF_STORE
from tests.bench.load_fresh import Stretch
from tests.bench.loading import Outcome
from tests.bench.passes import Pass
from tests.bench.programs import Failed, Meter
from tests.bench.results import Figures
from tests.support.heavy_questions import ask
from tests.support.traffic import BATCH

LANES: Final = 64
CAUGHT_UP: Final = 2.0
"""Seconds of lag from which on it keeps up."""
PATIENCE: Final = 180.0
"""Seconds at half load in which it has to."""
HALF: Final = 20.0
"""Seconds at half load over which lag is measured then."""
STEADY: Final = 60.0
"""The same where there was no saturation before, from `SETTLED` on."""
SETTLED: Final = 10.0
LOOK: Final = 0.1

_LAG: Final = "/v1/events?limit=1"


def store_lag(bench: Bench) -> Figures:
    """For `overload_seconds` as fast as it is answered, without the store; half of that with it; and on another server
    as fast as it is answered with it, then half of that."""
    with _server(bench, "off") as (load, _, _):
        without = _rate(_saturated(load, bench.overload_seconds))
    with _server(bench, "on") as (load, port, _):
        load.tell(Stretch(seconds=SETTLED + STEADY, lanes=LANES, rate=without / 2 / BATCH))
        time.sleep(SETTLED)
        steady = _lags(port, time.monotonic() + STEADY - LOOK)
        load.outcome()
    with _server(bench, "on") as (load, port, roles):
        meter, outcome = Meter(roles), _saturated(load, bench.overload_seconds)
        used = meter.figures(outcome.accepted, outcome.ended - outcome.began)
        rate, behind = _rate(outcome), _lag(port)
        load.tell(Stretch(seconds=PATIENCE + HALF, lanes=LANES, rate=rate / 2 / BATCH))
        began = time.monotonic()
        while _lag(port) > CAUGHT_UP:
            if time.monotonic() - began > PATIENCE:
                raise Failed(f"the event store is {_lag(port):.0f} s behind after {PATIENCE:.0f} s at half load")
            time.sleep(LOOK)
        caught_up = time.monotonic() - began
        lags = _lags(port, time.monotonic() + HALF)
        return {
            "saturated without a store, events/s": without,
            "saturated with it, events/s": rate,
            "with it / without": rate / without,
            **used,
            "behind after saturation, s": behind,
            "under 2 s at half load after, s": caught_up,
            **quantiles("behind at half load, caught up", lags),
            **quantiles("behind at half load, steady", steady),
        }


@contextmanager
def _server(bench: Bench, event_store: str) -> Iterator[tuple[FreshLoad, int, dict[str, int]]]:
    with (
        bench.server("serve", settings={"event_store": event_store}) as (server, said),
        bench.fresh_loads(said, Pass.make()) as [load],
    ):
        time.sleep(START_OF_STORE)
        yield load, port_of(said, "json"), server.roles()


def _saturated(load: FreshLoad, seconds: float) -> Outcome:
    load.tell(Stretch(seconds=seconds, lanes=LANES))
    return load.outcome()


def _rate(outcome: Outcome) -> float:
    return outcome.accepted / (outcome.ended - outcome.began)


def _lags(port: int, until: float) -> list[float]:
    """Return what the store says until then (monotonic seconds), again and again."""
    found = []
    while time.monotonic() < until:
        found.append(_lag(port))
        time.sleep(LOOK)
    return found


def _lag(port: int) -> float:
    """Seconds that the store says it is behind; raises `Failed` if it does not say so for long."""
    deadline = time.monotonic() + CAUGHT_UP + PATIENCE
    while time.monotonic() < deadline:
        status, body = ask(port, KEY, _LAG)
        if status == 200:
            answer: dict[str, Any] = json.loads(body)
            return float(answer["lagSeconds"])
        time.sleep(LOOK)
    raise Failed("the event store does not answer")
