"""Rows `http-intake` and `grpc-intake`: the role `api` alone on one core, its log on the disk, nobody to read it."""

from processor.core.events.codec import PayloadFormat
from tests.bench.context import Bench, outcome_of, quantiles
from tests.bench.programs import Meter
from tests.bench.results import RATE, Figures


def http(bench: Bench) -> Figures:
    """gzip bodies of 100 events over 16 connections."""
    return _intake(bench, "json")


def grpc(bench: Bench) -> Figures:
    """Messages of 100 events through `IngestStream`, 4 streams with up to 8 requests on their way in each."""
    return _intake(bench, "protobuf")


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
