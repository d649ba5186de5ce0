"""Row `hostile-reader`: what tenants wait while another one asks the heaviest questions, 64 at a time."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.bench import machine
from tests.bench.context import KEY, Bench, outcome_of, port_of, quantiles
from tests.bench.corpus import write_bodies
from tests.bench.hostile import make_key
from tests.bench.programs import Failed, Meter, Program, running
from tests.bench.results import Figures
from tests.support.heavy_questions import RANGE, ask
from tests.support.traffic import BATCH

RATE: Final = 40.0
"""Requests of 100 events a second of the tenant who behaves."""
REQUESTS: Final = 400
WARM_UP: Final = 2.0
"""Seconds in which the hostile tenant asks before anything is measured."""
PATIENCE: Final = 60.0
PAUSE: Final = 0.1
"""Seconds between two questions of the tenant who behaves."""

_NEIGHBOUR: Final = f"/v1/metrics?{RANGE}&group_by=model&measures=requests&measures=cost_usd&measures=latency_ms:p95"


def hostile_reader(bench: Bench) -> Figures:
    """The same requests and questions twice: beside nobody, and beside 64 connections of heavy questions."""
    with bench.server("serve", settings={"event_store": "on"}) as (server, said):
        port, key = port_of(said, "json"), make_key(bench, "hostile")
        with bench.load("json", said, corpus=bench.wide, key=key) as load:
            load.tell("go")
            outcome_of(load, bench.wide.count)
        _wait_for_store(port, key, bench.wide.truth.unique)
        before, figures = server.roles(), _measured(bench, server, said, 0, "quiet")
        with _readers(bench, port, key) as statuses, _watched(server.roles()["query"]) as memory:
            time.sleep(WARM_UP)
            figures |= _measured(bench, server, said, REQUESTS, "beside")
        if any(server.roles()[role] != before[role] for role in ("api", "worker")):
            raise Failed("a process was restarted")
        for name in ("acknowledged", "a question"):
            figures[f"{name} p99, beside / quiet"] = (
                figures[f"{name} beside p99, ms"] / figures[f"{name} quiet p99, ms"]
            )
        figures["restarts of the query process"] = float(server.roles().get("query") != before["query"])
        figures["RSS query beside at most, MiB"] = max(memory)
        figures |= {f"heavy questions answered {status}": float(many) for status, many in sorted(statuses.items())}
        return figures


@contextmanager
def _readers(bench: Bench, port: int, key: str) -> Iterator[dict[str, int]]:
    """The hostile connections, in a process of their own; afterwards what they were answered."""
    statuses: dict[str, int] = {}
    arguments = ["-m", "tests.support.heavy_questions", str(port), key]
    with bench.fresh() as directory, running(arguments, directory) as program:
        program.line()
        yield statuses
        program.end_input()
        statuses |= program.line()


def _measured(bench: Bench, server: Program, said: dict[str, Any], first: int, name: str) -> Figures:
    """Latencies of the behaving tenant's batches and questions, and what the API's CPU did meanwhile."""
    lines = bench.corpus.lines[first : first + REQUESTS]
    if len(lines) < REQUESTS:
        raise Failed(f"this row needs at least {2 * REQUESTS * BATCH} events")
    path = bench.directory / f"behaved-{first}.bodies"
    write_bodies(path, [b"\n".join(each) for each in lines])
    with bench.load("json", said, bodies=path, lanes=8, depth=1, rate=RATE) as load:
        meter, began = Meter(server.roles()), time.monotonic()
        before = machine.waited(server.roles()["api"])
        load.tell("go")
        with _asking(port_of(said, "json")) as seconds:
            outcome = outcome_of(load, REQUESTS * BATCH)
        took = time.monotonic() - began
        waited = machine.waited(server.roles()["api"]) - before
    cpu = {role: used * REQUESTS * BATCH / 1e6 / took for role, used in _cpu(meter, took).items()}
    return {
        **quantiles(f"acknowledged {name}", outcome.latencies),
        **quantiles(f"a question {name}", seconds),
        f"api waits for a core {name}, ms a request": 1e3 * waited / REQUESTS,
        **{f"cores of {role} {name}": used for role, used in cpu.items()},
    }


def _cpu(meter: Meter, took: float) -> dict[str, float]:
    found = meter.figures(REQUESTS * BATCH, took)
    return {name.split()[-1]: value for name, value in found.items() if name.split()[-1] in {"api", "query", "store"}}


@contextmanager
def _asking(port: int) -> Iterator[list[float]]:
    """Ask as the behaving tenant, again and again; the seconds that each answer took."""
    seconds: list[float] = []

    def once() -> None:
        began = time.perf_counter()
        status, body = ask(port, KEY, _NEIGHBOUR)
        if status != 200:
            raise Failed(f"the question of a tenant who behaves was answered {status}: {body[:200]!r}")
        seconds.append(time.perf_counter() - began)
        time.sleep(PAUSE)

    with _repeated(once):
        yield seconds


@contextmanager
def _watched(pid: int) -> Iterator[list[float]]:
    """The resident memory of a process in MiB, looked at again and again."""
    found: list[float] = [0.0]

    def once() -> None:
        found.append(machine.resident(pid) or 0.0)
        time.sleep(PAUSE)

    with _repeated(once):
        yield found


@contextmanager
def _repeated(work: Callable[[], None]) -> Iterator[None]:
    """Do it in a thread until the block ends; what it raises is raised then."""
    ended, raised = threading.Event(), []

    def run() -> None:
        try:
            while not ended.is_set():
                work()
        except Exception as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if raised:
        raise raised[0]


def _wait_for_store(port: int, key: str, unique: int) -> None:
    deadline, seen = time.monotonic() + PATIENCE, 0
    for _ in itertools.count():
        status, body = ask(port, key, f"/v1/metrics?{RANGE}&measures=requests")
        seen = json.loads(body)["total"]["requests"] if status == 200 else 0
        if seen == unique:
            return
        if time.monotonic() > deadline:
            raise Failed(f"the event store has {seen} of {unique} events")
        time.sleep(0.2)
