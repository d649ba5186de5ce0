"""Import: lines of NDJSON back into the log, for `spendstream import`. Knows no terminal and no file.

Events are appended to the events topic, with the project, organization, key and arrival they had; the worker
deduplicates them like any others.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Final

from msgspec import Struct

from processor.core.clock import HOUR, LAST
from processor.core.events import codec, export_line, message
from processor.core.events.columns import with_digests, with_prices
from processor.core.events.event import Code, Fault
from processor.core.events.export_line import META, Opened
from processor.core.events.message import Block, build_blocks
from processor.core.events.source import Source
from processor.log.port import LogWriter
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS
from server.tenancy.keys import is_name

MAX_EVENTS: Final = 500
"""Most events of one message."""

MAX_MESSAGE_BYTES: Final = 512 * 1024
"""Most bytes of the events of one message before compression."""

MAX_APPEND_BYTES: Final = 8 * 1024 * 1024
"""Bytes of events, approximately, that are appended together, with one fsync."""

CHUNK: Final = 1000
"""Lines decoded together."""

SKEW: Final = HOUR
"""Microseconds by which an arrival may be ahead of this clock: the latest arrival closes windows for all others."""

KEPT: Final = 1000
"""Bad lines whose faults are kept."""


class BadLine(Struct, frozen=True):
    """Why one line was not imported."""

    line: int
    """Counted from 1."""
    event_id: str | None
    field: str | None
    code: Code
    message: str


class ImportTally(Struct):
    """The result of an import."""

    accepted: int = 0
    rejected: int = 0
    bad: list[BadLine] = []
    """The first `KEPT` bad lines."""

    def refuse(self, line: int, fault: Fault) -> None:
        self.rejected += 1
        if len(self.bad) < KEPT:
            self.bad.append(BadLine(line, fault.event_id, fault.field, fault.code, fault.message))


class Importer:
    """Imports the lines of one file; with `log` None it only checks them."""

    def __init__(self, log: LogWriter | None, clock: Callable[[], int]) -> None:
        self._log = log
        self._clock = clock
        self._drafts = [_Draft() for _ in range(log.partitions if log is not None else 1)]
        self._full: list[tuple[int, _Draft]] = []
        self.tally = ImportTally()

    def run(self, lines: Iterable[bytes]) -> None:
        """Import all lines, given without line ends; skip blank ones. On return the valid ones are durable. Blocks.

        Raises `LogUnavailable`: then some of them are durable, and count once if the file is imported again.
        """
        numbered = ((number, line) for number, line in enumerate(lines, start=1) if line and not line.isspace())
        while chunk := list(islice(numbered, CHUNK)):
            self._take(chunk)
        for number in range(len(self._drafts)):
            self._close(number)
        self._append()

    def _take(self, chunk: Sequence[tuple[int, bytes]]) -> None:
        opened: list[tuple[int, Opened]] = []
        latest = self._clock() + SKEW
        for number, line in chunk:
            try:
                found = export_line.open_line(line)
                check_source(found.source, latest)
            except Fault as fault:
                self.tally.refuse(number, fault)
            else:
                opened.append((number, found))
        for (source, as_counted), group in groupby(opened, lambda each: (each[1].source, each[1].as_counted)):
            for part in _parts(list(group)):
                self._take_together(source, part, as_counted)

    def _take_together(self, source: Source, members: Sequence[tuple[int, Opened]], as_counted: bool) -> None:
        """Events that arrived together, in order. Whether their own time lay in the future was decided back then."""
        sent = [found.record for _, found in members]
        decoded = codec.decode(source.payload, sent, source.handling, LAST, as_counted=as_counted, rules=source.rules)
        faulty = {index for index, _ in decoded.faults}
        for index, fault in decoded.faults:
            self.tally.refuse(members[index][0], fault)
        if not decoded.columns:
            return
        self.tally.accepted += len(decoded.columns)
        taken = [found for index, (_, found) in enumerate(members) if index not in faulty]
        prices = {place: found.price for place, found in enumerate(taken) if found.price is not None}
        columns = with_prices(decoded.columns, prices) if prices else decoded.columns
        digests = {place: found.digest for place, found in enumerate(taken) if found.digest is not None}
        columns = with_digests(columns, digests) if digests else columns
        for partition, block in build_blocks(source, columns, len(self._drafts)).items():
            if not self._drafts[partition].has_room(block):
                self._close(partition)
            self._drafts[partition].add(block)
        if sum(draft.size for _, draft in self._full) >= MAX_APPEND_BYTES:
            self._append()

    def _close(self, partition: int) -> None:
        draft = self._drafts[partition]
        if draft.blocks:
            self._full.append((partition, draft))
            self._drafts[partition] = _Draft()

    def _append(self) -> None:
        full, self._full = self._full, []
        if self._log is None or not full:
            return
        by_partition: dict[int, list[tuple[bytes | None, bytes | None]]] = {}
        for partition, draft in full:
            by_partition.setdefault(partition, []).append((None, message.encode(draft.blocks)))
        appends = [Append(TopicPartition(EVENTS, partition), found) for partition, found in by_partition.items()]
        self._log.append(appends, self._clock())


def _parts(members: Sequence[tuple[int, Opened]]) -> Iterator[Sequence[tuple[int, Opened]]]:
    """Cut (line, event) pairs into parts that fit into a message each."""
    start = size = 0
    for position, (_, found) in enumerate(members):
        if position > start and (position - start >= MAX_EVENTS or size + len(found.record) > MAX_MESSAGE_BYTES):
            yield members[start:position]
            start, size = position, 0
        size += len(found.record)
    yield members[start:]


class _Draft:
    """A message under construction."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.events = 0
        self.size = 0

    def has_room(self, block: Block) -> bool:
        return self.events + len(block) <= MAX_EVENTS and self.size + block.size <= MAX_MESSAGE_BYTES

    def add(self, block: Block) -> None:
        self.blocks.append(block)
        self.events += len(block)
        self.size += block.size


def check_source(source: Source, latest: int) -> None:
    """Raise `Fault` for a source that intake would not have written; `latest` is the latest allowed arrival."""
    for field, name in (("project", source.project), ("organization", source.organization)):
        if not is_name(name):
            raise Fault(
                "invalid",
                f"{META}.{field}",
                f"{META}.{field} must be a name of 1 to 64 letters, digits, dots and dashes",
            )
    if not is_name(source.key_id):
        raise Fault("invalid", f"{META}.key_id", f"{META}.key_id must be the id of a key")
    if source.arrival > latest:
        raise Fault("out_of_range", f"{META}.arrival", f"{META}.arrival must not lie in the future")
