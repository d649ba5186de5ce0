"""Tears the tail of a SQLite write-ahead log the way a crash does: only what no commit has finished.

The format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log. What a commit returned for is on disk (fsync),
so a crash can leave anything behind the last commit frame and nothing else before it.
"""

import random
import struct
from pathlib import Path
from typing import Final, NamedTuple

HEADER: Final = 32
FRAME: Final = 24

_MASK: Final = 0xFFFFFFFF


class Wal(NamedTuple):
    """What is needed to write one more frame."""

    little_endian: bool
    """Of the checksums' words."""
    page_size: int
    salts: bytes
    end: int
    """Offset behind the last commit frame."""
    checksum: tuple[int, int]
    """Of everything up to there."""


def tear(path: Path, rng: random.Random) -> str:
    """Leave a torn tail in the log of a database that nobody has open; returns what was done, in words."""
    wal = read(path)
    if wal is None:
        path.write_bytes(rng.randbytes(rng.randrange(1, 5000)))
        return "garbage instead of an empty log"
    length = path.stat().st_size
    kind = rng.choice(("garbage", "half", "unfinished", "cut"))
    if kind == "cut" and length > wal.end:
        to = rng.randrange(wal.end, length)
        with path.open("r+b") as file:
            file.truncate(to)
        return f"cut {length - to} bytes of an unfinished transaction"
    if kind == "garbage":
        tail = rng.randbytes(rng.randrange(1, 3 * (FRAME + wal.page_size)))
    else:
        whole = rng.randrange(1, 3) if kind == "unfinished" else 0
        tail = _frames(wal, whole + 1, rng)
        tail = tail[: len(tail) - rng.randrange(1, FRAME + wal.page_size)]
    with path.open("r+b") as file:
        file.seek(wal.end)
        file.write(tail)
        file.truncate()
    return f"{kind}: {len(tail)} bytes behind the last commit"


def read(path: Path) -> Wal | None:
    """Where a log ends; None if there is none, or no frame in it."""
    data = path.read_bytes() if path.exists() else b""
    if len(data) < HEADER:
        return None
    magic, _, page_size = struct.unpack_from(">III", data)
    salts = data[16:24]
    end, checksum = HEADER, struct.unpack_from(">II", data, 24)
    size = FRAME + page_size
    for start in range(HEADER, len(data) - size + 1, size):
        if data[start + 8 : start + 16] != salts:
            break  # left over from before the log was begun anew
        if data[start + 4 : start + 8] != b"\0\0\0\0":  # the size of the database: a commit
            end, checksum = start + size, struct.unpack_from(">II", data, start + 16)
    return Wal(not magic & 1, page_size, salts, end, checksum)


def pages(path: Path) -> set[int]:
    """The numbers, from 1, of the pages in it that a commit has made part of the database."""
    wal = read(path)
    if wal is None:
        return set()
    data = path.read_bytes()[: wal.end]
    starts = range(HEADER, len(data), FRAME + wal.page_size)
    return {int.from_bytes(data[start : start + 4]) for start in starts}


def page_size(path: Path) -> int:
    """Bytes of a page of the database, by its write-ahead log."""
    return int.from_bytes(path.read_bytes()[8:12])


def _frames(wal: Wal, count: int, rng: random.Random) -> bytes:
    """Sound frames of a transaction that never commits, full of nonsense."""
    checksum = wal.checksum
    found = b""
    for _ in range(count):
        head = struct.pack(">II", rng.randrange(1, 5), 0)
        page = rng.randbytes(wal.page_size)
        checksum = add_checksum(checksum, head + page, little_endian=wal.little_endian)
        found += head + wal.salts + struct.pack(">II", *checksum) + page
    return found


def add_checksum(before: tuple[int, int], data: bytes, *, little_endian: bool) -> tuple[int, int]:
    """The running checksum after `data`, which has a multiple of 8 bytes."""
    first, second = before
    words = struct.unpack(f"{'<' if little_endian else '>'}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _MASK
        second = (second + odd + first) & _MASK
    return first, second
