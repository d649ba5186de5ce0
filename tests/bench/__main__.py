"""`make bench`: measure speed, print it with its conditions. Every figure in docs/performance.md comes from here."""

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tests.bench import (
    baseline,
    end_to_end,
    event_reads,
    event_reads_beside,
    first_page,
    growth,
    hostile,
    hostile_reader,
    ids,
    intake,
    kafka,
    latency,
    machine,
    memory,
    otlp,
    otlp_collector,
    overload,
    page_views,
    peer,
    processing,
    results,
    stages,
    store_lag,
    store_memory,
    store_write,
)
from tests.bench.context import Bench
from tests.bench.corpus import Corpus
from tests.bench.programs import Failed, Skipped
from tests.bench.results import RATE, Figures, Row

ROWS: Final[dict[str, tuple[str, Callable[[Bench], Figures]]]] = {
    "baseline": ("textbook Faust application", baseline.baseline),
    "postgres": ("FastAPI and PostgreSQL", peer.postgres),
    "postgres-wide": ("FastAPI and PostgreSQL, wide traffic", peer.postgres_wide),
    "http-intake": ("HTTP intake, one core", intake.http),
    "grpc-intake": ("gRPC intake, one core", intake.grpc),
    "small": ("HTTP intake, requests of one event and of ten", intake.small),
    "otlp": ("spans over OTLP, end to end of the API, one core", otlp.otlp),
    "otlp-collector": ("spans over OTLP, one core, beside the OpenTelemetry Collector", otlp_collector.otlp_collector),
    "processor": ("processor, one core", processing.processor),
    "e2e-http": ("end to end over HTTP", end_to_end.over_http),
    "e2e-http-by-two": ("end to end over HTTP, two API processes", end_to_end.over_http_by_two),
    "e2e-http-wide": ("end to end over HTTP, wide traffic", end_to_end.wide_over_http),
    "e2e-event-store": ("end to end over HTTP, wide traffic, event store on", end_to_end.with_event_store),
    "e2e-grpc": ("end to end over gRPC", end_to_end.over_grpc),
    "kafka": ("end to end over HTTP, on Kafka", kafka.kafka),
    "kafka-one": ("end to end over HTTP, on Kafka, one partition", kafka.kafka_one),
    "idle": ("one event, idle server", latency.idle),
    "half-load": ("latency at half load over HTTP", latency.half_load),
    "overload": ("twice the load that it sustains", overload.overload),
    "first-page": ("first page of a million users", first_page.first_page),
    "memory": ("memory of rows", memory.memory),
    "growth": ("an hour, 100 million events", growth.growth),
    "hostile": ("a tenant beside a hostile one", hostile.hostile),
    "hostile-reader": ("tenants beside 64 heavy questions of another", hostile_reader.hostile_reader),
    "event-reads": ("questions about events", event_reads.event_reads),
    "page-views": ("views of the page on a million events", page_views.page_views),
    "event-reads-beside": (
        "the same questions of plain DuckDB and of SQLite with indexes",
        event_reads_beside.event_reads_beside,
    ),
    "ids": ("the id index", ids.ids),
    "store-write": ("event store: from messages to merged segments", store_write.store_write),
    "store-lag": ("ingest at saturation with the event store on, and its lag", store_lag.store_lag),
    "store-memory": ("memory of an event store that is far behind", store_memory.store_memory),
    "stages": ("stages, wall-clock µs an event", stages.stages),
}
LONG: Final = frozenset({"growth"})
"""Rows that take an hour: measured only if they are named, and once."""
BASELINES: Final = {"baseline": "textbook", "postgres": "PostgreSQL"}
"""The rows that others are compared with."""


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(ROWS)), help="Measure this row only; may be repeated.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="Runs of each row.")
@click.option("--events", default=200_000, show_default=True, type=click.IntRange(1000), help="Events of each run.")
@click.option("--overload-seconds", default=60.0, show_default=True, help="How long the row overload lasts.")
@click.option(
    "--ids", "id_count", default=100_000_000, show_default=True, type=click.IntRange(500_000), help="Ids of row `ids`."
)
@click.option("--event-store", type=click.Path(path_type=Path), help="Made by tools.make_segments.")
@click.option("--question-seconds", default=60.0, show_default=True, help="When row event-reads gives a question up.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every run's figures to this file.")
@click.option("--dir", "parent", type=click.Path(path_type=Path, exists=True), help="Where the logs lie meanwhile.")
def main(
    only: tuple[str, ...],
    runs: int,
    events: int,
    overload_seconds: float,
    id_count: int,
    event_store: Path | None,
    question_seconds: float,
    json_file: Path | None,
    parent: Path | None,
) -> None:
    """Measure spendstream on this machine. Exit code 1 if a row failed, for one because its tables were not exact."""
    signal.signal(signal.SIGTERM, _interrupt)
    console, progress_console = Console(width=None if sys.stdout.isatty() else 160), Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="spendstream-bench-", dir=parent) as directory:
        conditions = machine.conditions(Path(directory))
        with progress_console.status(f"making {events:,} events"):
            bench = Bench(Path(directory), Corpus(Path(directory), events), ids=id_count)
        bench.overload_seconds, bench.event_store = overload_seconds, event_store
        bench.question_seconds = question_seconds
        conditions["traffic"] = (
            f"{bench.corpus.count:,} events a run, {bench.corpus.truth.unique:,} unique, "
            f"{len(bench.corpus.truth.users):,} users x 8 models; {runs} runs"
        )
        chosen = [name for name in ROWS if name in only or (not only and name not in LONG)]
        with Progress(*_columns(), console=progress_console) as progress:
            _measure(bench, chosen, runs, progress)
    conditions["load after"] = "{:.2f} {:.2f} {:.2f}".format(*os.getloadavg())
    rows = list(bench.rows.values())
    rates = {title: bench.rows[name].median(RATE) for name, title in BASELINES.items() if name in bench.rows}
    results.show(console, conditions, rows, {title: rate for title, rate in rates.items() if rate})
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode({"conditions": conditions, "rows": rows})))
    sys.exit(any(row.failure for row in rows))


def _measure(bench: Bench, chosen: list[str], runs: int, progress: Progress) -> None:
    task = progress.add_task("", total=len(chosen) * runs)
    for name in chosen:
        title, measure = ROWS[name]
        row = bench.rows[name] = Row(name, title)
        for number in range(1 if name in LONG else runs):
            rate = row.median(RATE)
            so_far = f", so far {rate:,.0f} events/s" if rate else ""
            doing = f"{title}, run {number + 1}{so_far}"
            bench.say = partial(_say, progress, task, doing)
            progress.update(task, description=doing)
            gc.collect()
            try:
                row.runs.append(measure(bench))
            except Skipped as reason:
                row.note = str(reason)
                progress.advance(task, runs - number)
                break
            except Failed as failure:
                row.failure = str(failure)
                progress.advance(task, runs - number)
                break
            progress.advance(task)
    progress.update(task, description="done")


def _say(progress: Progress, task: TaskID, doing: str, what: str) -> None:
    progress.update(task, description=f"{doing}: {what}")
    if not progress.console.is_terminal:  # where only the last description is shown
        progress.console.print(f"{doing}: {what}")


def _columns() -> tuple[Any, ...]:
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
