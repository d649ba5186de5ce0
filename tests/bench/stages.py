"""Row `stages`: µs an event of each function on the path, alone, in one process. Together they are the floor."""

import statistics
import time
from collections.abc import Callable
from typing import Final, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from processor.core.events import codec, message, ndjson
from processor.core.events.columns import Columns
from processor.core.events.message import build_blocks
from processor.core.events.source import Source
from processor.core.partitioning import U64, Places
from processor.core.tables import dedupe
from processor.core.tables.apply import Changes, Tables
from processor.core.tables.dedupe import resolve
from processor.core.tables.row_block import seed_of
from processor.ids.index import IdIndex
from processor.log.embedded.log import Log
from processor.log.embedded.tail import BATCH as FOLLOWER_BATCH
from processor.log.port import scan
from processor.log.records import Append, TopicPartition
from processor.log.topics import CLAIMS, EVENTS, ROWS
from processor.view.view import View
from server.ingest import protobuf
from server.ingest.inflate import inflate
from server.limits.cardinality import Cardinality
from tests.bench.context import Bench
from tests.bench.corpus import read_bodies
from tests.bench.processing import REQUESTS
from tests.bench.results import Figures
from tests.support.traffic import BATCH

FLUSH: Final = 20
"""Messages of 500 events between two flushes: 100 ms at 100,000 events/s."""
TOGETHER: Final = 8
"""Of those, messages that are applied together: `applier.MAX_WAITING` events."""
ROWS_OF_0: Final = TopicPartition(ROWS, 0)
AT: Final = 1_776_686_400_000_000
"""2026-04-20T12:00:00Z"""
SOURCE: Final = Source("default", "default", "bench", AT, "json", "partial")

P = ParamSpec("P")
T = TypeVar("T")


class Watch(Protocol):
    """Looks on while a piece of work is done."""

    def time(self, stage: str, events: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a piece of work of so many events."""
        ...


class Stopwatch:
    """Wall-clock µs an event of every stage: the median over the pieces of work it was given."""

    def __init__(self) -> None:
        self._took: dict[str, list[float]] = {}

    def time(self, stage: str, events: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a piece of work of so many events."""
        began = time.perf_counter()
        result = work(*args, **kwargs)
        self._took.setdefault(stage, []).append(1e6 * (time.perf_counter() - began) / events)
        return result

    def figures(self) -> Figures:
        return {stage: statistics.median(took) for stage, took in self._took.items()}


class AllFresh:
    """A `ClaimIndex` that costs nothing: what remains of `apply` is the rows."""

    def claim(self, keys: U64, digests: U64, offset: int | Places) -> tuple[NDArray[np.int64], U64]:
        return np.array(np.broadcast_to(offset, len(keys))), digests


def stages(bench: Bench) -> Figures:
    """Over all events of the corpus, with rows, ids and files as large as they make them."""
    watch = Stopwatch()
    run(bench, watch)
    return watch.figures()


def run(bench: Bench, watch: Watch) -> None:
    """Do all stages of all events, each before the eyes of `watch`."""
    _worker(bench, watch, _front_end(bench, watch))


def _front_end(bench: Bench, watch: Watch) -> list[bytes]:
    """From request bodies to messages."""
    parts = []
    bounds = Cardinality(View())
    for body in read_bodies(bench.corpus.bodies("json")):
        text = watch.time("http: inflate gzip", BATCH, inflate, body, "gzip")
        records, _ = watch.time("http: split lines", BATCH, ndjson.split, text, BATCH)
        decoded = watch.time("http: decode", BATCH, codec.decode, "json", records, "partial", AT)
        watch.time("both: bounds of a project", BATCH, _bound, bounds, decoded.columns)
        parts.append(watch.time("both: build_blocks", BATCH, build_blocks, SOURCE, decoded.columns, 1)[0])
    for raw in read_bodies(bench.corpus.bodies("protobuf")):
        request = watch.time("grpc: split events", BATCH, protobuf.parse, raw, BATCH)
        watch.time("grpc: decode", BATCH, codec.decode, "protobuf", request.events, "partial", AT)
    values = []
    for start in range(0, len(parts), REQUESTS):
        chosen = parts[start : start + REQUESTS]
        values.append(watch.time("both: message encode", BATCH * len(chosen), message.encode, chosen))
    return values


def _bound(bounds: Cardinality, columns: Columns) -> None:
    """What intake asks of each batch."""
    bounds.beyond("default", columns)
    bounds.admit("default", columns)


def _worker(bench: Bench, watch: Watch, values: list[bytes]) -> None:
    """From messages to rows in a view, and the appends on the way."""
    with bench.fresh() as directory:
        log = Log(directory, partitions=1)
        index = IdIndex(directory / "index", log.identity)
        tables, view = Tables(0, log.salt, AllFresh()), View(seed_of(log.salt))
        for start in range(0, len(values), FLUSH):
            events = 0
            for first in range(start, min(start + FLUSH, len(values)), TOGETHER):
                events += _apply(watch, log, index, tables, values[first : first + TOGETHER], first)
            changes = watch.time("worker: drain a flush", events, tables.drain_changes, packs=True)
            assert changes is not None
            appends = watch.time("worker: encode the claims of a flush", events, _appends, changes)
            first, _ = watch.time("worker: append of a flush, fsync", events, log.append, appends, AT)
            written = range(first, first + len(appends[0].records))
            watch.time("worker: note what was written", events, changes.wrote, written)
            rows = watch.time("view: read of a flush", events, _read, log, first)
            watch.time("view: apply", events, view.apply, 0, rows)
            log.checkpoint()
        index.close()
        log.close()


def _apply(watch: Watch, log: Log, index: IdIndex, tables: Tables, values: list[bytes], first: int) -> int:
    """Some messages, the offset of the first of which is given; returns how many events they have."""
    batch = []
    for offset, value in enumerate(values, start=first):
        decoded = message.decode(value)
        append = Append(TopicPartition(EVENTS, 0), [(None, value)])
        watch.time("both: append of a message, fsync", len(decoded), log.append, [append], AT)
        watch.time("worker: message decode", len(decoded), message.decode, value)
        batch.append((offset, decoded, tables.prepare(decoded)))
    events = sum(len(decoded) for _, decoded, _ in batch)
    offsets = np.repeat([offset for offset, _, _ in batch], [len(decoded) for _, decoded, _ in batch])
    keys = np.concatenate([found for _, _, found in batch])
    digests = np.concatenate([decoded.rows["digest"] for _, decoded, _ in batch])
    watch.time("worker: claim", events, resolve, index, keys, digests, offsets)
    watch.time("worker: apply", events, tables.apply_all, batch)
    return events


def _read(log: Log, position: int) -> list[tuple[bytes, bytes | None]]:
    """What the follower does to get at a flush."""
    return [(record.key or b"", record.value) for record in scan(log, ROWS_OF_0, position, limit=FOLLOWER_BATCH)]


def _appends(changes: Changes) -> list[Append]:
    record = (None, dedupe.encode_claims(changes.claimed))
    return [Append(ROWS_OF_0, changes.records), Append(TopicPartition(CLAIMS, 0), [record])]
