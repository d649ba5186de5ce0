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
START_OF_STORE: Final = 5.0
"""Seconds until the store and the query process, which start after the others, run, too."""
_RANGE: Final = "start=2026-01-01&end=2027-01-01"
"""Event times of all traffic."""
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

    def wait_for_store(self, unique: int, patience: float = PATIENCE) -> float:
        """When the event store contains `unique` calls; raises `Failed` if it never does, or has more."""
        deadline = now() + patience
        while now() < deadline:
            seen = self._stored()
            if seen == unique:
                return now()
            if seen > unique:
                raise Failed(f"the event store holds {seen} events, there were only {unique}")
            time.sleep(0.05)
        raise Failed(f"the event store does not contain {unique} events after {patience:.0f} s")

    def _stored(self) -> int:
        """How many events the store says it has; 0 while nothing answers."""
        self._connection.request("GET", f"/v1/metrics?{_RANGE}&measures=requests", headers={"x-api-key": KEY})
        response = self._connection.getresponse()
        body = response.read()
        return int(json.loads(body)["total"]["requests"]) if response.status == 200 else 0

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


def with_event_store(bench: Bench) -> Figures:
    """As `wide_over_http`, with the event store on; and when it had all of the events."""
    return _end_to_end(bench, "json", corpus=bench.wide, has_store=True)


def _end_to_end(
    bench: Bench, payload: PayloadFormat, *options: str, corpus: Corpus | None = None, has_store: bool = False
) -> Figures:
    corpus = corpus or bench.corpus
    events, truth = corpus.count, corpus.truth
    settings = {"event_store": "on" if has_store else "off"}
    with (
        bench.server("serve", *options, settings=settings) as (server, said),
        bench.load(payload, said, corpus=corpus) as load,
    ):
        time.sleep(START_OF_STORE if has_store else 0.5)
        roles = server.roles()
        rest = _memory(server, "at rest")
        meter = Meter({**roles, "loader": load.pid})
        load.tell("go")
        outcome = outcome_of(load, events)
        reader = Reader(said)
        seconds = reader.wait_for(truth.unique) - outcome.began
        used = meter.figures(events, seconds)
        stored = {}
        if has_store:
            behind = reader.wait_for_store(truth.unique) - outcome.began
            stored = {"until all are in the event store, s": behind, "events/s of the event store": events / behind}
            used |= meter.figures(events, behind)
        memory = _memory(server, "at the end")
        disk = _size(bench.directory) / events
        reader.compare(truth)
        return {
            RATE: events / seconds,
            **used,
            **stored,
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
