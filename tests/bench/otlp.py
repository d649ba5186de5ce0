"""Row `otlp`: spans over OTLP, protobuf over HTTP, taken by the role `api` on one core, each request fsynced.

In requests of 100 and of 500 spans of one call each, as an instrumentation of OpenAI's library sends them.
"""

from typing import Final

import msgspec

from tests.bench.context import KEY, Bench, quantiles
from tests.bench.corpus import write_bodies
from tests.bench.loading import Order, Outcome
from tests.bench.programs import Failed, Meter, running
from tests.bench.results import RATE, Figures
from tests.support.otlp_spans import requests

SIZES: Final = (500, 100)
"""Spans of a request; the first one's rate is that of the row."""
LANES: Final = 8
DEPTH: Final = 2
SPANS: Final = 200_000


def otlp(bench: Bench) -> Figures:
    """Spans a second, and CPU time of a span, by the size of requests."""
    found: Figures = {}
    for size in SIZES:
        rate, figures = _loaded(bench, size)
        found |= {f"{name}, {size} spans": value for name, value in figures.items()}
        found.setdefault(RATE, rate)
        found[f"spans/s, {size} spans"] = rate
    return found


def _loaded(bench: Bench, size: int) -> tuple[float, Figures]:
    count = max(1, min(bench.corpus.count, SPANS) // size)
    bodies = bench.directory / f"otlp-{size}.bodies"
    write_bodies(bodies, list(requests(count, size)))
    with bench.server("api", cpu=0) as (api, said), bench.fresh() as directory:
        order = Order(port=int(said["http"].rpartition(":")[2]), key=KEY, bodies=str(bodies), lanes=LANES, depth=DEPTH)
        words = ["-m", "tests.bench.load_otlp", msgspec.json.encode(order).decode()]
        with running(words, directory, cpu=1) as load:
            load.line()
            meter = Meter({"api": api.pid})
            load.tell("go")
            outcome = msgspec.convert(load.line(), Outcome)
    if outcome.accepted != count:
        raise Failed(f"{outcome.refused} of {count} requests were refused")
    seconds = outcome.ended - outcome.began
    return count * size / seconds, {
        **meter.figures(count * size, seconds),
        **quantiles("acknowledged", outcome.latencies),
    }
