"""The messages of one partition that have arrived and are in no segment yet, and the segments made of them.

Offsets have gaps where the log itself has none of the messages between (retention, Kafka's transaction markers). What
the log has must not be passed over: a segment says that everything in its range is in it, and nobody looks again.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from processor.core.events import message
from processor.core.events.message import Message, MessageError, UnknownVersion
from processor.core.tables.dedupe import ClaimKeys
from processor.event_store.claimed_ids import ClaimedIds
from processor.event_store.manifest import Kind, Manifest, Segment, segment_id
from processor.event_store.segment_writer import SegmentWriter
from processor.log.records import Delivered
from processor.structured_log import get_logger

MAX_ROWS: Final = 50_000
"""Rows of a fresh segment, those of one message more or less."""

MAX_BYTES: Final = 16 << 20
"""Bytes of the messages of one."""

MAX_UNPACKED: Final = 32 << 20
"""Bytes of their events, which may be many times that: a message is compressed. A message that alone has more is a
segment of its own. 50,000 usual events have 26 MiB. Writing takes twice as much."""


STALLED: Final = 60
"""Cuts in a row, half a second apart, that find nothing to store though the worker has committed more."""

HasMessages = Callable[[int, int, int], bool]
"""(partition, first offset, offset after the last): whether the log has a message there. Raises `LogError`."""


class MessagesSkipped(Exception):
    """Messages that the log has did not arrive, and nothing after them may be stored in this life of the process."""

    def __init__(self, partition: int, first: int, last: int) -> None:
        """`last`: the last message that may have been skipped; the log has at least one of them."""
        super().__init__(
            f"messages {partition}:{first} to {last} were skipped on their way to the event store, though the log has "
            "them. The store starts again and fetches them: nothing is lost. Where this comes again and again, switch "
            "to another release and report it with this log"
        )
        self.partition = partition
        self.first = first
        self.last = last


class Cut(NamedTuple):
    """A manifest that may be appended: its files are durable."""

    manifest: Manifest
    is_full: bool
    """Whether there is more to cut at once."""


class FreshMessages:
    """What has arrived of one partition. `arrive` and `release` are for the event loop, the rest for the thread of the
    cuts; both may run at the same time."""

    def __init__(
        self,
        number: int,
        generation: int,
        reached: int,
        claimed: ClaimedIds,
        keys: ClaimKeys,
        writer: SegmentWriter,
        has_messages: HasMessages,
    ) -> None:
        """`has_messages` is asked about every gap in the offsets that arrive."""
        self.number = number
        self.generation = generation
        self.reached = reached
        """The first message that is in no segment."""
        self.previous: str | None = None
        """The id of the last segment."""
        self.is_stopped = False
        """Whether the next message is of a format that this program does not know."""
        self._claimed = claimed
        self._keys = keys
        self._writer = writer
        self._waiting: deque[Delivered] = deque()
        self._expected = reached
        self._has_messages = has_messages
        self._empty_cuts = 0
        """In a row, though the worker had committed more."""
        self.bytes = 0
        """Of the messages that wait."""

    # --- the event loop ---------------------------------------------------------------------------------------------

    def arrive(self, delivered: Delivered) -> None:
        """Keep a message until it is in a segment; one that is already, or that waits, is only acknowledged."""
        if delivered.offset < self._expected:
            delivered.ack()
            return
        self._expected = delivered.offset + 1
        self.bytes += len(delivered.value or b"")
        self._waiting.append(delivered)

    def release(self) -> None:
        """Acknowledge what is in segments."""
        while self._waiting and self._waiting[0].offset < self.reached:
            delivered = self._waiting.popleft()
            self.bytes -= len(delivered.value or b"")
            delivered.ack()

    # --- the thread of the cuts -------------------------------------------------------------------------------------

    def next_offset(self) -> int | None:
        """Return the offset of the next message that waits; None: there is none."""
        return next((each.offset for each in list(self._waiting) if each.offset >= self.reached), None)

    def gap(self, first: int) -> Manifest | None:
        """Return the manifest of messages that the log has deleted, as it begins at `first`; None: there are none."""
        if first <= self.reached:
            return None
        return self._manifest("gap", self._segment(first, is_absent=True))

    def cut(self, committed: int, payload_before: int) -> Cut | None:
        """Make a segment of what is complete, if there is anything: messages before `committed`, which the worker's
        group has committed. Its files are durable on return. Raises `LogError`, `OSError`, `MessagesSkipped`.
        """
        if self.is_stopped:
            return None
        self._check_arrivals(committed)
        self._claimed.read_on()
        known = self._claimed.known_before(committed)
        tables, end, is_full = self._rows(known)
        if end == self.reached:
            return None
        segment = self._segment(end)
        if tables:
            segment = self._writer.write(tables, segment, payload_before)
        return Cut(self._manifest("fresh", segment), is_full)

    def advance(self, reached: int, last: str | None) -> None:
        """Go on behind the last segment, which this or another store has appended."""
        self.reached = reached
        self.previous = last
        self._claimed.forget(reached)

    def _check_arrivals(self, committed: int) -> None:
        """Raise `MessagesSkipped` where nothing has arrived for long of what the log has before `committed`: a message
        that was skipped shows by the next one, and there may be none."""
        self._empty_cuts = 0 if self.next_offset() is not None else self._empty_cuts + 1
        if self._empty_cuts >= STALLED:
            self._empty_cuts = 0
            self._check_gap(self.reached, committed)

    def _check_gap(self, start: int, end: int) -> None:
        """Raise `MessagesSkipped` if the log has any message from `start` on before `end`."""
        if start < end and self._has_messages(self.number, start, end):
            raise MessagesSkipped(self.number, start, end - 1)

    def _rows(self, known: int) -> tuple[Sequence[Any], int, bool]:
        """Return tables of rows of the messages before `known`, the offset after the last of these, and whether there
        is more: the bounds, or messages that were skipped, have ended it. Raises `MessagesSkipped` where it would begin
        with those."""
        tables: list[Any] = []
        rows, size, unpacked, end = 0, 0, 0, self.reached
        for each in list(self._waiting):
            if each.offset < self.reached:
                continue
            if each.offset >= known:
                break
            if each.offset > end:
                try:
                    self._check_gap(end, each.offset)
                except MessagesSkipped:
                    if end == self.reached:
                        raise
                    return tables, end, True
            size += len(each.value or b"")
            if end > self.reached and (rows >= MAX_ROWS or size > MAX_BYTES):
                return tables, end, True
            if tables and unpacked + len(each.value or b"") > MAX_UNPACKED:  # at least so many bytes
                return tables, end, True
            if self._claimed.has_any(each.offset):
                decoded = self._decode(each)
                if self.is_stopped:
                    break
                if decoded is not None:
                    table, count = self._table(each, decoded)
                    if count:
                        unpacked += self._writer.size_of(table)
                        if tables and unpacked > MAX_UNPACKED:  # it is read again by the next cut
                            return tables, end, True
                        tables.append(table)
                        rows += count
            end = each.offset + 1
        return tables, end, False

    def _decode(self, delivered: Delivered) -> Message | None:
        """Return a message whose ids were claimed; None if it has been damaged since."""
        if delivered.is_damaged:
            self._report(delivered, "its checksum does not match")
            return None
        try:
            return message.decode(delivered.value or b"", packed_users=True)
        except UnknownVersion as error:
            self.is_stopped = True
            get_logger().error("store.stopped", partition=self.number, offset=delivered.offset, reason=str(error))
        except MessageError as error:
            self._report(delivered, str(error))
        return None

    def _table(self, delivered: Delivered, decoded: Message) -> tuple[Any, int]:
        """Return the rows of a message that are kept, and how many."""
        kept = self._claimed.kept(delivered.offset, self._keys.of(decoded))
        count = int(kept.sum())
        if not count:
            return None, 0
        try:
            return self._writer.table_of(decoded, self.number, delivered.offset, kept), count
        except MessageError as error:
            self._report(delivered, str(error))
            return None, 0

    def _report(self, delivered: Delivered, reason: str) -> None:
        get_logger().error("store.message_lost", partition=self.number, offset=delivered.offset, reason=reason)

    def _segment(self, end: int, *, is_absent: bool = False) -> Segment:
        return Segment(
            id=segment_id(self.number, self.reached, end),
            partition=self.number,
            start=self.reached,
            end=end,
            claims_from=self._claimed.claims_from(end),
            is_absent=is_absent,
        )

    def _manifest(self, kind: Kind, segment: Segment) -> Manifest:
        return Manifest(kind=kind, segment=segment, generation=self.generation, previous=self.previous)
