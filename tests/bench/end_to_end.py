"""Rows `e2e-...`: `spendstream serve`, until all is in the tables, exact."""

import http.client
import json
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from processor.core.events.codec import PayloadFormat
from tests.bench import machine
from tests.bench.context import KEY, Bench, outcome_of, port_of, quantiles
from tests.bench.corpus import Corpus
from tests.bench.loading import now
from tests.bench.programs import Failed, Meter, Program
from tests.bench.results import RATE, Figures
from tests.support.truth import GroundTruth

PATIENCE: Final = 120.0
SHOWN: Final = 3
"""Differences that a failure names."""


class Reader:
    """`GET /v1/users`: plain `http.client`, for it asks while the clock runs, on the same cores."""

    def __init__(self, said: dict[str, Any]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port_of(said, "json"), timeout=30)

    def page(self, **query: str) -> dict[str, Any]:
        self._connection.request("GET", f"/v1/users?{urlencode(query)}", headers={"x-api-key": KEY})
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise Failed(f"GET /v1/users answered {response.status}: {body[:200]!r}")
        found: dict[str, Any] = json.loads(body, parse_float=Decimal)
        return found

    def wait_for(self, unique: int) -> float:
        """When the tables contain `unique` events; raises `Failed` if they never do."""
        deadline = now() + PATIENCE
        while now() < deadline:
            seen = self.page(limit="1")["total"]["requests"]
            if seen == unique:
                return now()
            if seen > unique:
                raise Failed(f"the tables hold {seen} events, there were only {unique}")
            time.sleep(0.005)
        raise Failed(f"the tables do not contain {unique} events after {PATIENCE:.0f} s")

    def rows(self) -> Iterator[dict[str, Any]]:
        """All pages, a row at a time."""
        cursor: dict[str, str] = {}
        while True:
            page = self.page(limit="1000", sort="cost_usd", **cursor)
            yield from page["users"]
            if page["nextCursor"] is None:
                return
            cursor = {"cursor": page["nextCursor"]}

    def compare(self, truth: GroundTruth, *, sums_only: bool = False) -> None:
        """Every column of every user, and the totals; raises `Failed` if anything differs.

        `sums_only`: of a peer that answers with less.
        """
        if sums_only:
            found = truth.sums_differences(self.rows())
        else:
            found = truth.list_differences(self.rows(), self.page(limit="1")["total"])
        if found:
            raise Failed(f"{len(found)} differences, {'; '.join(found[:SHOWN])}")


def over_http(bench: Bench) -> Figures:
    """gzip bodies of 100 events over 16 connections."""
    return _end_to_end(bench, "json")


def over_http_by_two(bench: Bench) -> Figures:
    """The same at two API processes on one port."""
    return _end_to_end(bench, "json", "--api-processes", "2")


def over_grpc(bench: Bench) -> Figures:
    """Messages of 100 events through 4 streams."""
    return _end_to_end(bench, "protobuf")


def wide_over_http(bench: Bench) -> Figures:
    """As `over_http`, with events that nearly all have a row of a user and an hour of their own."""
    return _end_to_end(bench, "json", corpus=bench.wide)


def _end_to_end(bench: Bench, payload: PayloadFormat, *options: str, corpus: Corpus | None = None) -> Figures:
    corpus = corpus or bench.corpus
    events, truth = corpus.count, corpus.truth
    with bench.server("serve", *options) as (server, said), bench.load(payload, said, corpus=corpus) as load:
        roles = server.roles()
        time.sleep(0.5)
        rest = _memory(server, "at rest")
        meter = Meter({**roles, "loader": load.pid})
        load.tell("go")
        outcome = outcome_of(load, events)
        reader = Reader(said)
        seconds = reader.wait_for(truth.unique) - outcome.began
        used = meter.figures(events, seconds)
        memory = _memory(server, "at the end")
        disk = _size(bench.directory) / events
        reader.compare(truth)
        return {
            RATE: events / seconds,
            **used,
            "accepted, events/s": events / (outcome.ended - outcome.began),
            "last ack to visible, ms": 1e3 * (seconds - (outcome.ended - outcome.began)),
            **quantiles("acknowledged", outcome.latencies),
            **rest,
            **memory,
            "disk, bytes/event": disk,
        }


def _memory(server: Program, when: str) -> Figures:
    found = {f"RSS {role} {when}, MiB": machine.resident(pid) for role, pid in server.roles().items()}
    return {name: value for name, value in found.items() if value is not None}


def _size(directory: Path) -> int:
    """Bytes on the disk below the running servers' data directories."""
    return sum(512 * path.stat().st_blocks for path in directory.glob("*/data/**/*") if path.is_file())
