"""Batches that have arrived at the same time, in groups that are decoded, written and answered as one.

A batch of one event costs a fraction of what it costs alone: most of that is not the event, but what is done for
a request. docs/decisions/0049.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from processor.core.events import codec
from processor.core.events.codec import Decoded
from processor.core.events.columns import Columns
from processor.core.events.message import Block, Sent, split_blocks
from processor.core.events.source import Request, Source
from processor.structured_log import structlog
from server.errors import Refused
from server.ingest.batch import Arrived, Batch, Receipt
from server.limits.memory_budget import Hold
from server.tenancy.keys import Key

log = structlog.get_logger(__name__)

TOGETHER: Final = 500
"""Events that are decoded together: for arrays of more numpy lets the interpreter's lock go in each of its calls."""


class BatchMember(NamedTuple):
    """A batch of a group."""

    arrived: Arrived
    place: int
    """Among all that have arrived."""
    hold: Hold
    """Its room among what waits for the disk."""


class BatchGroup:
    """Batches of one project, API, payload format and handling, of at most `TOGETHER` events, or a single one.

    By the project, so that no tenant's batches are decoded twice because of what another one has sent. Those of a key
    with a rate are of this key alone, since its requests are counted at once.
    """

    __slots__ = ("_valid", "batch", "counts", "events", "key", "members")

    def __init__(self, key: Key, batch: Batch) -> None:
        """`key` and `batch` are the first ones, for what all of them have in common."""
        self.key = key
        self.batch = batch
        self.members: list[BatchMember] = []
        self.counts: list[int] = []
        """Events of each that are counted: all, or the valid ones of `keep_valid`."""
        self.events = 0
        self._valid: Sequence[bytes] | None = None

    def add(self, member: BatchMember, count: int) -> None:
        """One more batch, with this many events."""
        self.members.append(member)
        self.counts.append(count)
        self.events += count

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return sum([member.hold.size for member in self.members])

    def decode(self, latest: int) -> Decoded | None:
        """The events of all. None: not every one is valid, so each batch is to be decoded by itself."""
        batch = self.batch
        if len(self.members) == 1:
            return codec.decode(batch.payload, batch.records, batch.handling, latest)
        records = [arrived.batch.records for arrived, _, _ in self.members]
        columns = codec.decode_together(batch.payload, records, batch.handling, latest)
        return None if columns is None else Decoded(columns, [])

    def each_alone(self, columns: Columns | None) -> Iterator[tuple["BatchGroup", Columns | None]]:
        """Each batch as a group, and its part of the columns of all, if there are any."""
        start = 0
        for member, count in zip(self.members, self.counts, strict=True):
            key, batch = member.arrived.key, member.arrived.batch
            alone = BatchGroup(key, batch)
            alone.add(member, count)
            yield alone, None if columns is None else columns.cut(start, batch.records)
            start += count

    def keep_valid(self, columns: Columns) -> None:
        """Of a batch by itself leave out the faulty events: these are the others."""
        self.counts, self._valid = [len(columns)], columns.records

    def blocks(
        self, columns: Columns, now: int, lease: str, partitions: int
    ) -> tuple[dict[int, Block], list[tuple[int, ...]]]:
        """All of them by partition, and the partitions of each; their columns."""
        sources: dict[str, Source] = {}
        sent: list[Sent] = []
        for (arrived, _, _), count in zip(self.members, self.counts, strict=True):
            key, batch = arrived.key, arrived.batch
            source = sources.get(key.id)
            if source is None:
                source = sources[key.id] = source_of(key, batch, now, lease)
            records, body = (batch.records, batch.body) if self._valid is None else (self._valid, None)
            sent.append(Sent(Request(source, count), records, body))
        return split_blocks(sent, columns, partitions)

    def answer(self, outcomes: Iterable[Receipt | Refused]) -> None:
        """End each batch with what became of it."""
        for (arrived, _, _), outcome in zip(self.members, outcomes, strict=True):
            try:
                arrived.done(outcome)
            except Exception:  # the others have to be answered
                log.exception("answer_failed")

    def close(self) -> None:
        """Give back the room of all."""
        for _, _, hold in self.members:
            hold.close()


def source_of(key: Key, batch: Batch, now: int, lease: str) -> Source:
    """Where a batch's events came from."""
    return Source(key.organization, key.project, key.id, now, batch.payload, batch.handling, lease, batch.api)


def grouped(batches: Sequence[Arrived], holds: Sequence[Hold | None]) -> list[BatchGroup]:
    """The batches that have room."""
    groups: list[BatchGroup] = []
    open_groups: dict[tuple[object, ...], BatchGroup] = {}
    for place, (arrived, hold) in enumerate(zip(batches, holds, strict=True)):
        if hold is None:
            continue
        key, batch = arrived.key, arrived.batch
        count, rated = len(batch.records), None if key.rate_limit is None else key.id
        kind = key.organization, key.project, batch.api, batch.payload, batch.handling, rated
        group = open_groups.get(kind)
        if group is None or group.events + count > TOGETHER:
            group = open_groups[kind] = BatchGroup(key, batch)
            groups.append(group)
        group.add(BatchMember(arrived, place, hold), count)
    return groups
