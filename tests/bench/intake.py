"""Rows `http-intake`, `grpc-intake`, `small`: the role `api` alone on one core, its log on the disk, read by nobody."""

from processor.core.events.codec import PayloadFormat
from tests.bench.context import Bench, outcome_of, quantiles
from tests.bench.corpus import write_bodies
from tests.bench.programs import Meter
from tests.bench.results import RATE, Figures


def http(bench: Bench) -> Figures:
    """gzip bodies of 100 events over 16 connections."""
    return _intake(bench, "json")


def grpc(bench: Bench) -> Figures:
    """Messages of 100 events through `IngestStream`, 4 streams with up to 8 requests on their way in each."""
    return _intake(bench, "protobuf")


def small(bench: Bench) -> Figures:
    """gzip bodies of one event and of ten, over 16 connections: what a request costs the process and its loader."""
    figures: Figures = {}
    for size in (1, 10):
        requests = min(20_000, bench.corpus.count // size)
        lines = [line for batch in bench.corpus.lines for line in batch][: requests * size]
        bodies = bench.directory / f"by-{size}.bodies"
        write_bodies(bodies, [b"\n".join(lines[start : start + size]) for start in range(0, len(lines), size)])
        with (
            bench.server("api", cpu=0) as (api, said),
            bench.load("json", said, cpu=1, bodies=str(bodies)) as load,
        ):
            meter = Meter({"api": api.pid, "loader": load.pid})
            load.tell("go")
            outcome = outcome_of(load, requests * size)
            seconds = outcome.ended - outcome.began
            used = meter.figures(requests, seconds)
            figures |= {f"{name}, µs a request of {size}": value for name, value in used.items() if "CPU " in name}
            figures |= {f"requests/s, by {size}": requests / seconds}
    return {RATE: figures["requests/s, by 1"], **figures}


def _intake(bench: Bench, payload: PayloadFormat) -> Figures:
    events = bench.corpus.count
    with bench.server("api", cpu=0) as (api, said), bench.load(payload, said, cpu=1) as load:
        meter = Meter({"api": api.pid, "loader": load.pid})
        load.tell("go")
        outcome = outcome_of(load, events)
        seconds = outcome.ended - outcome.began
        return {
            RATE: events / seconds,
            **meter.figures(events, seconds),
            **quantiles("acknowledged", outcome.latencies),
        }
