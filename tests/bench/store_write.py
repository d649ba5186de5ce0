"""Row `store-write`: what the event store does with an event, from a message to the last level of its segments.

CPU of one process that does nothing else, in µs an event, and the bytes that are left on the disk. The traffic is
`Wide`, in requests of 100 events, as NDJSON and as protobuf. Fresh segments have what half a second brings; then they
are merged as the role `store` merges them: at 20,000 events a second every event is written three times, at 100,000
twice.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import numpy as np

from processor.core.events import codec, message
from processor.core.events.codec import PayloadFormat
from processor.core.events.message import build_blocks
from processor.core.events.ndjson import Lines
from processor.core.events.source import Source
from processor.event_store import fresh_messages
from processor.event_store.manifest import Segment, segment_id
from processor.event_store.merging import FAN_IN, LARGE, MAX_ROWS
from processor.event_store.parquet_writer import ParquetWriter
from tests.bench.context import Bench
from tests.bench.processing import REQUESTS
from tests.bench.programs import Failed
from tests.bench.results import CPU, RATE, Figures
from tests.support.events import to_proto
from tests.support.traffic import BATCH

FRESH: Final = 10_000
"""Events of a fresh segment: half a second of 20,000 a second."""
FULL: Final = fresh_messages.MAX_ROWS
"""Those of one of a store that has more to do than it can."""

P = ParamSpec("P")
T = TypeVar("T")


class _Steps:
    """CPU seconds of this process by step."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}

    def do(self, step: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a piece of work."""
        began = time.process_time()
        found = work(*args, **kwargs)
        self.took[step] = self.took.get(step, 0.0) + time.process_time() - began
        return found


def store_write(bench: Bench) -> Figures:
    """Both payload formats; the rate is that of NDJSON on one core."""
    found: Figures = {}
    for payload, values in _messages(bench):
        with bench.fresh() as directory:
            steps = _Steps()
            segment = _store(ParquetWriter(directory), values, steps, FRESH)
            if segment.rows != bench.wide.count:
                raise Failed(f"the store has {segment.rows} of {bench.wide.count} events")
            total = sum(steps.took.values())
            found |= {f"{CPU}{payload}": 1e6 * total / segment.rows}
            found |= {f"{payload}: {step}, µs": 1e6 * took / segment.rows for step, took in steps.took.items()}
            if payload == "json":
                with bench.fresh() as other:
                    full = _Steps()
                    _store(ParquetWriter(other), values, full, FULL)
                    found["json of full segments, µs"] = 1e6 * sum(full.took.values()) / segment.rows
                found[RATE] = segment.rows / total
                found |= _sizes(directory, segment)
    return found


def _messages(bench: Bench) -> Iterator[tuple[PayloadFormat, Sequence[bytes]]]:
    """The corpus in messages as the API process writes them, in both formats."""
    at = time.time_ns() // 1000
    requests = bench.wide.lines
    yield "json", _packed(Source("default", "default", "bench", at, "json", "partial"), map(_text, requests))
    events = ([to_proto(each.event).SerializeToString() for each in batch] for batch in bench.wide.batches())
    yield "protobuf", _packed(Source("default", "default", "bench", at, "protobuf", "partial"), events)


def _text(lines: Sequence[bytes]) -> Lines:
    return Lines(b"\n".join(lines), len(lines))


def _packed(source: Source, requests: Iterator[Sequence[bytes]]) -> list[bytes]:
    blocks = [
        build_blocks(source, codec.decode(source.payload, records, source.handling, source.arrival).columns, 1)[0]
        for records in requests
    ]
    return [message.encode(blocks[start : start + REQUESTS]) for start in range(0, len(blocks), REQUESTS)]


def _store(writer: ParquetWriter, values: Sequence[bytes], steps: _Steps, fresh: int) -> Segment:
    """Store messages, and merge their segments until there is one; return that. Small fresh ones are merged twice, the
    first time as soon as there are enough."""
    segments: list[list[Segment]] = [[], []]
    size = fresh // (BATCH * REQUESTS)
    is_small = fresh * FAN_IN * LARGE <= MAX_ROWS
    for start in range(0, len(values), size):
        parts = []
        for offset, value in enumerate(values[start : start + size], start=start):
            decoded = steps.do("decode", message.decode, value, packed_users=True)
            parts.append(steps.do("read", writer.table_of, decoded, 0, offset, np.ones(len(decoded), np.bool_)))
        segments[0].append(steps.do("write", writer.write, parts, _over(start, start + len(parts)), 0))
        if is_small and (len(segments[0]) == FAN_IN or start + size >= len(values)):
            segments[1].append(_merged(writer, segments[0], steps, 1))
            segments[0] = []
    return _merged(writer, segments[is_small], steps, 1 + is_small)


def _merged(writer: ParquetWriter, segments: Sequence[Segment], steps: _Steps, level: int) -> Segment:
    into = _over(segments[0].start, segments[-1].end, level)
    return steps.do(f"merge {level}", writer.merge, segments, into, 0)


def _over(start: int, end: int, level: int = 0) -> Segment:
    return Segment(id=segment_id(0, start, end), partition=0, start=start, end=end, level=level)


def _sizes(directory: Path, segment: Segment) -> Figures:
    rows, index = segment.parquet_bytes / segment.rows, segment.index_bytes / segment.rows
    on_disk = sum((directory / f"{segment.id}{suffix}").stat().st_size for suffix in (".parquet", ".idx"))
    return {"bytes/event": on_disk / segment.rows, "bytes/event of rows": rows, "bytes/event of the index": index}
