"""Recompute a partition's tables from its events and compare them with the changelog, row by row."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from processor.core import message, tables
from processor.core.pipeline import Tables
from processor.log.letters import dead_offsets
from processor.log.store import Log, TopicPartition
from processor.log.topics import EVENTS, ROWS
from processor.state.index import IdIndex
from processor.state.loader import records


class Difference(NamedTuple):
    """One row that is not what the events say; None: there is no such row."""

    partition: int
    key: str
    table: list[int] | None
    log: list[int] | None


def verify(log: Log, number: int, scratch: Path, progress: Callable[[int, int], None]) -> list[Difference]:
    """Compare one partition as of one instant, beside a running system; `progress(done, total)` counts messages.

    `scratch` is an empty directory for the ids. Blocks for as long as reading all events takes.
    """
    kept = Tables(number, log.salt, IdIndex(scratch / "unused", log.identity))
    with log.snapshot():
        for record in records(log, TopicPartition(ROWS, number), 0):
            kept.restore(record.key or b"", record.value, record.offset)
    again = Tables(number, log.salt, IdIndex(scratch / "ids", log.identity))
    last = kept.progress.offset
    dead = dead_offsets(log, number)
    tp = TopicPartition(EVENTS, number)
    for record in records(log, tp, log.first(tp), limit=100):
        if record.offset > last:
            break
        if record.offset in dead:
            again.skip(record.offset)
        else:
            decoded = message.decode(record.value or b"")
            again.apply(record.offset, decoded, again.prepare(decoded))
        progress(record.offset + 1, last + 1)
    return list(_differences(number, kept, again))


def _differences(number: int, kept: Tables, again: Tables) -> Iterator[Difference]:
    watermark = again.progress.watermark
    left, right = _rows(kept, watermark), _rows(again, watermark)
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            yield Difference(number, key.decode(), left.get(key), right.get(key))


def _rows(found: Tables, watermark: int) -> dict[bytes, list[int]]:
    rows: dict[bytes, list[int]] = {}
    kinds: tuple[dict[Any, Any], ...] = (found.users, found.hours)
    for kind in kinds:
        rows.update((row.key, row.value()) for row in kind.values())
    for (_, _, window, start), counts in found.windows.items():
        if not tables.is_expired(window, start, watermark):
            rows[counts.key] = counts.value()
    rows[found.progress.key] = found.progress.value()
    return rows
