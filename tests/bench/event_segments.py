"""A data directory with an event store of any size, without its log: `python -m tests.bench.event_segments DIR`.

Segments are written by the product's own writer from messages of `Wide` traffic, which come again and again with other
ids and times: a month up to now. The log has the manifests, a key and no event; so no worker or store may run on it.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import numpy as np
from msgspec.structs import replace
from rich.progress import Progress

from processor.core.clock import DAY
from processor.core.events import codec, message, ndjson
from processor.core.events.source import Source
from processor.event_store import rows, segment_file
from processor.event_store.event_values import Values
from processor.event_store.manifest import Manifest, Segment, segment_id
from processor.event_store.rows import MessageRows
from processor.event_store.segments_topic import SegmentsTopic
from processor.event_store.store_directory import StoreDirectory
from processor.log.embedded.log import Log
from processor.wall_clock import now
from server.tenancy.first_key import ensure_key
from tests.support.events import to_json_line
from tests.support.server import KEY
from tests.support.traffic import BATCH, Wide, stream

MESSAGE: Final = 500
"""Events of a message."""
SEGMENT: Final = 1_000_000
PROJECT: Final = "default"
SPAN: Final = 30 * DAY
_FREE_BITS: Final = np.array([0xFF0FFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF3F], np.uint64)
"""Of the halves of an id: all but those that make it a UUID of version 4."""


def messages(events: int, seed: int = 1) -> list[bytes]:
    """The messages of so many different events, each by itself."""
    rng = random.Random(seed)
    made = stream(Wide(rng), rng, events, 0)
    found = []
    for _ in range(events // MESSAGE):
        blocks: list[message.Block] = []
        for _ in range(MESSAGE // BATCH):
            lines = [to_json_line(next(made).event) for _ in range(BATCH)]
            decoded = codec.decode("json", ndjson.split(b"\n".join(lines), BATCH)[0], "partial", 2**60)
            source = Source("default", PROJECT, "k", 0, "json", "partial")
            blocks += message.build_blocks(source, decoded.columns, 1).values()
        found.append(message.encode(blocks))
    return found


def base(events: int) -> list[MessageRows]:
    """The rows of some messages, all of their events kept."""
    found = []
    for value in messages(events):
        decoded = message.decode(value)
        found.append(rows.rows_of(decoded, 0, 0, np.ones(len(decoded), np.bool_)))
    return found


def again(part: MessageRows, number: int, at: int, step: int) -> MessageRows:
    """The same message as the one of offset `number`, its first event at `at` and each `step` µs after the other."""
    copied = part.rows.copy()
    mixed = np.random.default_rng(number).integers(0, 2**64, 2, np.uint64) & _FREE_BITS
    copied["id"] ^= mixed
    copied["at"] = at + step * np.arange(len(part))
    columns = dict(part.values.columns)
    for name in ("trace_id", "span_id", "session_id"):
        columns[name] = [text and f"{number:x}{text}" for text in columns[name]]
    return MessageRows(
        copied,
        part.users,
        part.dims,
        part.cost_sources,
        part.projects,
        part.homes,
        copied["at"] + 1_000_000,
        part.places,
        0,
        number,
        Values(columns, part.values.absent, part.values.free),
    )


def segments(directory: Path, events: int, until: int) -> Iterator[Segment]:
    """Write all segments; yield each when it is durable."""
    parts = base(min(events, 100_000))
    step = max(1, SPAN // events)
    number, written = 0, 0
    while written < events:
        start, chosen, count = number, [], 0
        while count < min(SEGMENT, events - written):
            part = parts[number % len(parts)]
            chosen.append(again(part, number, until - SPAN + (written + count) * step, step))
            number, count = number + 1, count + len(part)
        segment = Segment(id=segment_id(0, start, number), partition=0, start=start, end=number, level=2)
        tables = (rows.table_of(chosen[first : first + 100]) for first in range(0, len(chosen), 100))
        yield segment_file.write(directory, segment, tables, level=segment_file.MERGED_LEVEL)
        written += count


def make(data_dir: Path, events: int) -> None:
    """Make the data directory, with a bar."""
    data_dir.mkdir(parents=True)
    log = Log(data_dir, create=True)
    ensure_key(log, KEY, now(), make=False)
    directory = StoreDirectory(data_dir / "events")
    directory.claim(log.identity, is_shared=False, has_segments=False)
    topic = SegmentsTopic(log, now)
    with Progress() as progress:
        task = progress.add_task("events", total=events)
        previous = None
        for segment in segments(directory.path, events, now()):
            topic.append([Manifest(kind="fresh", segment=replace(segment), previous=previous)])
            previous = segment.id
            progress.advance(task, segment.rows)
    log.close()


@click.command()
@click.argument("data_dir", type=click.Path(path_type=Path))
@click.option("--events", type=int, default=1_000_000, show_default=True)
def main(data_dir: Path, events: int) -> None:
    """Make a data directory whose event store has so many events."""
    began = time.process_time()
    make(data_dir, events)
    used = (time.process_time() - began) / events * 1e6
    size = sum(path.stat().st_size for path in (data_dir / "events").iterdir()) / events
    click.echo(f"{events:,} events, {used:.1f} µs of CPU and {size:.0f} bytes each")


if __name__ == "__main__":
    main()
