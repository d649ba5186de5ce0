"""How often messages were skipped on their way to a store, over its restarts: see `MessagesSkipped`."""

import contextlib
import re
from typing import Final

import msgspec
from msgspec import Struct

from processor.event_store.segment_storage import SegmentStorage

_FILE: Final = "skips-{:04d}.json"
"""Beside the segments, one a partition."""
_IS_FILE: Final = re.compile(r"skips-\d{4,}\.json").fullmatch


class _Skips(Struct, frozen=True):
    times: int = 0


def count(storage: SegmentStorage, partition: int) -> None:
    """Count one time more for a partition. Blocks. A disk that does not take the number changes nothing else."""
    name = _FILE.format(partition)
    with contextlib.suppress(OSError):
        put = storage.put([name])
        try:
            put.files[0].write(msgspec.json.encode(_Skips(_read(storage, name) + 1)))
            put.commit()
        finally:
            put.discard()


def counted(storage: SegmentStorage) -> int:
    """Return how often in all partitions. Blocks; raises `OSError`."""
    return sum(_read(storage, each.name) for each in storage.list() if _IS_FILE(each.name))


def _read(storage: SegmentStorage, name: str) -> int:
    try:
        with storage.get(name) as file:
            return msgspec.json.decode(file.read(), type=_Skips).times
    except (FileNotFoundError, msgspec.MsgspecError):
        return 0
