"""Reading a long changelog back: the newest record of each key is enough, as after compaction."""

from collections.abc import Iterable
from typing import Final

from processor.log.store import Record

FOLD: Final = 1_000_000
"""Keys kept at a time, about 400 bytes each."""


def keep_newest(kept: dict[bytes, Record], records: Iterable[Record]) -> None:
    """Take in the next records of one partition; what is kept stays in the order of the log."""
    pop = kept.pop
    for record in records:
        key = record.key or b""
        pop(key, None)
        kept[key] = record
