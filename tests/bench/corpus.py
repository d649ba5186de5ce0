"""The traffic of every row, as request bodies in files that loaders read, and what the tables must say of it.

Made before any clock starts, from a seed: the same events on every machine and for every row.
"""

import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from processor.core.events.codec import PayloadFormat
from protos.spendstream.v1 import ingest_pb2 as pb
from tests.support.events import to_json_line, to_proto
from tests.support.traffic import BATCH, Plain, Streamed, Wide, stream
from tests.support.truth import GroundTruth

GZIP_LEVEL: Final = 6


class Corpus:
    """The events of one run of `python -m tests.bench`."""

    def __init__(self, directory: Path, count: int, profile: type[Plain | Wide] = Plain, seed: int = 1) -> None:
        """`count` is rounded up to whole requests."""
        self._directory = directory
        self._profile = profile
        self._seed = seed
        self.count = -(-count // BATCH) * BATCH
        self.truth = GroundTruth(has_details=False)
        self.lines: list[list[bytes]] = []
        """The events' JSON, by request."""
        for batch in self.batches():
            self.truth.count(made.fact for made in batch if not made.is_copy)
            self.lines.append([to_json_line(made.event) for made in batch])

    def batches(self) -> Iterator[list[Streamed]]:
        """The events by the request; made anew each time, for so many of them would fill the memory."""
        rng = random.Random(self._seed)
        events = stream(self._profile(rng), rng, self.count)
        for _ in range(self.count // BATCH):
            yield [next(events) for _ in range(BATCH)]

    def bodies(self, payload: PayloadFormat, limit: int | None = None) -> Path:
        """A file with the bodies of the first `limit` requests (None: all): gzip over HTTP, serialised over gRPC."""
        path = self._directory / f"{self._profile.__name__}-{payload}-{limit or 'all'}.bodies"
        if not path.exists():
            if payload == "json":
                write_bodies(path, [b"\n".join(lines) for lines in self.lines[:limit]])
            else:
                made = [
                    pb.IngestRequest(sequence=number, events=[to_proto(each.event) for each in batch])
                    for number, batch in zip(range(1, 1 + (limit or len(self.lines))), self.batches(), strict=False)
                ]
                path.write_bytes(msgspec.msgpack.encode([request.SerializeToString() for request in made]))
        return path


def gzip(body: bytes) -> bytes:
    """As a client's library does it."""
    packer = zlib.compressobj(GZIP_LEVEL, wbits=31)
    return packer.compress(body) + packer.flush()


def write_bodies(path: Path, texts: list[bytes]) -> None:
    """A file of bodies for a loader over HTTP."""
    path.write_bytes(msgspec.msgpack.encode([gzip(text) for text in texts]))


def read_bodies(path: Path) -> list[bytes]:
    """What is in a file of bodies."""
    return msgspec.msgpack.decode(path.read_bytes(), type=list[bytes])
