"""The row `power`: the machine loses power, again and again, and the next start finds what the disk may have then.

A server runs over a recorder of its writes (`tests.chaos.disk`). Each life of it ends in a cut at a random record of
what it wrote, start and end included; the next life begins with a disk on which only that is sure to be there which was
made durable before. Some lives meet an fsync that fails. What was acknowledged before a cut has to be counted after it,
and in the end, when everything was sent again, every event once.
"""

import asyncio
import contextlib
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.chaos.disk import model
from tests.chaos.disk.model import Disk, Op
from tests.chaos.faults import CannotRun
from tests.chaos.report import Report
from tests.support import clients
from tests.support.events import Num, make_event, to_ndjson
from tests.support.server import Server, server, variables

TITLE: Final = "power cuts: unsynced writes lost, kept, torn or out of order; fsyncs that fail"
BATCH: Final = 20
"""Events of a request, all of one user: the table says which requests are in."""
PADDING: Final = 15_000
"""Random bytes of each event, so that a life of seconds has a few checkpoints."""
SENDERS: Final = 4
COST: Final = Decimal("0.000000000123")
LOAD: Final = (1.0, 3.5)
"""Seconds of load in one life."""
KEEP: Final = ("nothing", "all", "first", "some", "some")
FAILING: Final = 0.3
"""Share of the lives with an fsync that fails."""


def build(directory: Path) -> Path:
    """Compile the recorder. Raises `CannotRun` without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise CannotRun("the recorder of writes needs a C compiler")
    library = directory / "recorder.so"
    source = Path(__file__).with_name("disk") / "recorder.c"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotRun(f"the recorder of writes cannot be built here: {done.stderr.strip()[:300]}")
    return library


@contextmanager
def recorded(library: Path, root: Path, journal: Path, order: Path) -> Iterator[None]:
    """Processes that are started inside of the block have what they write below `root` recorded."""
    names = {"LD_PRELOAD": library, "DISK_ROOT": root, "DISK_JOURNAL": journal, "DISK_FAIL": order}
    with variables(names):
        yield


@dataclass
class Batches:
    """Requests, and for each of those that were acknowledged in this life, how long the journal was then."""

    bodies: list[bytes]
    kept: set[int] = field(default_factory=set)
    """Acknowledged before a cut: they have to be there."""
    acknowledged: dict[int, int] = field(default_factory=dict)
    next: int = 0
    retries: int = 0

    @classmethod
    def make(cls, count: int, rng: random.Random) -> "Batches":
        """As many, each of a user of its own."""
        return cls([to_ndjson([_event(number, rng) for _ in range(BATCH)]) for number in range(count)])

    def draw(self) -> int:
        """The next to send; when all were sent, some once more."""
        self.next += 1
        return (self.next - 1) % len(self.bodies)

    def cut(self, end: int) -> None:
        """Only what was acknowledged by then was promised."""
        self.kept |= {number for number, size in self.acknowledged.items() if size <= end}
        self.acknowledged.clear()

    def differences(self, rows: Mapping[str, Mapping[str, Any]], *, whole: bool) -> list[str]:
        """What the table lacks or has too much of; with `whole` everything has to be there."""
        found = []
        for number in range(len(self.bodies)):
            row = rows.get(f"batch-{number}", {"requests": 0, "cost_usd": Decimal(0)})
            requests = row["requests"]
            if requests > BATCH or ((whole or number in self.kept) and requests != BATCH):
                found.append(f"batch {number}: {requests} of {BATCH} events, acknowledged: {number in self.kept}")
            if row["cost_usd"] != COST * requests:
                found.append(f"batch {number}: cost {row['cost_usd']} for {requests} events")
        return found


def _event(number: int, rng: random.Random) -> dict[str, Any]:
    return make_event(user_id=f"batch-{number}", cost_usd=Num(f"{COST:f}"), padding=rng.randbytes(PADDING // 2).hex())


async def run_power(
    *,
    seed: int,
    events: int,
    lives: int,
    directory: Path,
    failing: float = FAILING,
    keep: Sequence[str] = KEEP,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """One run: `lives` cuts under load, then the comparison.

    `failing`: the share of lives with an fsync that fails; `keep`: what may be left of unsynced writes (`Disk.cut`).
    """
    rng = random.Random(seed)
    report = Report("power", seed)
    began = time.monotonic()
    batches = Batches.make(max(events // BATCH, 1), rng)
    report.events = len(batches.bodies) * BATCH
    try:
        library = await asyncio.to_thread(build, directory)
        root = directory / "life-0"
        root.mkdir()
        for life in range(lives):
            fails = rng.random() < failing
            journal = await _live(root, directory, library, batches, rng, report, fails=fails)
            image = directory / f"life-{life + 1}"
            told = await asyncio.to_thread(_cut, root, journal, image, batches, rng, keep)
            report.kills += 1
            say(f"life {life}{', an fsync failed' if fails else ''}: {told}")
            shutil.rmtree(root)
            journal.unlink()
            root = image
        await _finish(root, batches, report)
    except CannotRun as error:
        report.skipped = str(error)
    report.retries = batches.retries
    report.seconds = time.monotonic() - began
    return report


async def _live(
    root: Path, directory: Path, library: Path, batches: Batches, rng: random.Random, report: Report, *, fails: bool
) -> Path:
    """One life: compare what is there, send, and end somehow. Returns the journal."""
    journal, order = directory / "journal", directory / "fail"
    order.unlink(missing_ok=True)
    with recorded(library, root, journal, order), server(root / "data", partitions=2, start=False) as started:
        _remember(root)
        await asyncio.to_thread(started.start)
        report.differences += await _compare(started, batches, whole=False)
        sending = [asyncio.create_task(_send(started, batches, journal)) for _ in range(SENDERS)]
        seconds = rng.uniform(*LOAD)
        await asyncio.sleep(seconds / 2)
        if fails:
            order.write_text(rng.choice(("log.db", "log.db-wal", "log.db")))
        await asyncio.sleep(seconds / 2)
        if rng.random() < 0.3:  # a cut while it ends
            await asyncio.to_thread(started.stop)
        for task in sending:
            task.cancel()
        await asyncio.to_thread(started.kill_all)
    return journal


_begun: dict[Path, Disk] = {}


def _remember(root: Path) -> None:
    _begun[root] = Disk(root)


def _cut(root: Path, journal: Path, image: Path, batches: Batches, rng: random.Random, keep: Sequence[str]) -> str:
    """Make the disk as a cut at a random record leaves it."""
    ops = list(model.read(journal))
    end = _place(ops, rng)
    disk = _begun.pop(root)
    for op in ops[:end]:
        disk.feed(op)
    kept = rng.choice(keep)
    disk.cut(image, rng, kept)
    batches.cut(ops[end - 1].end if end else 0)
    return f"cut after {end} of {len(ops)} records, of what was not synced: {kept}"


def _place(ops: list[Op], rng: random.Random) -> int:
    """Half of the cuts come in the midst of a checkpoint, which are few of the records."""
    log = {op.inode for op in ops if op.code == model.WRITE and op.data.startswith(b"SQLite format 3\0")}
    checkpoints = [number for number, op in enumerate(ops) if op.inode in log]
    if checkpoints and rng.random() < 0.5:
        return min(rng.choice(checkpoints) + rng.randrange(3), len(ops))
    return rng.randint(0, len(ops))


async def _send(started: Server, batches: Batches, journal: Path) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            number = batches.draw()
            if await _post(session, started, batches.bodies[number]):
                size = journal.stat().st_size  # noqa: ASYNC240 - at this very moment
                batches.acknowledged.setdefault(number, size)
            else:
                batches.retries += 1
                await asyncio.sleep(0.1)


async def _post(session: aiohttp.ClientSession, started: Server, body: bytes) -> bool:
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        answer = await clients.Reader(started, session).ingest(body)
        return answer.status == 202 and bool(answer.json["accepted"] == BATCH)
    return False


async def _compare(started: Server, batches: Batches, *, whole: bool) -> list[str]:
    async with clients.reader(started) as reader:
        reader.page = 1000
        users, _ = await reader.users()
    return batches.differences({row["user_id"]: row for row in users}, whole=whole)


async def _finish(root: Path, batches: Batches, report: Report) -> None:
    """Send everything that was not promised yet, and compare, also after another start."""
    with server(root / "data", partitions=2) as started:
        report.differences += await _compare(started, batches, whole=False)
        async with aiohttp.ClientSession() as session:
            for body in batches.bodies:
                if await _post(session, started, body):
                    report.acknowledged += BATCH
        async with clients.reader(started) as reader:
            await reader.caught_up(report.events)
        report.differences += await _compare(started, batches, whole=True)
        report.differences += [f"verify: {line}" for line in await asyncio.to_thread(clients.verify, started)]
        await asyncio.to_thread(started.stop)
        await asyncio.to_thread(started.start)
        report.differences += [f"after a restart: {line}" for line in await _compare(started, batches, whole=True)]
