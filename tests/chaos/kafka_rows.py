"""The ways a cluster can fail, one row each: 1 broker, 2 APIs and 2 workers under load, then the truth."""

import asyncio
import json
import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from processor.log.kafka.log import KafkaLog
from tests.chaos import faults
from tests.chaos.cluster import PARTITIONS, Cluster, cluster
from tests.chaos.faults import CannotRun
from tests.chaos.recovery import Recovery
from tests.chaos.report import Report
from tests.chaos.rows import REFUSED, SPREAD
from tests.support import clients
from tests.support.clients import Pace, Tally
from tests.support.clock import Clock
from tests.support.server import Server, run_cli, wait_until
from tests.support.traffic import Traffic, make_traffic

BROKER_AWAY: Final = 60.0
ZOMBIE: Final = 60.0
DISK_MIB: Final = 256


def _is_back(server: Server) -> None:
    wait_until(lambda: server.is_running, 30)
    server.wait_ready(60)


@dataclass
class Run:
    """A run as a row sees it."""

    cluster: Cluster
    rng: random.Random
    report: Report
    recovery: Recovery
    say: Callable[[str], None]
    short: bool
    """Shorter standstills: for the test suite."""
    clock: Clock | None = None
    poison: list[str] = field(default_factory=list)

    def happened(self, what: str, *, felt: bool = True) -> None:
        """It happened; if it is `felt`, what follows is the recovery."""
        self.report.kills += 1
        self.say(f"{what} ({self.report.kills})")
        if felt:
            self.recovery.start()

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
    run.recovery.start()


async def _zombie(run: Run) -> None:
    worker = run.one(run.cluster.workers)
    run.cluster.held.add(worker)
    await asyncio.to_thread(worker.signal, "worker", signal.SIGSTOP)
    run.happened(f"{worker.data_dir.name} stands still")
    await asyncio.sleep(ZOMBIE / 4 if run.short else ZOMBIE)
    await asyncio.to_thread(worker.signal, "worker", signal.SIGCONT)
    run.cluster.held.discard(worker)


async def _leaves(run: Run) -> None:
    """What is measured is the time until somebody else has its partitions."""
    worker = run.one(run.cluster.workers)
    run.cluster.held.add(worker)
    await asyncio.to_thread(worker.kill_all)
    run.happened(f"{worker.data_dir.name} killed, stays away")
    await run.recovery.settle()
    await asyncio.to_thread(worker.start, 60)
    run.cluster.held.discard(worker)
    await asyncio.sleep(3)


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
    async with run.recovery.watched():
        for server in list(run.cluster.everyone):
            run.cluster.held.add(server)
            if server.is_running:
                await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start, 60)
            run.cluster.held.discard(server)
        run.happened("all APIs and workers restarted, one after the other", felt=False)


async def _index(run: Run) -> None:
    worker = run.one(run.cluster.workers)
    run.cluster.held.add(worker)
    await asyncio.to_thread(worker.kill_all)
    await asyncio.to_thread(shutil.rmtree, worker.data_dir / "index", ignore_errors=True)
    run.happened(f"{worker.data_dir.name} killed, its id index deleted")
    await asyncio.to_thread(worker.launch)
    run.cluster.held.discard(worker)


async def _put_poison(run: Run, kind: str) -> None:
    def put() -> None:
        log = KafkaLog(run.cluster.access, create=False)
        faults.put(log, faults.poison(kind, run.rng.randrange(log.partitions), log.partitions))
        log.close()

    await asyncio.to_thread(put)
    run.poison.append(kind)
    run.happened(f"a message that {'cannot be decoded' if kind == 'junk' else 'raises'}")


async def _junk(run: Run) -> None:
    await _put_poison(run, "junk")


async def _raises(run: Run) -> None:
    await _put_poison(run, "raises")


async def _letters(run: Run) -> list[str]:
    done = await asyncio.to_thread(run.cluster.cli, "dlq", "list", "--json")
    return faults.letters_missing(json.loads(done.stdout), run.poison) if done.returncode == 0 else [done.stderr]


async def _clock(run: Run) -> None:
    assert run.clock is not None
    await asyncio.to_thread(run.clock.set, -faults.HOUR * (run.report.kills % 2 == 0))
    run.happened("the clock set " + ("forward again" if run.report.kills % 2 else "back an hour"))


async def _partitions(run: Run) -> None:
    """A new worker, and then a new API, with another number than the topics have."""
    run.happened("a start with another partition count", felt=False)
    for command in ("worker", "api"):
        directory = run.cluster.directory / f"other-{command}"
        done = await asyncio.to_thread(run_cli, directory, command, partitions=PARTITIONS + 1, **run.cluster.log)
        if done.returncode != REFUSED or f"has {PARTITIONS} partition(s), not {PARTITIONS + 1}" not in done.stderr:
            run.report.differences.append(f"{command}, other partitions: {done.returncode} {done.stderr[-300:]}")


async def _disk(run: Run) -> None:
    """The broker's disk: with no directory left to write to it ends, and is started again when there is room."""
    broker = run.cluster.broker
    disk = broker.directory / "data"
    taken = await asyncio.to_thread(faults.fill, disk)
    run.happened(f"the broker's disk full, {taken >> 20} MiB taken")
    await asyncio.sleep(run.rng.uniform(5, 10))
    run.say("the broker " + ("runs on" if broker.is_running else "has ended"))
    await asyncio.to_thread(faults.free, disk)
    if not broker.is_running or run.rng.random() < 0.5:
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)
    run.recovery.start()


@contextmanager
def _held_clock(directory: Path) -> Iterator[Clock]:
    with Clock(directory).held() as clock:
        yield clock


@contextmanager
def _small_disk(directory: Path) -> Iterator[None]:
    with faults.small_disk(directory / "broker" / "data", DISK_MIB):
        yield


async def _nothing(_: Run) -> list[str]:
    return []


@dataclass(frozen=True)
class Row:
    """A way in which a cluster can fail."""

    title: str
    failure: Failure
    times: int
    """Failures in one run."""
    lasts: float = 3
    """Seconds that one takes, about."""
    around: Callable[[Path], AbstractContextManager[Clock | None]] = lambda _: nullcontext()
    after: Callable[[Run], Awaitable[list[str]]] = _nothing


ROWS: Final[dict[str, Row]] = {
    "kafka-worker": Row("kill -9 of a worker, started again", _worker, 5),
    "kafka-leaves": Row("kill -9 of a worker, which stays away until another has its partitions", _leaves, 2, 25),
    "kafka-api": Row("kill -9 of an API, started again", _api, 5),
    "kafka-everything": Row("kill -9 of all APIs and workers at once", _everything, 3),
    "kafka-broker": Row("kill -9 and restart of the broker", _broker, 3, 8),
    "kafka-away": Row("the broker away for 60 s", _away, 1, BROKER_AWAY + 5),
    "kafka-zombie": Row("a worker stands still for 60 s, another takes over, it wakes up", _zombie, 1, ZOMBIE + 5),
    "kafka-scale": Row("workers added and removed", _scale, 4),
    "kafka-rolling": Row("rolling restart of all APIs and workers", _rolling, 1, 40),
    "kafka-index": Row("kill -9 of a worker, its id index deleted", _index, 3),
    "kafka-junk": Row("a message that cannot be decoded", _junk, 4, 1, after=_letters),
    "kafka-raises": Row("a message whose processing raises", _raises, 2, 8, after=_letters),
    "kafka-clock": Row("the clock of APIs and workers set back an hour, and forward", _clock, 4, 1, _held_clock),
    "kafka-partitions": Row("a start with another partition count is refused", _partitions, 1, 10),
    "kafka-disk": Row("the broker's disk full, and freed again", _disk, 2, 20, _small_disk),
}


async def run_row(
    row: str,
    *,
    seed: int,
    events: int,
    directory: Path,
    short: bool = False,
    times: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Report:
    """One run of a row; `times` failures instead of its own number. `options` are those of the cluster."""
    rng = random.Random(seed)
    report = Report(row, seed)
    began = time.monotonic()
    what = ROWS[row]
    times = times or what.times
    traffic = await asyncio.to_thread(make_traffic, rng.randrange(2**32), events, conflicts=min(50, events // 100))
    report.events = traffic.events
    lasts = what.lasts / 4 if short else what.lasts
    pace = Pace(clients.paced(traffic), rate=traffic.events / (times * (SPREAD + lasts)), reserve=traffic.events // 5)
    tally = Tally()
    say("starting the cluster")
    try:
        held = what.around(directory)
        with held as clock:
            await _run(what, times, traffic, pace, tally, report, rng, directory, say, clock, options, short=short)
    except CannotRun as error:
        report.skipped = str(error)
    report.seconds = time.monotonic() - began
    return report


async def _run(
    what: Row,
    times: int,
    traffic: Traffic,
    pace: Pace,
    tally: Tally,
    report: Report,
    rng: random.Random,
    directory: Path,
    say: Callable[[str], None],
    clock: Clock | None,
    options: dict[str, Any],
    *,
    short: bool,
) -> None:
    async with cluster(directory, random.Random(report.seed), **options) as made:
        recovery = Recovery(made, tally, report.recoveries)
        run = Run(made, rng, report, recovery, say, short, clock)
        sending = asyncio.create_task(clients.send(made, traffic, tally, pace))
        try:
            for _ in range(times):
                await asyncio.wait({sending}, timeout=rng.uniform(0.3, SPREAD))
                if sending.done():
                    break
                await what.failure(run)
            if not sending.done():
                await recovery.settle(sending)
            pace.let_go()
            say(f"{report.kills} failures, sending the rest")
            await sending
        except ExceptionGroup as wrong:
            say(f"a client met what it cannot mend: {wrong.exceptions}")
            raise
        finally:
            sending.cancel()
            recovery.cancel()
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
        report.differences += await what.after(run)
        if report.differences:
            report.differences.append(made.tail())
        made.held.update(made.everyone)
        report.differences += await asyncio.to_thread(made.stop)
