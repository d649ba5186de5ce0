"""Read a log in which records may be damaged: those are reported, and all others are read."""

from collections.abc import Callable, Iterator
from typing import Final

from processor.log.errors import DamagedRecord
from processor.log.port import LogReader
from processor.log.records import Record, TopicPartition

BATCH: Final = 5000

OnDamage = Callable[[DamagedRecord], None]
"""Called with the error of every damaged record that a scan skips."""


def scan_sound(
    log: LogReader, tp: TopicPartition, on_damage: OnDamage, start: int = 0, end: int | None = None, limit: int = BATCH
) -> Iterator[Record]:
    """Yield the records of a partition like `port.scan`, but call `on_damage` for each damaged one and skip it."""
    position, at_once = start, limit
    while end is None or position < end:
        try:
            found = log.read(tp, position, at_once)
        except DamagedRecord as error:
            if at_once == 1:
                on_damage(error)
                position = max(position, error.offset) + 1
            at_once = 1  # a failed read returns nothing: read the records before the damaged one singly
            continue
        if not found:
            return
        at_once = min(limit, 2 * at_once)
        for record in found:
            if end is not None and record.offset >= end:
                return
            yield record
        position = found[-1].offset + 1
