"""What the events in the store add up to, in the form of the tables' rows of users: for whoever compares the two."""

import errno
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from processor.core.clock import DAY
from processor.core.events.fields import ERRORS
from processor.core.money import PICO
from processor.core.tables.row_sums import RowSums
from processor.event_store.manifest import Segment
from processor.event_store.segment_storage import SegmentStorage

Place = tuple[str, str | None, int, str, str, str]
"""project, user, day, provider, model, environment: what a row of a user is kept by."""

_KEYS: Final = ["project", "user_id", "day", "provider", "model", "environment"]
_COLUMNS: Final = [
    *(name for name in _KEYS if name != "day"),
    *("timestamp", "kind", "status", "input_tokens", "output_tokens", "cached_tokens", "cost_usd", "log_offset"),
]
_CHUNK: Final = 1 << 20


class DamagedSegment(Exception):
    """A file of a segment is not the one that was written; the text names it."""


def check(storage: SegmentStorage, segment: Segment, between: Callable[[], None] = lambda: None) -> None:
    """Compare the digests of a segment's files; call `between` after each mebibyte.

    Raises `DamagedSegment` if one is not what was written or cannot be read, and `OSError`.
    """
    if not segment.has_files:
        return
    for suffix, wanted in ((".parquet", segment.parquet_digest), (".idx", segment.index_digest)):
        name = f"{segment.id}{suffix}"
        try:
            found = _digest(storage, name, between)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise DamagedSegment(f"{name} cannot be read: {error}") from error
        if found != wanted:
            raise DamagedSegment(f"{name} is damaged: its digest does not match")


def _digest(storage: SegmentStorage, name: str, between: Callable[[], None]) -> str:
    found = xxhash.xxh3_128()
    with storage.get(name) as file:
        while part := file.read(_CHUNK):
            found.update(part)
            between()
    return found.hexdigest()


def add_up(directory: Path, segments: Iterable[Segment], start: int, end: int) -> dict[Place, RowSums]:
    """Return the sums of all calls in segments of one partition, of messages from `start` to before `end`.

    A row group is in memory at a time. Raises `OSError`, as `FileNotFoundError` for a segment that was replaced
    meanwhile, and `pyarrow.ArrowException` for a damaged one.
    """
    sums: dict[Place, RowSums] = {}
    for segment in segments:
        if not segment.has_files or segment.end <= start or segment.start >= end:
            continue
        with pq.ParquetFile(directory / f"{segment.id}.parquet") as file:
            for number in range(file.num_row_groups):
                _add(sums, file.read_row_group(number, columns=_COLUMNS), start, end)
    return sums


def _add(sums: dict[Place, RowSums], table: Any, start: int, end: int) -> None:
    offsets = table.column("log_offset")
    wanted = pc.and_(pc.greater_equal(offsets, start), pc.less(offsets, end))
    table = table.filter(pc.and_(wanted, pc.equal(table.column("kind"), "call")))
    times = table.column("timestamp").cast(pa.int64())
    days = pa.array(np.asarray(times) // DAY)
    errors = pc.is_in(table.column("status"), value_set=pa.array(sorted(ERRORS)))
    table = (
        table.append_column("day", days)
        .append_column("time", times)
        .append_column("errors", errors.cast(pa.int64()))
        .append_column("unpriced", pc.is_null(table.column("cost_usd")).cast(pa.int64()))
    )
    wanted_sums = ("errors", "input_tokens", "output_tokens", "cached_tokens", "cost_usd", "unpriced")
    found = table.group_by(_KEYS).aggregate(
        [("time", "count"), *((name, "sum") for name in wanted_sums), ("time", "min"), ("time", "max")]
    )
    for row in found.to_pylist():
        place: Place = tuple(row[name] for name in _KEYS)
        cost = row["cost_usd_sum"]
        more = RowSums(
            row["time_count"],
            row["errors_sum"],
            row["input_tokens_sum"] or 0,
            row["output_tokens_sum"] or 0,
            row["cached_tokens_sum"] or 0,
            0 if cost is None else int(cost * PICO),
            row["unpriced_sum"],
            row["time_min"],
            row["time_max"],
        )
        sums[place] = sums.get(place, RowSums()).merge(more)
