"""The segment files of a broker: their batches, and bits that flip in them."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tools.kafka import Broker

OVERHEAD: Final = 12
"""Bytes of a batch before what its length counts: base offset and length. (Kafka's message format, version 2.)"""

HEADER: Final = 61
"""Bytes of a batch before its records."""


class Batch(NamedTuple):
    """A batch of records in a segment file."""

    at: int
    """Where it begins in the file."""
    size: int
    offset: int
    """Of its first record."""
    is_control: bool
    """True: the end of a transaction."""


def segment(broker: Broker, topic: str, partition: int = 0) -> Path:
    """The oldest segment file of a partition; `topic` by its name on the cluster."""
    return min((broker.directory / "data" / f"{topic}-{partition}").glob("*.log"))


def batches(path: Path) -> Iterator[Batch]:
    """The batches of a segment file, in order."""
    data = path.read_bytes()
    at = 0
    while at + HEADER <= len(data):
        offset, length = struct.unpack_from(">qi", data, at)
        (attributes,) = struct.unpack_from(">h", data, at + 21)
        yield Batch(at, OVERHEAD + length, offset, bool(attributes & 0x20))
        at += OVERHEAD + length


def flip(path: Path, at: int, bit: int = 3) -> None:
    """Flip one bit of the byte at `at`; once more puts it right."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
