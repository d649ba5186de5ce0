"""Faults that are no kills: a disk that fills up, a clock that jumps, messages that no version can process."""

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from processor.core.events import message
from processor.core.events.codec import decode
from processor.core.events.message import build_blocks
from processor.core.events.source import Source
from processor.log.port import LogWriter
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS
from tests.chaos import wal
from tests.support.events import make_event, to_json_line


class CannotRun(Exception):
    """A row that this machine does not allow; the text says why."""


# --- the disk --------------------------------------------------------------------------------------------------------

FILLER: Final = "filler"


@contextmanager
def small_disk(directory: Path, mib: int) -> Iterator[None]:
    """A file system of `mib` MiB at `directory`, for the length of the block. Raises `CannotRun`.

    A process of its own takes it away: it is told by the end of its input, so also where this process is killed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        raise CannotRun("mounting a small file system takes root")
    command = [mount, "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotRun(f"mounting is not allowed here: {done.stderr.strip()}")
    command = ["sh", "-c", 'cat >/dev/null; umount --lazy "$0"', str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield


def fill(directory: Path, leave: int = 0) -> int:
    """Take all room of the file system that `directory` is on but `leave` bytes; returns how many bytes it took."""
    written = 0
    with (directory / FILLER).open("ab", buffering=0) as file:
        if leave:
            found = os.statvfs(directory)
            wanted = max(found.f_bavail * found.f_frsize - leave, 0)
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), wanted)
            return wanted
        for size in (1 << 20, 4096):  # down to the last page
            with contextlib.suppress(OSError):
                while True:
                    written += file.write(b"\0" * size)
    return written


def free(directory: Path) -> None:
    """Give the room back."""
    (directory / FILLER).unlink(missing_ok=True)


# --- the file --------------------------------------------------------------------------------------------------------


def tear_file(directory: Path, rng: random.Random) -> str:
    """Tear the end of a SQLite file that nobody has open, as a crash in the midst of a checkpoint does; in words.

    A checkpoint copies pages of the write-ahead log into the file and only then, after an fsync, lets the log go: so
    what such a crash leaves torn are pages that the log still has, and the file may end in the midst of one.
    """
    path = directory / "log.db"
    pages = wal.pages(directory / "log.db-wal")
    if not pages:
        return "no page of the file was being written"
    size = wal.page_size(directory / "log.db-wal")
    torn = rng.sample(sorted(pages), min(len(pages), 8))
    with path.open("r+b") as file:
        for page in torn:
            file.seek((page - 1) * size)
            file.write(rng.randbytes(rng.randrange(1, size)))
        length = path.stat().st_size
        last = -(-length // size)
        if last in pages and last > 1:
            file.truncate((last - 1) * size + rng.randrange(1, size))
    return f"{len(torn)} pages of the file torn" + (", the last one cut" if last in pages else "")


# --- messages --------------------------------------------------------------------------------------------------------


def poison(kind: str, partition: int, partitions: int) -> Append:
    """A message for `partition` that cannot be decoded (`junk`), or whose processing raises (`raises`)."""
    to = TopicPartition(EVENTS, partition)
    if kind == "junk":
        return Append(to, [(None, b"\xc1 this is no message")])
    while True:
        columns = decode("json", [to_json_line(make_event()) for _ in range(3)], "partial", now()).columns
        # An arrival that no calendar has: fine for whoever decodes it, too much for whoever counts it.
        source = Source("poison", "poison", "poison", 2**62, "json", "partial")
        parts = build_blocks(source, columns, partitions)
        if partition in parts:
            return Append(to, [(None, message.encode([parts[partition]]))])


def put(log: LogWriter, append: Append) -> None:
    """Append it as an API process would."""
    log.append([append], now())


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


# --- the clock -------------------------------------------------------------------------------------------------------

HOUR: Final = 3600
DAY: Final = 86_400


def days_within_a_month(days: int) -> float:
    """Seconds by which to begin early, so that `days` days later it is not another month: 0, or so many days."""
    return -float(days * DAY) if datetime.now(UTC).day > days else 0.0


# --- what must come of it --------------------------------------------------------------------------------------------


def letters_missing(found: Sequence[Any], kinds: Sequence[str]) -> list[str]:
    """How the list of dead letters differs from one that has every poisonous message once."""
    reasons = ["raises" if "while it was applied" in letter["reason"] else "junk" for letter in found]
    if sorted(reasons) == sorted(kinds):
        return []
    return [f"dead letters: {sorted(reasons)}, not {sorted(kinds)}"]
