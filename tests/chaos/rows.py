"""The ways to fail, one row each: real processes are killed under load, then every table is compared with the truth."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.chaos.wal import tear
from tests.support import clients
from tests.support.clients import Pace, Tally
from tests.support.server import Server, all_gone, server, wait_until
from tests.support.traffic import GroundTruth, make_traffic

SPREAD: Final = 2.5
"""Seconds between a process's start and its end are random up to this: start-up is hit too."""

ORPHAN_PATIENCE: Final = 1.0
"""Seconds in which children end after their supervisor (contract, section 1)."""


@dataclass
class Report:
    """What came of one run."""

    row: str
    seed: int
    kills: int = 0
    events: int = 0
    acknowledged: int = 0
    retries: int = 0
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_exact(self) -> bool:
        """Whether nothing was lost, nothing counted twice, and all kills were done."""
        return not self.differences and self.acknowledged == self.events


@dataclass
class Run:
    """A run as a row sees it."""

    server: Server
    rng: random.Random
    report: Report

    def killed(self, what: str) -> None:
        self.report.kills += 1
        self.say(f"{what} ({self.report.kills})")

    say: Callable[[str], None] = lambda _: None


Failure = Callable[[Run], Awaitable[None]]


async def _worker(run: Run) -> None:
    await asyncio.to_thread(run.server.kill, "worker")
    run.killed("worker killed")


async def _api(run: Run) -> None:
    await asyncio.to_thread(run.server.kill, "api")
    run.killed("api killed")


async def _supervisor(run: Run) -> None:
    children = list(run.server.children().values())
    at_once = run.rng.random() < 0.5
    await asyncio.to_thread(run.server.kill, "supervisor")
    run.killed("supervisor killed")
    if at_once:  # as a service manager does: the new one meets the last moments of the old one's children
        await asyncio.to_thread(run.server.launch)
    try:
        await asyncio.to_thread(wait_until, lambda: all_gone(children), ORPHAN_PATIENCE)
    except TimeoutError:
        run.report.differences.append(f"children outlived their supervisor by more than {ORPHAN_PATIENCE} s")
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if not at_once:
        await asyncio.to_thread(run.server.launch)
    await asyncio.to_thread(run.server.wait_ready)


async def _everything(run: Run) -> None:
    await asyncio.to_thread(run.server.kill_all)
    run.killed("everything killed")
    await asyncio.to_thread(run.server.start)


async def _sigstop(run: Run) -> None:
    await asyncio.to_thread(run.server.signal, "worker", signal.SIGSTOP)
    run.killed("worker stopped")
    await asyncio.sleep(run.rng.uniform(0.5, 4))
    await asyncio.to_thread(run.server.signal, "worker", signal.SIGCONT)


async def _torn(run: Run) -> None:
    await asyncio.to_thread(run.server.kill_all)
    done = tear(run.server.data_dir / "log.db-wal", run.rng)
    run.killed(f"everything killed, {done}")
    await asyncio.to_thread(run.server.start)


async def _index(run: Run) -> None:
    await asyncio.to_thread(run.server.kill_all)
    await asyncio.to_thread(shutil.rmtree, run.server.data_dir / "index", ignore_errors=True)
    run.killed("everything killed, id index deleted")
    await asyncio.to_thread(run.server.start)


ROWS: Final[dict[str, tuple[str, Failure]]] = {
    "worker": ("kill -9 of the worker", _worker),
    "api": ("kill -9 of the API", _api),
    "supervisor": ("kill -9 of the supervisor", _supervisor),
    "everything": ("kill -9 of every process at once", _everything),
    "sigstop": ("the worker stands still for seconds", _sigstop),
    "torn": ("kill -9 of everything, torn tail of the write-ahead log", _torn),
    "index": ("kill -9 of everything, id index deleted", _index),
}


async def run_row(
    row: str,
    *,
    seed: int,
    events: int,
    kills: int,
    data_dir: Path,
    mixed: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """One run of a row: `kills` failures under `events` events, then the comparison. With `mixed`, of those rows."""
    rng = random.Random(seed)
    report = Report(row, seed)
    began = time.monotonic()
    say("making events")
    traffic = await asyncio.to_thread(make_traffic, rng.randrange(2**32), events, conflicts=min(50, events // 100))
    report.events = traffic.events
    pace = Pace(traffic.events, rate=traffic.events / (kills * (SPREAD + 1.5)), reserve=traffic.events // 5)
    tally = Tally()
    with server(data_dir) as started:
        run = Run(started, rng, report, say)
        sending = asyncio.create_task(clients.send(started, traffic, tally, pace))
        try:
            for number in range(kills):
                await asyncio.wait({sending}, timeout=rng.uniform(0.05, SPREAD))
                if sending.done():
                    break
                await ROWS[mixed[number % len(mixed)] if mixed else row][1](run)
            pace.let_go()
            say(f"{report.kills} kills done, sending the rest")
            await sending
        finally:
            sending.cancel()
        report.acknowledged, report.retries = tally.acknowledged, tally.retries
        say("comparing")
        if report.kills < kills:
            report.differences.append(f"only {report.kills} of {kills} kills: the events were too few")
        report.differences += await _compare(run, traffic.truth, "")
        code, _ = await asyncio.to_thread(started.stop)
        if code != 0:
            report.differences.append(f"SIGTERM: exit code {code}")
        await asyncio.to_thread(started.start)
        report.differences += await _compare(run, traffic.truth, "after a restart: ")
    report.seconds = time.monotonic() - began
    return report


async def _compare(run: Run, truth: GroundTruth, when: str) -> list[str]:
    async with clients.reader(run.server) as reader:
        reader.page = 1000
        found = await reader.differences(truth, exact_duplicates=False)
    found += [f"verify: {line}" for line in await asyncio.to_thread(clients.verify, run.server)]
    return [when + line for line in found]
