"""The repair of one segment whose files are missing or damaged: its rows are made anew from the messages of its range.

A segment is a function of the log and a range of offsets, so what replaces it has equal rows. It is made in pieces of
the size of fresh segments, between which the store cuts what has arrived, and the pieces are merged into one.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from processor.core.tables.dedupe import ClaimKeys
from processor.event_store.claimed_ids import ClaimedIds
from processor.event_store.fresh_messages import MAX_BYTES, FreshMessages
from processor.event_store.manifest import Segment, segment_id
from processor.event_store.segment_writer import SegmentWriter
from processor.event_store.store_directory import StoreDirectory
from processor.log.embedded.log import Log
from processor.log.port import LogWriter
from processor.log.records import Record, TopicPartition
from processor.log.topics import EVENTS
from processor.structured_log import get_logger

BATCH: Final = 200
"""Messages of one read."""


class RangeUnknown(Exception):
    """A message of the range is of a version that this program does not read; nothing may replace the segment."""


class _Read(NamedTuple):
    """A message of the log, as the store is delivered one."""

    partition: int
    record: Record

    @property
    def offset(self) -> int:
        return self.record.offset

    @property
    def key(self) -> bytes | None:
        return self.record.key

    @property
    def value(self) -> bytes | None:
        return self.record.value

    @property
    def is_damaged(self) -> bool:
        return self.record.is_damaged

    def ack(self) -> None:
        """Nothing waits for it."""


class Repair:
    """Makes one segment anew. `begin` and `step` are for the thread of the log; `finish` and `clean` for any."""

    def __init__(self, directory: StoreDirectory, writer: SegmentWriter, segment: Segment) -> None:
        self.segment = segment
        self._directory = directory
        self._writer = writer
        self._pieces: list[Segment] = []
        self._read: Callable[[int], Sequence[Record]] = lambda offset: ()
        self._position = segment.start
        self._fresh: FreshMessages | None = None
        self.lost = 0
        """Messages at the start of the range that the log has deleted."""

    def begin(self, log: LogWriter, claims_from: int) -> None:
        """Find out what the log still has. `claims_from` is that of the segment before it. Raises `LogError`."""
        segment = self.segment
        tp = TopicPartition(EVENTS, segment.partition)
        self._position = min(max(segment.start, log.first(tp)), segment.end)
        self.lost = self._position - segment.start
        if isinstance(log, Log):
            self._read = lambda offset: log.read(tp, offset, BATCH, keep_damaged=True)
        else:
            self._read = lambda offset: log.read(tp, offset, BATCH)
        claimed = ClaimedIds(log.read, segment.partition, claims_from, self._position, self._say)
        keys = ClaimKeys(log.salt)
        self._fresh = FreshMessages(
            segment.partition, 0, self._position, claimed, keys, self._writer, lambda *_: False
        )  # what is not read here is not in the log

    def _say(self, text: str) -> None:
        get_logger().error("store.claims_damaged", partition=self.segment.partition, text=text)

    def step(self, payload_before: int) -> bool:
        """Make the next piece; return whether there is more to do. Raises `LogError`, `OSError`, `RangeUnknown`."""
        fresh = self._fresh
        assert fresh is not None
        while fresh.bytes < MAX_BYTES and self._position < self.segment.end:
            records = self._read(self._position)
            if not records:
                self._position = self.segment.end
            for record in records:
                if record.offset < self.segment.end:
                    fresh.arrive(_Read(self.segment.partition, record))
                self._position = min(record.offset + 1, self.segment.end)
        found = fresh.cut(self.segment.end, payload_before)
        if found is not None:
            self._pieces.append(found.manifest.segment)  # to be deleted, whatever comes of the repair
        if fresh.is_stopped:
            raise RangeUnknown
        if found is None:
            return False
        piece = self._pieces[-1]
        fresh.advance(piece.end, piece.id)
        fresh.release()
        return True

    def finish(self, payload_before: int) -> Segment:
        """Return the segment that replaces the old one: all pieces in one. Raises `OSError`."""
        old, with_rows = self.segment, [piece for piece in self._pieces if piece.rows]
        made = Segment(
            id=segment_id(old.partition, old.start, old.end),
            partition=old.partition,
            start=old.start,
            end=old.end,
            level=old.level,
            claims_from=old.claims_from,
            is_absent=self.lost >= old.end - old.start,
        )
        if len(with_rows) != 1:
            return self._writer.merge(with_rows, made, payload_before) if with_rows else made
        return self._adopted(with_rows[0], made)

    def _adopted(self, piece: Segment, made: Segment) -> Segment:
        """Return the only piece as the whole segment: its files have its name, which is as good as another."""
        self._pieces.remove(piece)
        return replace(piece, start=made.start, end=made.end, level=made.level, claims_from=made.claims_from)

    def clean(self) -> None:
        """Delete the files of the pieces. Raises `OSError`."""
        while self._pieces:
            self._directory.remove(self._pieces.pop().id)
