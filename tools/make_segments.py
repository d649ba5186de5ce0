"""Makes an event store of many generated events: `python -m tools.make_segments DATA_DIR --events 100000000`.

For measurements of questions. Segments and their indexes are written by the product's own writer from generated
messages, and merged as the role `store` merges them; only the manifests of the last level are written. The data
directory gets a log without messages, so start only what reads: `spendstream api`, with its query process. Events that
are sent to this log are in no segment.

One partition. The work is cut into stretches of messages, each of which becomes one segment of the last level; several
are made at a time. A run that was interrupted goes on behind the last manifest.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import click
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from processor.core.clock import DAY, SECOND
from processor.event_store import merging
from processor.event_store.manifest import Manifest, Segment, segment_id
from processor.event_store.parquet_writer import ParquetWriter
from processor.event_store.segments_topic import SegmentsTopic
from processor.event_store.store_directory import StoreDirectory
from processor.log.embedded.log import Log
from server.cli.progress import Show, progress_bar
from server.tenancy.first_key import ensure_key
from tests.bench.generated_messages import EVENTS, GeneratedMessages

FRESH: Final = 20
"""Messages of a fresh segment: 10,000 events."""
STRETCH: Final = merging.MAX_ROWS // EVENTS
"""Messages of a segment of the last level."""
FOLDER: Final = "events"
DAYS: Final = 30


class Plan(Struct, frozen=True):
    """What is made; the same for every process that makes it."""

    directory: Path
    messages: int
    began: int
    """The first arrival, microseconds."""
    step: int
    """Microseconds between two messages."""
    seed: int
    projects: tuple[str, ...] = ("default",)
    fresh: int = FRESH
    stretch: int = STRETCH

    def arrival(self, number: int) -> int:
        """Return when a message arrives."""
        return self.began + number * self.step

    def stretches(self, start: int) -> Iterator[tuple[int, int]]:
        """Yield the first message of each segment that is to be made from `start` on, and the one behind the last."""
        for first in range(start, self.messages, self.stretch):
            yield first, min(first + self.stretch, self.messages)


def make(plan: Plan, start: int, end: int) -> Segment:
    """Write one segment of the last level, with everything that it is merged from, which is deleted again."""
    writer, messages = ParquetWriter(plan.directory), _messages(plan.seed, plan.projects)
    live: list[Segment] = []
    for first in range(start, end, plan.fresh):
        last = min(first + plan.fresh, end)
        tables = []
        for offset in range(first, last):
            found = messages.message(offset, plan.arrival(offset))
            tables.append(writer.table_of(found, 0, offset, np.ones(len(found), np.bool_)))
        live.append(writer.write(tables, _over(first, last), 0))
        while chosen := merging.choose(live):
            at = live.index(chosen[0])
            live[at : at + len(chosen)] = [_merged(writer, plan.directory, list(chosen))]
    return live[0] if len(live) == 1 else _merged(writer, plan.directory, live)


@lru_cache(1)
def _messages(seed: int, projects: tuple[str, ...]) -> GeneratedMessages:
    return GeneratedMessages(seed, projects)


def _over(start: int, end: int, level: int = 0) -> Segment:
    return Segment(id=segment_id(0, start, end), partition=0, start=start, end=end, level=level)


def _merged(writer: ParquetWriter, directory: Path, parts: list[Segment]) -> Segment:
    level = max(part.level for part in parts) + 1
    found = writer.merge(parts, _over(parts[0].start, parts[-1].end, level), 0)
    files = StoreDirectory(directory, 0)
    for part in parts:
        files.remove(part.id)
    return found


def run(plan: Plan, log: Log, jobs: int, show: Show) -> None:
    """Make what is missing, and append each manifest when its segment and all before it are there."""
    topic = SegmentsTopic(log, lambda: time.time_ns() // 1000)
    catalog = topic.read_on()
    live = catalog.live(0)
    reached, previous = catalog.reached.get(0, 0), live[-1].id if live else None
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        made: list[Future[Segment]] = [pool.submit(make, plan, *each) for each in plan.stretches(reached)]
        for future in made:
            segment = replace(future.result(), claims_from=0)
            topic.append([Manifest(kind="fresh", segment=segment, previous=previous)])
            previous = segment.id
            show(segment.end * EVENTS, plan.messages * EVENTS)


def make_store(
    data_dir: Path,
    events: int,
    days: int = DAYS,
    end: datetime | None = None,
    projects: tuple[str, ...] = ("default",),
    jobs: int = 1,
    seed: int = 1,
    key: str | None = None,
) -> int:
    """Make a store of so many events, rounded up, of the days before `end`; return how many they are.

    `key`: a key of the first project, with which the API answers.
    """
    messages = -(-events // EVENTS)
    last = time.time_ns() // 1000 if end is None else int(end.replace(tzinfo=UTC).timestamp()) * SECOND
    step = days * DAY // messages
    directory = StoreDirectory(data_dir / FOLDER, 0)
    with closing(Log(data_dir, partitions=1)) as log:
        ensure_key(log, key, last, make=False)
        directory.claim(log.identity, is_shared=False, has_segments=False)
        plan = Plan(directory.path, messages, last - messages * step, step, seed, projects)
        with progress_bar("make_segments") as bar:
            run(plan, log, jobs, bar("events"))
    return messages * EVENTS


@click.command()
@click.argument("data_dir", type=click.Path(path_type=Path))
@click.option("--events", default=10_000_000, show_default=True, type=click.IntRange(EVENTS), help="Rounded up.")
@click.option("--days", default=DAYS, show_default=True, type=click.IntRange(1), help="Days over which they arrive.")
@click.option(
    "--end", type=click.DateTime(), help="When the last one arrives, UTC; default: now. A run that goes on needs it."
)
@click.option("--project", "projects", multiple=True, default=["default"], help="Of whom they are; may be repeated.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option("--seed", default=1, show_default=True, help="Of the events.")
@click.option("--key", help="A key to ask the API with.")
def main(
    data_dir: Path,
    events: int,
    days: int,
    end: datetime | None,
    projects: tuple[str, ...],
    jobs: int,
    seed: int,
    key: str | None,
) -> None:
    """Make an event store in DATA_DIR, for measurements of questions."""
    began = time.monotonic()
    made = make_store(data_dir, events, days, end, projects, jobs, seed, key)
    size = sum(path.stat().st_size for path in (data_dir / FOLDER).iterdir()) / made
    click.echo(f"{made:,} events in {data_dir}, {size:.1f} bytes each, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
