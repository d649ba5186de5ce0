"""Export: the events of the log as lines of NDJSON, for `spendstream export`. Knows no terminal and no file."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Literal

from msgspec import Struct

from processor.core.clock import HOUR
from processor.core.events import export_line, message
from processor.core.events.message import Message, MessageError
from processor.core.events.source import Request
from processor.core.tables.history import is_padding
from processor.log.dead_letters import dead_offsets
from processor.log.port import LogReader, scan
from processor.log.records import Record, TopicPartition
from processor.log.topics import EVENTS

By = Literal["arrival", "event-time"]

BATCH: Final = 50
"""Messages read at a time."""

SKEW: Final = HOUR
"""Microseconds by which the clocks of API processes may differ, when messages before the range are skipped."""


class Selection(Struct, frozen=True):
    """Which events to export; times in microseconds, `start` inclusive, `end` exclusive, None: no bound."""

    start: int | None = None
    end: int | None = None
    by: By = "arrival"
    project: str | None = None

    def covers(self, at: int) -> bool:
        """Return True for an instant within the range."""
        return (self.start is None or at >= self.start) and (self.end is None or at < self.end)

    def wants(self, request: Request) -> bool:
        """False if no event of the request can be one of the selection."""
        if self.project is not None and request.source.project != self.project:
            return False
        return self.by == "event-time" or self.covers(request.source.arrival)


class ExportTally(Struct):
    """The result of an export."""

    events: int = 0
    dead: int = 0
    """Messages that are dead letters: no table contains them, so they are left out."""
    unreadable: int = 0
    """Messages that cannot be read and are not dead letters: the export lacks them."""
    first_at: int | None = None
    """When the oldest message that the log still has was written; microseconds since the epoch."""


class Exporter:
    """One export: all copies of all events in the order of the log, partition by partition.

    What arrives after the export has begun is left out. `progress(done, total)` counts offsets over all partitions.
    """

    def __init__(self, log: LogReader, selection: Selection, progress: Callable[[int, int], None]) -> None:
        self._log = log
        self._selection = selection
        self._progress = progress
        self.tally = ExportTally()

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, without line ends. Blocks while it reads."""
        log = self._log
        ranges = {tp: (log.first(tp), log.end(tp)) for tp in (TopicPartition(EVENTS, n) for n in range(log.partitions))}
        total = sum(end - first for first, end in ranges.values())
        before = 0
        for tp, (first, end) in ranges.items():
            dead = dead_offsets(log, tp.partition)
            for record in scan(log, tp, first, end, BATCH):
                if self.tally.first_at is None or record.at < self.tally.first_at:
                    self.tally.first_at = record.at
                if record.offset in dead:
                    self.tally.dead += 1
                elif is_padding(record.value):
                    pass
                elif not self._is_before(record):
                    yield from self._record(tp.partition, record)
                self._progress(before + record.offset + 1 - first, total)
            before += end - first

    def _is_before(self, record: Record) -> bool:
        """Return True if the message was written before the range began: its events arrived before that."""
        start = self._selection.start
        return self._selection.by == "arrival" and start is not None and record.at + SKEW < start

    def _record(self, partition: int, record: Record) -> Iterator[bytes]:
        try:
            decoded = message.decode(record.value or b"")
            if any(map(self._selection.wants, decoded.requests)):
                yield from self._message(decoded)
        except MessageError:
            if record.offset in dead_offsets(self._log, partition):  # it became a dead letter a moment ago
                self.tally.dead += 1
            else:
                self.tally.unreadable += 1

    def _message(self, decoded: Message) -> Iterator[bytes]:
        parts = zip(message.events(decoded), decoded.by_request(), strict=True)
        for number, ((request, events), (_, rows)) in enumerate(parts):
            if not self._selection.wants(request):
                continue
            # Of a span the digest is made before it becomes an event: the event alone does not say it.
            digests = rows["digest"].tolist() if request.source.api == "otlp" else [None] * len(events)
            for position, (event, digest) in enumerate(zip(events, digests, strict=True)):
                if self._selection.by == "event-time" and not self._selection.covers(event.timestamp):
                    continue
                self.tally.events += 1
                record = partial(_raw, decoded, number, position)
                yield export_line.encode_line(request.source, event, record, digest)


def _raw(decoded: Message, request: int, position: int) -> bytes:
    return message.records(decoded)[request][position]
