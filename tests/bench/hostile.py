"""Row `hostile`: what a tenant waits while another one sends garbage and more than it may, as fast as it can."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.bench.context import Bench, outcome_of, quantiles
from tests.bench.corpus import gzip, write_bodies
from tests.bench.programs import ROOT, Failed
from tests.bench.results import Figures
from tests.support.traffic import BATCH

RATE: Final = 40.0
"""Requests of 100 events a second of the tenant who behaves."""
REQUESTS: Final = 400
HOSTILE_LANES: Final = 64
PER_MINUTE: Final = 60
"""Requests a minute that the hostile tenant may send."""
WARM_UP: Final = 1.0
"""Seconds in which the hostile tenant sends before anything is measured."""


def hostile(bench: Bench) -> Figures:
    """The same requests twice: beside nobody, and beside 64 connections that are refused again and again."""
    with bench.server("serve") as (_, said):
        key = make_key(bench, "hostile", "--rate-limit", f"{PER_MINUTE}/min")
        quiet = _latencies(bench, said, 0)
        bodies = _garbage(bench)
        with bench.load("json", said, bodies=bodies, lanes=HOSTILE_LANES, depth=1, key=key) as enemy:
            enemy.tell("go")
            time.sleep(WARM_UP)
            beside = _latencies(bench, said, REQUESTS)
    before, after = quantiles("quiet", quiet), quantiles("beside a hostile tenant", beside)
    ratio = after["beside a hostile tenant p99, ms"] / before["quiet p99, ms"]
    return {**before, **after, "p99 beside / quiet": ratio}


def _latencies(bench: Bench, said: dict[str, Any], first: int) -> list[float]:
    lines = bench.corpus.lines[first : first + REQUESTS]
    if len(lines) < REQUESTS:
        raise Failed(f"this row needs at least {2 * REQUESTS * BATCH} events")
    path = bench.directory / f"behaved-{first}.bodies"
    write_bodies(path, [b"\n".join(each) for each in lines])
    with bench.load("json", said, bodies=path, lanes=8, depth=1, rate=RATE) as load:
        load.tell("go")
        return outcome_of(load, REQUESTS * BATCH).latencies


def _garbage(bench: Bench) -> Path:
    """More than anybody answers meanwhile: no gzip, no JSON, no valid event, and valid batches beyond the limit."""
    broken = b"\n".join(line.replace(b'"provider"', b'"p"') for line in bench.corpus.lines[0])
    kinds = [b"no gzip at all", gzip(b"{" * 2000), gzip(broken), gzip(b"\n".join(bench.corpus.lines[0]))]
    path = bench.directory / "garbage.bodies"
    path.write_bytes(msgspec.msgpack.encode(kinds * 10_000))
    return path


def make_key(bench: Bench, tenant: str, *options: str) -> str:
    """Make a key of an organization and project of their own, at the one server that runs."""
    [data_dir] = bench.directory.glob("*/data")
    words = ("--org", tenant, "--project", tenant, *options)
    made = subprocess.run(
        [sys.executable, "-m", "server", "keys", "create", "--json", *words],
        cwd=ROOT,
        env={**os.environ, "SPENDSTREAM_DATA_DIR": str(data_dir)},
        check=True,
        capture_output=True,
        text=True,
    )
    return str(json.loads(made.stdout)["key"])
