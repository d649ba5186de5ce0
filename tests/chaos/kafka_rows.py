"""The ways a cluster can fail, one row each: 1 broker, 2 APIs and 2 workers under load, then the truth."""

import asyncio
import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos.cluster import Cluster, cluster
from tests.chaos.rows import SPREAD, Report
from tests.support import clients
from tests.support.clients import Pace, Tally
from tests.support.server import Server, wait_until
from tests.support.traffic import make_traffic

BROKER_AWAY: Final = 60.0
ZOMBIE: Final = 60.0


def _is_back(server: Server) -> None:
    wait_until(lambda: server.is_running, 30)
    server.wait_ready(60)


@dataclass
class Run:
    """A run as a row sees it."""

    cluster: Cluster
    rng: random.Random
    report: Report
    say: Callable[[str], None]
    short: bool
    """Shorter standstills: for the test suite."""

    def happened(self, what: str) -> None:
        self.report.kills += 1
        self.say(f"{what} ({self.report.kills})")

    def one(self, servers: list[Server]) -> Server:
        return self.rng.choice([server for server in servers if server.is_running] or servers)


Failure = Callable[[Run], Awaitable[None]]


async def _kill(run: Run, servers: list[Server]) -> None:
    server = run.one(servers)
    await asyncio.to_thread(server.kill_all)
    run.happened(f"{server.data_dir.name} killed")


async def _worker(run: Run) -> None:
    await _kill(run, run.cluster.workers)


async def _api(run: Run) -> None:
    await _kill(run, run.cluster.apis)


async def _everything(run: Run) -> None:
    await asyncio.gather(*(asyncio.to_thread(server.kill_all) for server in run.cluster.everyone))
    run.happened("all APIs and workers killed")


async def _broker(run: Run) -> None:
    await asyncio.to_thread(run.cluster.broker.kill)
    run.happened("broker killed")
    await asyncio.sleep(run.rng.uniform(0, 2))
    await asyncio.to_thread(run.cluster.broker.start)


async def _away(run: Run) -> None:
    await asyncio.to_thread(run.cluster.broker.stop)
    run.happened("broker away")
    away = BROKER_AWAY / 4 if run.short else BROKER_AWAY
    await asyncio.sleep(away)
    await asyncio.to_thread(run.cluster.broker.start)


async def _zombie(run: Run) -> None:
    worker = run.one(run.cluster.workers)
    run.cluster.held.add(worker)
    await asyncio.to_thread(worker.signal, "worker", signal.SIGSTOP)
    run.happened(f"{worker.data_dir.name} stands still")
    await asyncio.sleep(ZOMBIE / 4 if run.short else ZOMBIE)
    await asyncio.to_thread(worker.signal, "worker", signal.SIGCONT)
    run.cluster.held.discard(worker)


async def _scale(run: Run) -> None:
    if len(run.cluster.workers) < 4:
        added = await asyncio.to_thread(run.cluster.another, "worker")
        run.happened(f"{added.data_dir.name} added")
        return
    leaving = run.cluster.workers[-1]
    run.cluster.held.add(leaving)
    run.cluster.workers.remove(leaving)
    if leaving.is_running:
        await asyncio.to_thread(leaving.stop)
    run.happened(f"{leaving.data_dir.name} removed")


async def _rolling(run: Run) -> None:
    for server in list(run.cluster.everyone):
        run.cluster.held.add(server)
        if server.is_running:
            await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start, 60)
        run.cluster.held.discard(server)
    run.happened("all APIs and workers restarted, one after the other")


async def _index(run: Run) -> None:
    worker = run.one(run.cluster.workers)
    run.cluster.held.add(worker)
    await asyncio.to_thread(worker.kill_all)
    await asyncio.to_thread(shutil.rmtree, worker.data_dir / "index", ignore_errors=True)
    run.happened(f"{worker.data_dir.name} killed, its id index deleted")
    await asyncio.to_thread(worker.launch)
    run.cluster.held.discard(worker)


ROWS: Final[dict[str, tuple[str, Failure, int]]] = {
    "kafka-worker": ("kill -9 of a worker, started again", _worker, 8),
    "kafka-api": ("kill -9 of an API, started again", _api, 8),
    "kafka-everything": ("kill -9 of all APIs and workers at once", _everything, 4),
    "kafka-broker": ("kill -9 and restart of the broker", _broker, 4),
    "kafka-away": ("the broker away for 60 s", _away, 1),
    "kafka-zombie": ("a worker stands still for 60 s, another takes over, it wakes up", _zombie, 1),
    "kafka-scale": ("workers added and removed", _scale, 6),
    "kafka-rolling": ("rolling restart of all APIs and workers", _rolling, 1),
    "kafka-index": ("kill -9 of a worker, its id index deleted", _index, 4),
}
"""Name -> what happens, how, and how often in one run."""


async def run_row(
    row: str,
    *,
    seed: int,
    events: int,
    directory: Path,
    short: bool = False,
    times: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """One run of a row; `times` failures instead of its own number."""
    rng = random.Random(seed)
    report = Report(row, seed)
    began = time.monotonic()
    _, failure, usual = ROWS[row]
    times = times or usual
    traffic = await asyncio.to_thread(make_traffic, rng.randrange(2**32), events, conflicts=min(50, events // 100))
    report.events = traffic.events
    pace = Pace(traffic.events, rate=traffic.events / (times * (SPREAD + 3)), reserve=traffic.events // 5)
    tally = Tally()
    say("starting the cluster")
    async with cluster(directory, random.Random(seed)) as made:
        run = Run(made, rng, report, say, short)
        sending = asyncio.create_task(clients.send(made, traffic, tally, pace))
        try:
            for _ in range(times):
                await asyncio.wait({sending}, timeout=rng.uniform(0.3, SPREAD))
                if sending.done():
                    break
                await failure(run)
            pace.let_go()
            say(f"{report.kills} failures, sending the rest")
            await sending
        except ExceptionGroup as wrong:
            say(f"a client met what it cannot mend: {wrong.exceptions}")
            raise
        finally:
            sending.cancel()
        report.acknowledged, report.retries = tally.acknowledged, tally.retries
        say("comparing")
        if report.kills < times:
            report.differences.append(f"only {report.kills} of {times} failures: the events were too few")
        for api in made.apis:
            await asyncio.to_thread(_is_back, api)
            async with clients.reader(api) as reader:
                reader.page = 1000
                found = await reader.differences(traffic.truth, exact_duplicates=False, details=50)
            report.differences += [f"{api.data_dir.name}: {line}" for line in found]
        found = await asyncio.to_thread(clients.verify, made)
        report.differences += [f"verify: {line}" for line in found]
        if report.differences:
            report.differences.append(made.tail())
        made.held.update(made.everyone)
        report.differences += await asyncio.to_thread(made.stop)
    report.seconds = time.monotonic() - began
    return report
