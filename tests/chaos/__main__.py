"""`python -m tests.chaos`: kill real processes under load, row by row, and compare every table with the truth.

Exits 1 if any run differs from the truth in a single digit. A failed run is run again with the seed it printed:
`python -m tests.chaos --only ROW --seed SEED`.
"""

import asyncio
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.chaos import kafka_rows, otlp, power
from tests.chaos.faults import CannotRun
from tests.chaos.report import Report
from tests.chaos.rows import ROWS, run_row

TITLES: Final = (
    {name: row.title for name, row in ROWS.items()}
    | {"power": power.TITLE, "otlp": otlp.TITLE}
    | {name: row.title for name, row in kafka_rows.ROWS.items()}
)

MAX_POWER_EVENTS: Final = 10_000
"""Of the row `power`, whose events are 15 KB each and stay in memory: of more kills it has more lives."""

SHOWN: Final = 10
"""Differences of a run that are printed."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--repetitions", default=1, show_default=True, type=click.IntRange(min=1), help="Runs of each row")
@click.option("--events", default=200_000, show_default=True, type=click.IntRange(min=1000), help="Events of a run")
@click.option("--kills", default=10, show_default=True, type=click.IntRange(min=1), help="Kills of a run")
@click.option("--seed", type=int, help="Seed of the first run of each row, the next ones count on; default: random")
@click.option(
    "--only",
    default="",
    help=f"Some rows, separated by commas: {', '.join(TITLES)}; default: no kafka-*",
)
@click.option("--results", type=click.Path(path_type=Path), help="Append a line of JSON for each run to this file")
def main(repetitions: int, events: int, kills: int, seed: int | None, only: str, results: Path | None) -> None:
    """Kill processes under load, then compare every user's every column, the quota and `verify` with the truth."""
    names = [name.strip() for name in only.split(",") if name.strip()] or [*ROWS, "power", "otlp"]
    if unknown := [name for name in names if name not in TITLES]:
        raise click.BadParameter(f"{', '.join(unknown)}; there are {', '.join(TITLES)}", param_hint="--only")
    first = seed if seed is not None else random.SystemRandom().randrange(10**6)
    console = Console()
    if not console.is_terminal:  # a file has room for whole lines
        console = Console(width=140)
    reports: list[Report] = []
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.fields[row]}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("chaos", total=len(names) * repetitions, row="", doing="")
        for number in range(repetitions):
            for name in names:
                bar.update(task, row=name, doing="")
                report = _run(name, first + number, events, kills, lambda doing: bar.update(task, doing=doing))
                reports.append(report)
                if results is not None:
                    report.append_to(results)
                _tell(console, report)
                bar.advance(task)
    _summarize(console, reports)
    sys.exit(not all(report.is_exact or report.skipped for report in reports))


def _run(name: str, seed: int, events: int, kills: int, say: Callable[[str], None]) -> Report:
    with tempfile.TemporaryDirectory(prefix="spendstream-chaos-") as directory:
        data_dir = Path(directory) / "data"
        try:
            if name in kafka_rows.ROWS:
                return asyncio.run(
                    kafka_rows.run_row(name, seed=seed, events=events, directory=Path(directory), say=say)
                )
            if name == "power":
                made = min(events, MAX_POWER_EVENTS)
                return asyncio.run(
                    power.run_power(seed=seed, events=made, lives=kills, directory=Path(directory), say=say)
                )
            if name == "otlp":
                return asyncio.run(otlp.run_otlp(seed=seed, kills=kills, directory=Path(directory), say=say))
            return asyncio.run(run_row(name, seed=seed, events=events, kills=kills, data_dir=data_dir, say=say))
        except CannotRun as error:
            return Report(name, seed, skipped=str(error))
        except Exception as error:  # noqa: BLE001 - one row that could not be run does not keep the others from it
            log = data_dir.with_name("data-serve.log")
            tail = log.read_text(errors="replace")[-3000:] if log.exists() else ""
            return Report(name, seed, events=events, differences=[f"{error!r}\n{tail}"])


def _tell(console: Console, report: Report) -> None:
    if report.skipped:
        console.print(f"{report.row}: SKIPPED: {report.skipped}", highlight=False)
        return
    console.print(
        f"{report.row}: {report.kills} kills, {report.acknowledged:,} of {report.events:,} events acknowledged, "
        f"{len(report.differences)} differences, {report.seconds:.0f} s, seed {report.seed}",
        highlight=False,
    )
    for line in report.differences[:SHOWN]:
        console.print(f"  {line}", markup=False, highlight=False)


def _summarize(console: Console, reports: Sequence[Report]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("row")
    table.add_column("what happens")
    for column in ("seed", "kills", "acknowledged", "sent again", "differences", "seconds"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for report in reports:
        table.add_row(
            report.row,
            TITLES[report.row],
            str(report.seed),
            str(report.kills),
            f"{report.acknowledged:,}",
            f"{report.retries:,}",
            str(len(report.differences)),
            f"{report.seconds:.0f}",
            "skipped" if report.skipped else "[green]exact[/]" if report.is_exact else "[red]DIFFERS[/]",
        )
    console.print(table)


if __name__ == "__main__":
    main()
