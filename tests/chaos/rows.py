"""The ways to fail, one row each: real processes are killed under load, then every table is compared with the truth."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from processor.event_store.store import MAX_WAITING
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.records import TopicPartition
from processor.log.topics import EVENTS
from tests.chaos import faults
from tests.chaos.faults import CannotRun
from tests.chaos.recovery import Recovery
from tests.chaos.report import Report
from tests.chaos.wal import tear
from tests.support import clients, stored
from tests.support.clients import Pace, Tally
from tests.support.clock import Clock
from tests.support.server import Part, Server, all_gone, run_cli, server, wait_until
from tests.support.traffic import Sent, make_traffic
from tests.support.truth import GroundTruth

SPREAD: Final = 2.5
"""Seconds between a process's start and its end are random up to this: start-up is hit too."""

ORPHAN_PATIENCE: Final = 1.0
"""Seconds in which children end after their supervisor (contract, section 1)."""

STOP_PATIENCE: Final = 10.0
"""Seconds in which SIGTERM ends a server (contract, section 1)."""

STANDSTILL: Final = 60.0
DISK_MIB: Final = 160
PARTITIONS: Final = 2
STORE_PARTS: Final[tuple[Part, ...]] = ("store", "store", "store", "query", "worker", "worker", "api")
"""Each as often as it is killed among so many kills."""
BEHIND_PARTS: Final[tuple[Part, ...]] = ("store", "store", "worker", "api")
BEHIND_BYTES: Final = 160_000_000
"""Characters of padding of all events of a run: half as many bytes in the log, which is more than a store holds."""
BEHIND: Final = 0.7
"""The part of the events that are acknowledged while the store stands still."""
BEHIND_PATIENCE: Final = 300.0
APIS: Final[tuple[Part, ...]] = ("api-0", "api-1")
ASKED: Final = 20
"""Connections, so that each of two processes is asked."""
START: Final = 2.0
"""Seconds in which a process starts, about."""
STALL: Final = 0.5
UNPACED: Final = 1e9
"""Events a second."""
REFUSED: Final = 2
"""Exit code of a start that can never go well."""


@dataclass
class Run:
    """A run as a row sees it."""

    server: Server
    rng: random.Random
    report: Report
    tally: Tally
    recovery: Recovery
    say: Callable[[str], None] = lambda _: None
    clock: Clock | None = None
    poison: list[str] = field(default_factory=list)
    """The kinds of messages that cannot be processed, as they were put into the log."""
    short: bool = False
    sent: Mapping[str, Sent] = field(default_factory=dict)
    """Every event by its id, where the row compares them."""

    def killed(self, what: str) -> None:
        """It happened, and what follows is the recovery."""
        self.report.kills += 1
        self.say(f"{what} ({self.report.kills})")
        self.recovery.start()

    def mended(self) -> None:
        """The fault is over only now: recovery is counted from here."""
        self.recovery.start()


Failure = Callable[[Run], Awaitable[None]]


async def _worker(run: Run) -> None:
    await asyncio.to_thread(run.server.kill, "worker")
    run.killed("worker killed")


async def _api(run: Run) -> None:
    await asyncio.to_thread(run.server.kill, "api")
    run.killed("api killed")


async def _apis(run: Run) -> None:
    """The one that comes instead stands still while it starts, as on a busy machine: the other goes on meanwhile."""
    part = run.rng.choice(APIS)
    await asyncio.to_thread(run.server.kill, part)
    run.killed("one of two APIs killed")
    await asyncio.sleep(run.rng.uniform(0, START))
    await asyncio.to_thread(run.server.signal, part, signal.SIGSTOP)
    await asyncio.sleep(STALL)
    await asyncio.to_thread(run.server.signal, part, signal.SIGCONT)


async def _alike(run: Run) -> list[str]:
    """What one process says, the other says: each new connection is given to either."""
    totals = []
    for _ in range(ASKED):
        async with clients.reader(run.server) as reader:
            answer = await reader.get("/v1/users?limit=1")
            totals.append(answer["total"])
    return [] if all(total == totals[0] for total in totals) else [f"two APIs, two answers: {totals}"]


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
    run.mended()


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


async def _standstill(run: Run) -> None:
    await asyncio.to_thread(run.server.signal, "worker", signal.SIGSTOP)
    run.killed("worker stopped")
    await asyncio.sleep(STANDSTILL / 10 if run.short else STANDSTILL)
    await asyncio.to_thread(run.server.signal, "worker", signal.SIGCONT)
    run.mended()


async def _file(run: Run) -> None:
    await asyncio.to_thread(run.server.kill_all)
    done = faults.tear_file(run.server.data_dir, run.rng)
    run.killed(f"everything killed, {done}")
    await asyncio.to_thread(run.server.start)


async def _rolling(run: Run) -> None:
    """SIGTERM to each process in turn; the supervisor starts its children again, here we start the supervisor."""
    parts: tuple[Part, ...] = ("api", "worker", "supervisor")
    part = run.rng.choice(parts)
    async with run.recovery.watched():
        if part == "supervisor":
            code, seconds = await asyncio.to_thread(run.server.stop)
            if code != 0 or seconds > STOP_PATIENCE:
                run.report.differences.append(f"SIGTERM: exit code {code} after {seconds:.1f} s")
            await asyncio.to_thread(run.server.start)
        else:
            await asyncio.to_thread(run.server.signal, part, signal.SIGTERM)
        run.report.kills += 1
        run.say(f"{part} restarted ({run.report.kills})")
        await asyncio.sleep(3)


async def _disk(run: Run) -> None:
    taken = await asyncio.to_thread(faults.fill, run.server.data_dir)
    run.killed(f"disk full, {taken >> 20} MiB taken")
    before = run.tally.acknowledged
    await asyncio.sleep(run.rng.uniform(2, 6))
    run.say(f"{run.tally.acknowledged - before} events acknowledged meanwhile")
    if run.rng.random() < 0.5:
        await asyncio.to_thread(run.server.kill_all)
        await asyncio.to_thread(faults.free, run.server.data_dir)
        await asyncio.to_thread(run.server.start)
    else:
        await asyncio.to_thread(faults.free, run.server.data_dir)
    run.mended()


async def _put_poison(run: Run, kind: str) -> None:
    def put() -> None:
        log = Log(run.server.data_dir, create=False)
        faults.put(log, faults.poison(kind, run.rng.randrange(log.partitions), log.partitions))
        log.close()

    await asyncio.to_thread(put)
    run.poison.append(kind)
    run.killed(f"a message that {'cannot be decoded' if kind == 'junk' else 'raises'}")


async def _junk(run: Run) -> None:
    await _put_poison(run, "junk")


async def _raises(run: Run) -> None:
    await _put_poison(run, "raises")


async def _letters(run: Run) -> list[str]:
    done = await asyncio.to_thread(run.server.cli, "dlq", "list", "--json")
    return faults.letters_missing(json.loads(done.stdout), run.poison) if done.returncode == 0 else [done.stderr]


async def _clock(run: Run) -> None:
    assert run.clock is not None
    await asyncio.to_thread(run.clock.set, -faults.HOUR * (run.report.kills % 2 == 0))
    run.killed("the clock set " + ("forward again" if run.report.kills % 2 else "back an hour"))


async def _partitions(run: Run) -> None:
    await asyncio.to_thread(run.server.kill_all)
    run.killed("everything killed")
    for command in ("serve", "api", "worker"):
        done = await asyncio.to_thread(run_cli, run.server.data_dir, command, partitions=PARTITIONS + 1)
        if done.returncode != REFUSED or f"has {PARTITIONS} partition(s), not {PARTITIONS + 1}" not in done.stderr:
            run.report.differences.append(f"{command}, other partitions: {done.returncode} {done.stderr[-300:]}")
    await asyncio.to_thread(run.server.start)


async def _retention(run: Run) -> None:
    """After some traffic three days pass at once, and another one, for no arrival deletes anything before it is a day
    of running time old; then the worker is killed while events are sealed and deleted."""
    assert run.clock is not None
    if run.report.kills == 0:
        await asyncio.sleep(3)
        for days in (3.0, 1.1):
            await asyncio.to_thread(run.clock.let_pass, days * faults.DAY)
            await asyncio.sleep(3)
    else:
        await asyncio.to_thread(run.server.kill, "worker")
    run.killed("worker killed" if run.report.kills else "four days pass")


async def _deleted(run: Run) -> list[str]:
    def first() -> int:
        log = Log(run.server.data_dir, create=False)
        try:
            return min(log.first(TopicPartition(EVENTS, number)) for number in range(log.partitions))
        finally:
            log.close()

    found = await asyncio.to_thread(first)
    run.say(f"events up to {found} are gone")
    return [] if found > 0 else ["retention has deleted nothing"]


async def _store(run: Run) -> None:
    """One of the processes that the events in the store depend on, at random; days pass at first, so that retention
    deletes messages and segments meanwhile."""
    assert run.clock is not None
    if run.report.kills == 0:
        await asyncio.sleep(3)
        for days in (3.0, 1.1):
            await asyncio.to_thread(run.clock.let_pass, days * faults.DAY)
            await asyncio.sleep(1)
    part = run.rng.choice(STORE_PARTS)
    await asyncio.to_thread(run.server.kill, part)
    run.killed(f"{part} killed")


async def _stored(run: Run) -> list[str]:
    """The live segments have every counted event once, as the tables say; so has a store that is made anew from the
    log, the same rows as far as the log goes back."""
    data = run.server.data_dir
    address = LogAddress(data)
    segments = await asyncio.to_thread(stored.wait_stored, address)
    before = await asyncio.to_thread(stored.rows, data / "events", segments)
    found = [f"verify: {line}" for line in await asyncio.to_thread(clients.verify, run.server)]
    levels = max((each.level for each in segments), default=0)
    run.say(f"{len(before)} rows in {len(segments)} segments, merged {levels} times")
    generations = await asyncio.to_thread(stored.generations, address)
    await asyncio.to_thread(run.server.stop)
    await asyncio.to_thread(shutil.rmtree, data / "events")
    await asyncio.to_thread(run.server.start)
    segments = await asyncio.to_thread(stored.wait_stored, address, max(generations.values()) + 1)
    after = await asyncio.to_thread(stored.rows, data / "events", segments)
    firsts = {each.partition: each.end for each in segments if each.is_absent}
    kept = [row for row in before if row["log_offset"] >= firsts.get(row["log_partition"], 0)]
    if after != kept:
        found.append(f"the store that was made anew has {len(after)} rows, not the {len(kept)} that it had")
    return found


async def _behind(run: Run) -> None:
    """The store stands still while most events come, as fast as they are answered, so that it begins with more than it
    may hold; then it and what it depends on are killed while it makes up for that."""
    if run.report.kills == 0:
        await asyncio.to_thread(run.server.signal, "store", signal.SIGSTOP)
        enough = BEHIND * run.report.events
        await asyncio.to_thread(wait_until, lambda: run.tally.acknowledged >= enough, BEHIND_PATIENCE)
        part: Part = "store"
    else:
        part = run.rng.choice(BEHIND_PARTS)
    await asyncio.to_thread(run.server.kill, part)
    run.killed(f"{part} killed")


async def _every_event(run: Run) -> list[str]:
    """The live segments have every acknowledged event once, each as it was sent, and no message was skipped on the way:
    a store that starts again for that is exact, and not sound."""
    data = run.server.data_dir
    found = [f"verify: {line}" for line in await asyncio.to_thread(clients.verify, run.server)]
    segments = await asyncio.to_thread(stored.wait_stored, LogAddress(data))
    rows = await asyncio.to_thread(stored.rows, data / "events", segments)
    run.say(f"{len(rows)} rows in {len(segments)} segments")
    found += stored.differences(rows, run.sent)
    if await asyncio.to_thread(lambda: (data / "log.db").stat().st_size) < MAX_WAITING:
        found.append("the log is so small that the store holds all of it")
    said = await asyncio.to_thread(run.server.log_path.read_text)
    return found + [f"{event} in the log" for event in ("store.messages_skipped", "worker.broken") if event in said]


@contextmanager
def _small_disk(directory: Path) -> Iterator[None]:
    with faults.small_disk(directory / "data", DISK_MIB):
        yield


@contextmanager
def _held_clock(directory: Path) -> Iterator[Clock]:
    with Clock(directory).held() as clock:
        yield clock


@contextmanager
def _early_clock(directory: Path) -> Iterator[Clock]:
    with Clock(directory).held(faults.days_within_a_month(5)) as clock:
        yield clock


async def _nothing(_: Run) -> list[str]:
    return []


@dataclass(frozen=True)
class Row:
    """A way to fail."""

    title: str
    failure: Failure
    times: int | None = None
    """Failures in one run, if not as many as were asked for."""
    lasts: float = 1.5
    """Seconds that one takes, about."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    around: Callable[[Path], AbstractContextManager[Clock | None]] = lambda _: nullcontext()
    """What is there from before the start until after the end; takes the directory of the data directory."""
    duplicates: float = 0.05
    """The share of events that are copies."""
    after: Callable[[Run], Awaitable[list[str]]] = _nothing
    """What else must be true in the end."""
    padding: int = 0
    """Characters that are added to all events together, which come as fast as they are answered then."""


ROWS: Final[dict[str, Row]] = {
    "worker": Row("kill -9 of the worker", _worker),
    "api": Row("kill -9 of the API", _api),
    "apis": Row(
        "kill -9 of one of two APIs on one port, its successor stands still while it starts",
        _apis,
        lasts=3,
        settings={"api_processes": 2},
        after=_alike,
    ),
    "supervisor": Row("kill -9 of the supervisor; its children end within 1 s", _supervisor),
    "everything": Row("kill -9 of every process at once", _everything),
    "sigstop": Row("the worker stands still for seconds, again and again", _sigstop),
    "standstill": Row("the worker stands still for 60 s (SIGSTOP)", _standstill, times=1, lasts=60),
    "rolling": Row("SIGTERM of API, worker or server, started again", _rolling, lasts=4),
    "torn": Row("kill -9 of everything, torn tail of the write-ahead log", _torn),
    "file": Row("kill -9 of everything, torn pages and a torn end of the SQLite file", _file),
    "disk": Row("disk full, and freed again", _disk, times=4, lasts=6, around=_small_disk),
    "index": Row("kill -9 of everything, id index deleted", _index),
    "junk": Row("a message that cannot be decoded", _junk, lasts=0.5, after=_letters),
    "raises": Row("a message whose processing raises", _raises, times=4, lasts=4, after=_letters),
    "clock": Row("the clock set back an hour, and forward again", _clock, lasts=0.5, around=_held_clock),
    "partitions": Row("a restart with another partition count is refused", _partitions, times=2, lasts=5),
    "retention": Row(
        "retention deletes old events, the worker is killed at it",
        _retention,
        times=5,
        settings={"retention": 1, "retention_interval": 0.2},
        around=_early_clock,
        after=_deleted,
    ),
    "store": Row(
        "kill -9 of store, query, worker or API, with merging and retention; then the store is deleted",
        _store,
        settings={"event_store": True, "retention": 1, "retention_interval": 0.2},
        around=_early_clock,
        after=_stored,
        duplicates=0.3,
    ),
    "store-behind": Row(
        "kill -9 of store, worker or API while the store is further behind than what it holds",
        _behind,
        settings={"event_store": True},
        after=_every_event,
        padding=BEHIND_BYTES,
    ),
}


async def run_row(
    row: str,
    *,
    seed: int,
    events: int,
    kills: int,
    data_dir: Path,
    mixed: Sequence[str] = (),
    short: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """One run of a row: `kills` failures under `events` events, then the comparison. With `mixed`, of those rows."""
    rng = random.Random(seed)
    report = Report(row, seed)
    began = time.monotonic()
    what = ROWS[mixed[0] if mixed else row]
    kills = what.times if what.times is not None and not mixed else kills
    say("making events")
    traffic = await asyncio.to_thread(
        make_traffic,
        rng.randrange(2**32),
        events,
        conflicts=min(50, events // 100),
        duplicates=what.duplicates,
        padding=what.padding // events,
    )
    report.events = traffic.events
    lasts = what.lasts / 10 if short else what.lasts
    rate = UNPACED if what.padding else traffic.events / (kills * (SPREAD + lasts))
    pace = Pace(clients.paced(traffic), rate=rate, reserve=traffic.events // 5)
    tally = Tally()
    try:
        held = what.around(data_dir.parent)
        with held as clock, server(data_dir, partitions=PARTITIONS, **what.settings) as started:
            recovery = Recovery(started, tally, report.recoveries)
            run = Run(started, rng, report, tally, recovery, say, clock, short=short)
            run.sent = traffic.by_id() if what.padding else {}
            sending = asyncio.create_task(clients.send(started, traffic, tally, pace))
            try:
                for number in range(kills):
                    await asyncio.wait({sending}, timeout=rng.uniform(0.05, SPREAD))
                    if sending.done():
                        break
                    await ROWS[mixed[number % len(mixed)] if mixed else row].failure(run)
                pace.let_go()  # or there may be nothing left to measure the last recovery with
                if not sending.done():
                    await recovery.settle(sending)
                say(f"{report.kills} kills done, sending the rest")
                await sending
            finally:
                sending.cancel()
                recovery.cancel()
            report.acknowledged, report.retries = tally.acknowledged, tally.retries
            say("comparing")
            if report.kills < kills:
                report.differences.append(f"only {report.kills} of {kills} kills: the events were too few")
            report.differences += await _compare(run, traffic.truth, "")
            report.differences += await what.after(run)
            code, _ = await asyncio.to_thread(started.stop)
            if code != 0:
                report.differences.append(f"SIGTERM: exit code {code}")
            await asyncio.to_thread(started.start)
            report.differences += await _compare(run, traffic.truth, "after a restart: ")
    except CannotRun as error:
        report.skipped = str(error)
    report.seconds = time.monotonic() - began
    return report


async def _compare(run: Run, truth: GroundTruth, when: str) -> list[str]:
    async with clients.reader(run.server) as reader:
        reader.page = 1000
        found = await reader.differences(truth, exact_duplicates=False)
    found += [f"verify: {line}" for line in await asyncio.to_thread(clients.verify, run.server)]
    return [when + line for line in found]
