"""The files of a stopped broker: what a topic loses when the machine's memory was lost before it was on the disk.

A partition is a directory of segments, files of record batches (Kafka's protocol guide, "Record Batch"), the newest of
which grows. Beside each are indexes, which a broker makes anew where they are missing.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tools.kafka import Broker

_HEAD: Final = struct.Struct(">qiibIhi")
"""Base offset, length of the rest, leader epoch, magic, checksum, attributes, last offset delta."""
_BEFORE_LENGTH: Final = 12
_CONTROL: Final = 0x20


class Batch(NamedTuple):
    """A batch of records in a file."""

    position: int
    first: int
    """Its first offset."""
    end: int
    """The offset behind its last one."""
    is_marker: bool
    """Whether it ends a transaction."""


def batches(path: Path) -> Iterator[Batch]:
    """The batches of a segment, in order."""
    data = path.read_bytes()
    position = 0
    while position + _HEAD.size <= len(data):
        first, length, _, _, _, attributes, delta = _HEAD.unpack_from(data, position)
        if length <= 0:  # preallocated
            return
        yield Batch(position, first, first + delta + 1, bool(attributes & _CONTROL))
        position += _BEFORE_LENGTH + length


def cut_off(broker: Broker, topic: str, partition: int, offset: int) -> int:
    """Take away the end of a partition: all batches from the one with `offset` on. Returns where it ends now.

    The broker must not run, and must have been killed: it reads the end of each file at its next start then.
    """
    assert not broker.is_running
    directory = broker.directory / "data" / f"{topic}-{partition}"
    (broker.directory / "data" / ".kafka_cleanshutdown").unlink(missing_ok=True)
    end = 0
    for path in sorted(directory.glob("*.log")):
        keep = True
        for batch in batches(path):
            if batch.end > offset:
                with path.open("r+b") as file:
                    file.truncate(batch.position)
                keep = batch.position > 0 or int(path.stem) == 0
                break
            end = batch.end
        if not keep:
            path.unlink()
    for pattern in ("*.index", "*.timeindex", "*.txnindex", "*.snapshot"):
        for path in directory.glob(pattern):
            path.unlink()
    return end


def flushes(broker: Broker, topic: str, partition: int) -> list[int]:
    """Where the transactions of a partition end: the offsets behind their markers."""
    directory = broker.directory / "data" / f"{topic}-{partition}"
    return [batch.end for path in sorted(directory.glob("*.log")) for batch in batches(path) if batch.is_marker]
