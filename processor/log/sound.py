"""Reading a log of which some records may be damaged: those are named, and all others are read."""

from collections.abc import Callable, Iterator
from typing import Final

from processor.log.errors import DamagedRecord
from processor.log.port import LogReader
from processor.log.records import Record, TopicPartition

BATCH: Final = 5000

OnDamage = Callable[[DamagedRecord], None]
"""Is given every damaged record that a scan passes over."""


def scan_sound(
    log: LogReader, tp: TopicPartition, on_damage: OnDamage, start: int = 0, end: int | None = None, limit: int = BATCH
) -> Iterator[Record]:
    """All records of a partition from `start` on, up to `end` (exclusive; None: all), `limit` at a time, but for those
    that are damaged: each of them is given to `on_damage`. See `port.scan`."""
    position, at_once = start, limit
    while end is None or position < end:
        try:
            found = log.read(tp, position, at_once)
        except DamagedRecord as error:
            if at_once == 1:
                on_damage(error)
                position = max(position, error.offset) + 1
            at_once = 1  # a read that fails gives nothing: what lies before the damaged record comes by itself
            continue
        if not found:
            return
        at_once = min(limit, 2 * at_once)
        for record in found:
            if end is not None and record.offset >= end:
                return
            yield record
        position = found[-1].offset + 1
