"""Row `growth`: what an event costs when the log has 1, 10 and 100 million, and what an hour of them does to memory.

    python -m tests.bench.growth [--events 100000000] [--seconds 3600] [--json growth.json] [--dir DIRECTORY]

Events come as fast as they are taken, from a generator on the same cores; all the time they are of the same 80,000 rows
of 10,000 users. At each size the generator stops, the tables catch up, and three stretches of 300,000 events, made
before, are timed: from the first byte until all is accepted and visible in `GET /v1/users`. At the end every column of
every user and the totals are compared with the ground truth. What was measured is in the JSON file as soon as it is
known; `--show` prints its tables again, `python -m tools.chart` draws it.
"""

import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from msgspec import Struct, field
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from processor.log.embedded.log import FILE_NAME
from tests.bench import machine
from tests.bench.context import DATA, Bench, FreshLoad
from tests.bench.corpus import Corpus
from tests.bench.end_to_end import Reader
from tests.bench.load_fresh import Stretch
from tests.bench.loading import Outcome, now
from tests.bench.machine import MIB, Memory, percentile
from tests.bench.passes import Pass
from tests.bench.programs import Failed, Meter, Program
from tests.bench.results import CPU, ELSEWHERE, RATE, Figures
from tests.support.traffic import BATCH

EVENTS: Final = 100_000_000
SECONDS: Final = 3600.0
SIZES: Final = (1_000_000, 10_000_000, 100_000_000)
"""Events in the log at which stretches are timed."""
STRETCH: Final = 300_000
"""Events of a timed stretch."""
TIMES: Final = 3
TICK: Final = 10.0
"""Seconds between two samples."""
LANES: Final = 16
GIB: Final = 1 << 30
SPARE: Final = 8 * GIB
"""Bytes of the disk that stay free."""
MARGIN: Final = GIB
"""What is left beside them when the load is slowed down so that the disk lasts to the end."""
JSON_FILE: Final = Path("growth.json")


class Sample(Struct):
    """What was seen at one moment."""

    seconds: float
    """Since the first event."""
    events: int
    """Acknowledged so far, duplicates included."""
    rate: float
    """Events a second since the sample before."""
    p50: float
    """Of the acknowledgements since then, ms."""
    p99: float
    memory: dict[str, Memory]
    """By role."""
    cpu: dict[str, float]
    """By process, µs an event since the sample before."""
    log: float
    """MiB of the log, and of its write-ahead log."""
    wal: float
    index: float
    """MiB on the disk of the id index."""
    free: float
    """GiB of the disk."""
    slowed: bool = False
    """Whether the load was held back so that the disk lasts."""


class Timed(Struct):
    """A stretch on a log of a known size."""

    events: int
    """In the log when it began, to the nearest million."""
    rate: float
    """Events a second, accepted and visible."""
    accepted: float
    """Events a second, accepted."""
    cpu: dict[str, float]
    """By process, µs an event."""
    elsewhere: float
    """% of the machine's CPU that went to what is none of ours."""


class Report(Struct):
    """All of a run; in the file as it stands at any moment."""

    conditions: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    timed: list[Timed] = field(default_factory=list)
    failure: str | None = None
    exact: bool = False
    """Whether all tables were compared with the ground truth, and were it."""

    def write(self, path: Path) -> None:
        """Put it into the file's place at once."""
        part = path.with_name(path.name + ".part")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(self)))
        part.replace(path)


class Full(Exception):
    """The disk has no room for more."""


class Growth:
    """One run, on a server and a generator that have done nothing yet."""

    def __init__(
        self, server: Program, said: dict[str, Any], load: FreshLoad, made: Pass, keep: Callable[[Sample | Timed], None]
    ) -> None:
        self._said = said
        self._load = load
        self._made = made
        self._keep = keep
        self._data = server.directory / DATA
        self._roles = server.roles()
        self._requests = 0
        """Taken so far: the generator's first ones."""
        self._fastest = 0.0
        self._began = now()
        self._meter = self._new_meter()

    def run(self, events: int, seconds: float) -> None:
        """Fill and measure. Raises `Failed`, and `Full`."""
        self._sample(Outcome(began=self._began, ended=self._began))
        for size in SIZES:
            if size <= events:
                self._fill(size)
                for _ in range(TIMES):
                    self._time(size)
        self._fill(events)
        while (left := self._began + seconds - now()) > 0:
            self._send(Stretch(seconds=min(TICK, left), rate=self._affordable(left)))

    def compare(self) -> None:
        """All tables with the ground truth. Raises `Failed`."""
        reader = Reader(self._said)
        truth = self._made.truth(self._made.counted_first(self._requests))
        reader.wait_for(truth.unique)
        reader.compare(truth)

    @property
    def _events(self) -> int:
        return self._requests * BATCH

    def _unique(self, requests: int) -> int:
        return int(self._made.counted_first(requests).sum())

    def _fill(self, events: int) -> None:
        """As fast as it goes, until the log has so many."""
        while self._events < events:
            self._send(Stretch(requests=-(-(events - self._events) // BATCH), seconds=TICK))

    def _send(self, stretch: Stretch) -> None:
        """A part of the filling, and the sample after it. Raises `Full` if the disk has no room for it."""
        free = shutil.disk_usage(self._data).free
        if free < SPARE + MARGIN / 2:
            raise Full(
                f"stopped at {self._events:,} events and {now() - self._began:.0f} s: the disk has "
                f"{free / GIB:.1f} GiB free, and {SPARE / GIB:.0f} are to stay; "
                f"an event takes {self._bytes_an_event():.0f} bytes"
            )
        stretch.lanes = LANES
        self._load.tell(stretch)
        self._taken(outcome := self._load.outcome())
        self._sample(outcome, slowed=stretch.rate is not None)

    def _taken(self, outcome: Outcome) -> None:
        self._requests += outcome.accepted // BATCH

    def _affordable(self, seconds: float) -> float | None:
        """Requests a second so that the disk lasts for so long; None: as fast as they are taken."""
        room = max(0, shutil.disk_usage(self._data).free - SPARE - MARGIN)
        rate = room / self._bytes_an_event() / seconds
        if rate >= self._fastest:
            return None
        return max(rate / BATCH, 1.0)

    def _bytes_an_event(self) -> float:
        log, wal, index = self._sizes()
        return MIB * (log + wal + index) / max(1, self._events)

    def _sizes(self) -> tuple[float, float, float]:
        """MiB of log, write-ahead log and id index."""
        index = sum(512 * path.stat().st_blocks for path in (self._data / "index").glob("*/*"))
        return _size(self._data / FILE_NAME), _size(self._data / f"{FILE_NAME}-wal"), index / MIB

    def _new_meter(self) -> Meter:
        return Meter({**self._roles, "loader": self._load.program.pid})

    def _sample(self, outcome: Outcome, *, slowed: bool = False) -> None:
        memory = {role: machine.memory(pid) for role, pid in self._roles.items()}
        here = {role: found for role, found in memory.items() if found is not None}
        if len(here) < len(memory):
            raise Failed(f"{', '.join(memory.keys() - here.keys())} ended meanwhile")
        used = self._meter.figures(max(1, outcome.accepted), outcome.ended - outcome.began or 1.0)
        self._meter = self._new_meter()
        log, wal, index = self._sizes()
        sample = Sample(
            seconds=outcome.ended - self._began,
            events=self._events,
            rate=outcome.accepted / (outcome.ended - outcome.began) if outcome.accepted else 0.0,
            p50=1e3 * percentile(outcome.latencies, 50) if outcome.latencies else 0.0,
            p99=1e3 * percentile(outcome.latencies, 99) if outcome.latencies else 0.0,
            memory=here,
            cpu=_cpu(used) if outcome.accepted else {},
            log=log,
            wal=wal,
            index=index,
            free=shutil.disk_usage(self._data).free / GIB,
            slowed=slowed,
        )
        self._fastest = max(self._fastest, sample.rate)
        self._keep(sample)

    def _time(self, size: int) -> None:
        """A stretch whose bodies were made before, on a log that stands still and tables that have caught up."""
        Reader(self._said).wait_for(self._unique(self._requests))
        requests = STRETCH // BATCH
        unique = self._unique(self._requests + requests)
        self._load.tell(Stretch(requests=requests, prepared=True, lanes=LANES))
        meter = self._new_meter()
        self._load.go()
        self._taken(outcome := self._load.outcome())
        seconds = Reader(self._said).wait_for(unique) - outcome.began
        used = meter.figures(STRETCH, seconds)
        accepted = STRETCH / (outcome.ended - outcome.began)
        self._keep(Timed(size, STRETCH / seconds, accepted, _cpu(used), used.get(ELSEWHERE, 0.0)))
        self._sample(outcome)


def _size(path: Path) -> float:
    return path.stat().st_size / MIB if path.exists() else 0.0


def _cpu(figures: Figures) -> dict[str, float]:
    return {name.removeprefix(CPU): value for name, value in figures.items() if name.startswith(CPU)}


Show = Callable[[Sample], None]


def measure(bench: Bench, path: Path, show: Show, events: int = EVENTS, seconds: float = SECONDS) -> Report:
    """A run, with its report in the file at `path`. Raises `Failed`, which is in the file, too."""
    report = Report(machine.conditions(bench.directory))
    made = Pass.make()

    def keep(found: Sample | Timed) -> None:
        if isinstance(found, Timed):
            report.timed.append(found)
        else:
            report.samples.append(found)
            show(found)
        report.write(path)

    try:
        with bench.server("serve") as (server, said), bench.fresh_loads(said, made) as [load]:
            time.sleep(0.5)  # what a start leaves to do is done
            run = Growth(server, said, load, made, keep)
            try:
                run.run(events, seconds)
            except Full as full:
                report.failure = str(full)
            run.compare()
            report.exact = True
    except Failed as failed:
        report.failure = str(failed)
        raise
    finally:
        report.write(path)
    return report


def growth(bench: Bench) -> Figures:
    """The row, once; its samples are in `growth.json` where it was started."""
    report = measure(bench, JSON_FILE, lambda _: None)
    if report.failure is not None:
        raise Failed(report.failure)
    by_size = rates(report)
    medians = [statistics.median(rate) for rate in by_size.values()]
    return {
        RATE: medians[-1],
        **{f"events/s with {size:,} in the log": median for size, median in zip(by_size, medians, strict=True)},
        "most / least of these": max(medians) / min(medians),
        **{
            f"RssAnon {role}, {name}, MiB": value
            for role in report.samples[-1].memory
            for name, value in quarters(report, role).items()
        },
    }


def rates(report: Report) -> dict[int, list[float]]:
    """Events in the log -> the rates of the stretches."""
    found: dict[int, list[float]] = {}
    for timed in report.timed:
        found.setdefault(timed.events, []).append(timed.rate)
    return found


def quarters(report: Report, role: str) -> dict[str, float]:
    """Medians of a process's RssAnon, MiB: at rest, and in each quarter of the time."""
    rest, *samples = report.samples
    found = {"at rest": rest.memory[role].anon}
    whole = samples[-1].seconds if samples else 0.0
    for number, name in enumerate(("first", "second", "third", "last")):
        part = [s.memory[role].anon for s in samples if number * whole / 4 < s.seconds <= (number + 1) * whole / 4]
        if part:
            found[f"{name} quarter"] = statistics.median(part)
    return found


# --- the program -----------------------------------------------------------------------------------------------------


def tell(console: Console, report: Report) -> None:
    """Print a report, in tables that Markdown reads too."""
    table = Table("condition", "", box=box.MARKDOWN)
    for name, value in report.conditions.items():
        table.add_row(name, value)
    console.print(table)
    table = Table("events in the log", "events/s: median (least to most)", "CPU, µs an event", box=box.MARKDOWN)
    for size, each in rates(report).items():
        timed = [found for found in report.timed if found.events == size]
        names = [name for name in timed[0].cpu if name != "supervisor"]
        spent = [f"{name} {statistics.median(found.cpu[name] for found in timed):.1f}" for name in names]
        table.add_row(
            f"{size:,}", f"{statistics.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})", ", ".join(spent)
        )
    console.print(table)
    last = report.samples[-1]
    parts = {role: quarters(report, role) for role in last.memory}
    table = Table("RssAnon, MiB, median", *next(iter(parts.values())), "most", "RssFile at the end", box=box.MARKDOWN)
    for role, part in parts.items():
        most = max(sample.memory[role].anon for sample in report.samples)
        values = [*part.values(), most, last.memory[role].file]
        table.add_row(role, *(f"{value:.0f}" for value in values))
    console.print(table)
    loader = [sample.cpu["loader"] for sample in report.samples if sample.cpu and not sample.slowed]
    slowed = [sample for sample in report.samples if sample.slowed]
    wal = max(sample.wal for sample in report.samples)
    lines = [
        f"{last.events:,} events in {last.seconds:,.0f} s",
        f"log {last.log:,.0f} MiB, write-ahead log at most {wal:,.0f} MiB, id index {last.index:,.0f} MiB",
        f"generator: {statistics.median(loader) if loader else 0.0:.2f} µs of CPU an event, made and sent",
        "every column of every user is the ground truth" if report.exact else "the tables were NOT compared",
        *([f"from {slowed[0].events:,} events on the load was held back, so that the disk lasts"] if slowed else []),
        *([f"FAILED: {report.failure}"] if report.failure else []),
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--events", default=EVENTS, show_default=True, type=click.IntRange(1000), help="So many at least.")
@click.option("--seconds", default=SECONDS, show_default=True, help="At least so long.")
@click.option("--json", "path", default=JSON_FILE, show_default=True, type=click.Path(path_type=Path))
@click.option("--dir", "parent", type=click.Path(path_type=Path, exists=True), help="Where the log lies meanwhile.")
@click.option("--show", "only_show", is_flag=True, help="Measure nothing: print what is in the file.")
def main(events: int, seconds: float, path: Path, parent: Path | None, *, only_show: bool) -> None:
    """Fill the log and measure. Exit code 1 if the tables were not exact, or the disk was too small."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    if only_show:
        tell(console, msgspec.json.decode(path.read_bytes(), type=Report))
        return
    signal.signal(signal.SIGTERM, _interrupt)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    task = progress.add_task("", total=1.0)

    def show(sample: Sample) -> None:
        held = ", ".join(f"{role} {found.anon:.0f} MiB" for role, found in sample.memory.items())
        line = f"{sample.events:,} events, {sample.rate:,.0f}/s, {held}, disk {sample.free:.0f} GiB free"
        done = min(sample.events / events, sample.seconds / seconds if seconds else 1.0)
        progress.update(task, description=line, completed=done)
        if progress.disable:
            print(f"{sample.seconds:.0f} s: {line}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="spendstream-growth-", dir=parent) as directory:
        bench = Bench(Path(directory), Corpus(Path(directory), 0))
        try:
            with progress:
                report = measure(bench, path, show, events, seconds)
        except Failed as failed:
            print(f"FAILED: {failed}", file=sys.stderr)
            sys.exit(1)
    tell(console, report)
    sys.exit(report.failure is not None)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
