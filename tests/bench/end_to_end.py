"""Rows `e2e-http`, `e2e-http-by-two`, `e2e-grpc`: `spendstream serve`, until all is in the tables, exact."""

import http.client
import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from processor.core.events.codec import PayloadFormat
from tests.bench import machine
from tests.bench.context import KEY, Bench, outcome_of, port_of, quantiles
from tests.bench.loading import now
from tests.bench.programs import Failed, Meter, Program
from tests.bench.results import RATE, Figures
from tests.bench.traffic import Truth

PATIENCE: Final = 120.0
PICO: Final = 10**12


class Reader:
    """`GET /v1/users`."""

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

    def compare(self, truth: Truth, *, sums_only: bool = False) -> None:
        """Every column of every user, and the totals; raises `Failed` at the first difference.

        `sums_only`: of a peer that answers with less.
        """
        left = dict(truth.users)
        cursor: dict[str, str] = {}
        while True:
            page = self.page(limit="1000", sort="cost_usd", **cursor)
            for row in page["users"]:
                user = row["user_id"]
                if _sums(row) != left.pop(user, None) or (
                    not sums_only and (_seen(row) != truth.seen.get(user) or row["unpriced"])
                ):
                    raise Failed(f"{user}: the tables say {row}, true is {truth.users.get(user)}")
            if page["nextCursor"] is None:
                break
            cursor = {"cursor": page["nextCursor"]}
        if left:
            raise Failed(f"{len(left)} users are missing")
        totals = [len(truth.users), *(sum(row[column] for row in truth.users.values()) for column in range(6)), 0]
        found = page["total"]
        if not sums_only and [found["users"], *_sums(found), found["unpriced"]] != totals:
            raise Failed(f"the totals are {found}, true is {totals}")


def _sums(row: dict[str, Any]) -> list[Any]:
    """As in `Truth.users`."""
    names = ("requests", "errors", "input_tokens", "output_tokens", "cached_tokens")
    return [*(row[name] for name in names), row["cost_usd"] * PICO]


def _seen(row: dict[str, Any]) -> tuple[str, str]:
    return row["first_seen"], row["last_seen"]


def over_http(bench: Bench) -> Figures:
    """gzip bodies of 100 events over 16 connections."""
    return _end_to_end(bench, "json")


def over_http_by_two(bench: Bench) -> Figures:
    """The same at two API processes on one port."""
    return _end_to_end(bench, "json", "--api-processes", "2")


def over_grpc(bench: Bench) -> Figures:
    """Messages of 100 events through 4 streams."""
    return _end_to_end(bench, "protobuf")


def _end_to_end(bench: Bench, payload: PayloadFormat, *options: str) -> Figures:
    events, truth = bench.corpus.count, bench.corpus.truth
    with bench.server("serve", *options) as (server, said), bench.load(payload, said) as load:
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
