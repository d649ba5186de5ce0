"""Row `store-memory`: what the process of an event store that is far behind takes at most.

Nearly as many segments stand that were never merged as may, and it has more to cut. Its cuts go first until they are
too many, and then wait for one merge after the other. The segments that stand are of generated messages; there are
`DISTINCT`, and the others are links to their files.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
from msgspec.structs import replace

from processor.event_store.fresh_messages import MAX_ROWS
from processor.event_store.manifest import Manifest, Segment, segment_id
from processor.event_store.merging import WIDE_FAN_IN
from processor.event_store.parquet_writer import ParquetWriter
from processor.event_store.segments_topic import SegmentsTopic
from processor.event_store.store_directory import StoreDirectory
from processor.event_store.upkeep import MOST_UNMERGED
from processor.log.embedded.log import Log
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS, GROUP
from tests.bench import machine
from tests.bench.context import DATA, Bench
from tests.bench.generated_messages import EVENTS as IN_MESSAGE
from tests.bench.generated_messages import GeneratedMessages
from tests.bench.programs import Failed, Program, running
from tests.bench.results import Figures
from tools.make_segments import FOLDER

DISTINCT: Final = WIDE_FAN_IN
OF_SEGMENT: Final = MAX_ROWS // IN_MESSAGE
"""Messages of a segment."""
STANDING: Final = MOST_UNMERGED - 10
"""Segments that were never merged when it starts."""
BEHIND: Final = 2 * WIDE_FAN_IN
"""Segments that it has to cut: it comes to a merge that goes first twice."""
STEP: Final = 100_000
"""Microseconds between two messages."""
AFTERWARDS: Final = 10.0
"""Seconds for which it goes on merging when it has caught up."""
PATIENCE: Final = 300.0

_FROM: Final = TopicPartition(EVENTS, 0)


def store_memory(bench: Bench) -> Figures:
    """Worker and store one after the other: the claims of all events are in the log when the store starts."""
    with bench.fresh() as directory:
        data = directory / DATA
        environment = {"SPENDSTREAM_DATA_DIR": str(data), "SPENDSTREAM_LOG_LEVEL": "warning"}
        with closing(Log(data, partitions=1)) as log:
            bench.say("messages")
            messages = STANDING + BEHIND * OF_SEGMENT
            for values in _messages(messages):
                log.append([Append(_FROM, [(None, value) for value in values])], time.time_ns() // 1000)
            with running(["-m", "processor"], directory, environment) as worker:
                worker.line()
                _wait(lambda: (log.committed(GROUP, _FROM) or 0) >= messages, "the worker is not done")
            bench.say("segments")
            topic = SegmentsTopic(log, lambda: time.time_ns() // 1000)
            topic.read_on()
            topic.append(_standing(data / FOLDER, directory / "distinct", log.identity))
            bench.say("the store")
            with running(["-m", "processor.event_store"], directory, environment) as store:
                store.line()
                return _watched(store, topic, messages)


def _messages(count: int) -> Iterator[list[bytes]]:
    """Yield messages of the log, some at a time; the last one has just arrived."""
    made, began = GeneratedMessages(), time.time_ns() // 1000 - count * STEP
    for start in range(0, count, OF_SEGMENT):
        yield [made.encoded(each, began + each * STEP) for each in range(start, min(start + OF_SEGMENT, count))]


def _standing(directory: Path, made: Path, log: str) -> Iterator[Manifest]:
    """Make segments, each of one of the first messages by its offsets, and yield their manifests."""
    StoreDirectory(directory, 0).claim(log, is_shared=False, has_segments=False)
    distinct = _distinct(made)
    previous = None
    for number in range(STANDING):
        found = distinct[number % DISTINCT]
        segment = replace(found, id=segment_id(0, number, number + 1), start=number, end=number + 1)
        for suffix in (".parquet", ".idx"):
            os.link(made / f"{found.id}{suffix}", directory / f"{segment.id}{suffix}")
        yield Manifest(kind="fresh", segment=segment, previous=previous)
        previous = segment.id


def _distinct(directory: Path) -> list[Segment]:
    directory.mkdir()
    writer, made, began = ParquetWriter(directory), GeneratedMessages(seed=2), time.time_ns() // 1000
    found = []
    for start in range(0, DISTINCT * OF_SEGMENT, OF_SEGMENT):
        rows = []
        for offset in range(start, start + OF_SEGMENT):
            each = made.message(offset, began + offset * STEP)
            rows.append(writer.table_of(each, 0, offset, np.ones(len(each), np.bool_)))
        segment = Segment(id=segment_id(0, start, start + OF_SEGMENT), partition=0, start=start, end=start + OF_SEGMENT)
        found.append(replace(writer.write(rows, segment, 0), claims_from=0))
    return found


def _watched(store: Program, topic: SegmentsTopic, messages: int) -> Figures:
    """Wait until it has cut everything, and a while longer."""
    _wait(lambda: topic.read_on().reached.get(0, 0) >= messages, "the store is not done")
    time.sleep(AFTERWARDS)
    live = topic.read_on().live(0)
    merged = sum(1 for each in live if each.level)
    if merged < 2:
        raise Failed(f"{merged} segments were merged")
    most, now = machine.peak(store.pid), machine.resident(store.pid)
    sizes = {"RSS store at most, MiB": most, "RSS store afterwards, MiB": now}
    return {**{name: size for name, size in sizes.items() if size is not None}, "merged segments": merged}


def _wait(is_done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_done():
        if time.monotonic() > deadline:
            raise Failed(f"{otherwise} after {PATIENCE:.0f} s")
        time.sleep(0.2)
