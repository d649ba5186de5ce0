"""Recompute a partition's tables from its events and compare them with the changelog, row by row.

Works beside a running system: the tables are taken as of the end of one flush, and the events up to the offset that
this flush contained. Where retention has deleted events, the checkpoint that it has sealed before stands for them.
In memory are one partition's rows, twice; its ids are in files.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from processor.core import claims, message, rowblock, tables
from processor.core.history import is_padding
from processor.core.horizon import Horizon
from processor.core.message import MessageError
from processor.core.pipeline import Tables
from processor.core.tables import Progress, Row
from processor.log.letters import dead_offsets
from processor.log.port import LogReader, scan
from processor.log.store import TopicPartition
from processor.log.topics import CHECKPOINTS, CLAIMS, EVENTS, ROWS
from processor.state.index import IdIndex

BATCH: Final = 5000
MESSAGES: Final = 100
"""Event messages read at a time."""

FORGET: Final = 500
"""Messages after which the list of changed rows and ids, which nobody will write, is thrown away."""

ATTEMPTS: Final = 3
"""How often to begin anew when retention deletes what is being read."""

PATIENCE: Final = 3.0
"""Seconds to wait for the rest of a flush of which only a part is in the changelog."""

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "sums": (
        "offset",
        "requests",
        "errors",
        "input_tokens",
        "output_tokens",
        "cached_tokens",
        "cost_picodollars",
        "unpriced",
        "first_seen",
        "last_seen",
    ),
    "window": ("offset", "unique", "duplicates", "conflicts"),
    "progress": ("offset", "watermark"),
    "horizon": ("windows", "leases", "earlier"),
}
"""What the numbers of a row are called."""


class VerifyError(Exception):
    """The tables cannot be recomputed; the text says why."""


class Difference(NamedTuple):
    """One row that is not what the events say; None: there is no such row."""

    partition: int
    key: str
    """The row's key in the changelog, JSON."""
    table: list[int] | None
    log: list[int] | None

    @property
    def parts(self) -> list[Any]:
        """The row's key, taken apart: kind, then what the row is kept by; empty for what is no key of ours."""
        try:
            _, kind, parts = tables.decode_key(self.key.encode())
        except ValueError:
            return []
        return [kind, *parts]

    def columns(self) -> dict[str, tuple[int | None, int | None]]:
        """What differs: name -> (in the table, by the log)."""
        kind = self.parts[0] if self.parts else None
        if kind == "latency":
            return _histogram_columns(self.table, self.log)
        names = COLUMNS[kind] if kind in COLUMNS else COLUMNS["sums"]
        pairs = [(_at(self.table, position), _at(self.log, position)) for position in range(len(names))]
        return {name: pair for name, pair in zip(names, pairs, strict=True) if pair[0] != pair[1]}


def _histogram_columns(table: list[int] | None, log: list[int] | None) -> dict[str, tuple[int | None, int | None]]:
    ours, theirs = ({"offset": row[0], **_buckets(row)} if row else {} for row in (table, log))
    return {
        name: (ours.get(name), theirs.get(name)) for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)
    }


def _buckets(row: list[int]) -> dict[str, int]:
    return {f"bucket_{bucket}": count for bucket, count in zip(row[1::2], row[2::2], strict=False)}


def _at(numbers: list[int] | None, position: int) -> int | None:
    return numbers[position] if numbers is not None and position < len(numbers) else None


class Verification:
    """The verification of one partition; `progress(done, total)` counts offsets of messages.

    `scratch` is an empty directory for the ids. `run` blocks for as long as reading all events takes.
    """

    def __init__(self, log: LogReader, number: int, scratch: Path, progress: Callable[[int, int], None]) -> None:
        self._log = log
        self._number = number
        self._scratch = scratch
        self._progress = progress
        self.messages = 0
        """Messages that were applied again."""
        self.offset = tables.NEVER
        """The last source offset that the tables compared contain."""
        self.settled = True
        """False if the changelog ends in the middle of a flush, and stayed so: rows may be ahead of the others."""

    def run(self) -> Iterator[Difference]:
        """All differences, in no order. Raises `VerifyError`."""
        tp = TopicPartition(EVENTS, self._number)
        for attempt in range(ATTEMPTS):
            first = self._log.first(tp)
            again = self._base(attempt)
            start = again.progress.offset + 1
            if first > start:
                raise VerifyError(
                    f"the events of partition {self._number} before {first} are gone, and no checkpoint stands for "
                    f"those from {start} on: the tables cannot be recomputed"
                )
            kept = self._kept()
            key = tables.encode_key(self._number, "horizon")
            horizon, numbers = self._horizon(key, kept), (_numbers(kept.pop(key, None)) or [])[:3]
            again.close_by(horizon)
            self._recompute(again, start)
            if self._log.first(tp) <= start:  # retention took nothing away meanwhile
                said, largest = (horizon.windows, horizon.leases, horizon.earlier), again.progress.watermark
                if max(said) > largest:
                    yield Difference(self._number, key.decode(), numbers, [min(each, largest) for each in said])
                yield from self._differences(kept, again, horizon)
                return
        raise VerifyError(f"retention keeps deleting events of partition {self._number} while they are read; try again")

    def _base(self, attempt: int) -> Tables:
        """The tables where the events begin: empty, or as of the checkpoint that stands for deleted ones."""
        log, number = self._log, self._number
        index = IdIndex(self._scratch / f"ids-{attempt}", log.identity)
        base = Tables(number, log.salt, index)
        if CHECKPOINTS in log.topics():
            for record in scan(log, TopicPartition(CHECKPOINTS, number)):
                base.restore(record.key or b"", record.value, record.offset)
        if base.progress.offset != tables.NEVER:
            for record in scan(log, TopicPartition(CLAIMS, number), limit=MESSAGES):
                for claimed in claims.decode(record.value or b""):
                    if claimed.offset <= base.progress.offset:
                        keys = np.frombuffer(claimed.keys, "<u8").reshape(-1, 2)
                        index.claim(keys, np.frombuffer(claimed.digests, "<u8"), claimed.offset)
        return base

    def _kept(self) -> dict[bytes, bytes]:
        """The tables as the changelog has them at the end of its newest flush.

        Reading on until there is nothing more finds the newest record of every row, whatever compaction removes
        meanwhile; the progress, always the last record of a flush, tells that it is whole.
        """
        tp = TopicPartition(ROWS, self._number)
        progress = tables.encode_key(self._number, "progress")
        rows: dict[bytes, bytes] = {}
        position = 0
        whole = True
        deadline = time.monotonic() + PATIENCE
        while True:
            found = self._log.read(tp, position, BATCH)
            for record in found:
                for key, value in rowblock.expand(self._number, record.key or b"", record.value):
                    if value is None:
                        rows.pop(key, None)
                    else:
                        rows[key] = value
                    whole = key == progress
            if found:
                position = found[-1].offset + 1
                deadline = time.monotonic() + PATIENCE
            elif whole or time.monotonic() > deadline:
                break
            else:
                time.sleep(0.02)
        self.settled = whole
        if progress in rows:
            self.offset = tables.decode_value(rows[progress])[0]
        return rows

    def _horizon(self, key: bytes, kept: dict[bytes, bytes]) -> Horizon:
        """What windows were closed by at most: it is not of the log, but may be no later than the largest arrival.

        One that was open at the end was open at every message, so that all of its events are in its row.
        """
        value, progress = kept.get(key), kept.get(tables.encode_key(self._number, "progress"))
        try:
            if value is not None:
                return Horizon(key, tables.decode_value(value))
        except ValueError as error:
            raise VerifyError(f"the horizon of partition {self._number} cannot be read: {error}") from None
        return Horizon(key) if progress is None else Horizon.of_earlier(key, tables.decode_value(progress)[1])

    def _recompute(self, again: Tables, start: int) -> None:
        """Apply the events from `start` on that the compared tables contain."""
        dead = dead_offsets(self._log, self._number)
        self.messages = 0
        for record in scan(self._log, TopicPartition(EVENTS, self._number), start, self.offset + 1, MESSAGES):
            if record.offset in dead or is_padding(record.value):
                again.skip(record.offset)
            else:
                self._apply(again, record.offset, record.value)
            self.messages += 1
            if self.messages % FORGET == 0:
                again.take_changes()
            self._progress(record.offset + 1 - start, self.offset + 1 - start)

    def _apply(self, again: Tables, offset: int, value: bytes | None) -> None:
        where = f"message {offset} of partition {self._number}, which is no dead letter,"
        try:
            decoded = message.decode(value or b"")
            again.apply(offset, decoded, again.prepare(decoded))
        except MessageError as error:
            raise VerifyError(f"{where} cannot be read: {error}") from None
        except Exception as error:
            raise VerifyError(f"{where} cannot be applied: {error!r}") from error

    def _differences(self, kept: dict[bytes, bytes], again: Tables, horizon: Horizon) -> Iterator[Difference]:
        number = self._number
        for row in _rows(again, horizon):
            value = kept.pop(row.key, None)
            numbers = _numbers(value)
            if isinstance(row, Progress) and numbers is not None:
                numbers = numbers[:2]  # the others are about the log, not about the events
            if value != tables.encode_value(row) and numbers != row.value():
                yield Difference(number, row.key.decode(), numbers, row.value())
        for key, value in kept.items():
            if not _is_closed(key, horizon):
                yield Difference(number, key.decode(errors="replace"), _numbers(value), None)


def verify(log: LogReader, number: int, scratch: Path, progress: Callable[[int, int], None]) -> list[Difference]:
    """All differences of one partition, see `Verification`."""
    return list(Verification(log, number, scratch, progress).run())


def _rows(found: Tables, horizon: Horizon) -> Iterator[Row]:
    """The rows that must be there: all but the windows that are closed and may or may not have been removed yet."""
    for _, row in found.users.rows():
        yield row
    kinds: tuple[dict[Any, Any], ...] = (found.hours, found.latencies)
    for kind in kinds:
        yield from kind.values()
    for (_, _, window, start), counts in found.windows.items():
        if not horizon.may_lack(window, start):
            yield counts
    if found.progress.offset != tables.NEVER:
        yield found.progress


def _is_closed(key: bytes, horizon: Horizon) -> bool:
    try:
        _, kind, parts = tables.decode_key(key)
        return kind == "window" and horizon.may_lack(parts[2], parts[3])
    except (ValueError, IndexError, TypeError):
        return False  # not one of our keys at all


def _numbers(value: bytes | None) -> list[int] | None:
    try:
        return None if value is None else tables.decode_value(value)
    except ValueError:
        return []  # it is there, and says nothing
