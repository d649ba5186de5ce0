"""Recompute one partition's tables from its events: what `verify` compares with and `rebuild` writes.

Where retention has deleted events, the sealed checkpoint stands for them, and the claims log for their ids. Everything
else comes from the events, also which copy of an id was the first. So the ids are kept here a second time, in files of
a directory that is empty at the start.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from processor.core.events import message
from processor.core.events.message import Message, MessageError
from processor.core.partitioning import U64
from processor.core.tables import dedupe, table_rows
from processor.core.tables.apply import Tables
from processor.core.tables.dedupe import Claimed, Mask
from processor.core.tables.history import CLAIMS as CLAIMS_LOST
from processor.core.tables.history import Loss, OffsetRange, digest_of, is_padding, void_ranges
from processor.ids.index import IdIndex
from processor.log import losses
from processor.log.errors import DamagedRecord
from processor.log.losses import Lost
from processor.log.port import LogReader
from processor.log.records import Record, TopicPartition
from processor.log.sound import OnDamage, scan_sound
from processor.log.topics import CHECKPOINTS, CLAIMS, EVENTS

MESSAGES: Final = 100
"""Event messages, or records of claims, read at a time."""

ROWS_TOGETHER: Final = 10_000
"""Rows of the checkpoint read back together."""

FORGET: Final = 500
"""Messages after which the list of changed rows, which is not needed, is dropped."""


class UnreadableRecord(NamedTuple):
    """A record that cannot be read, and why."""

    topic: str
    partition: int
    offset: int
    reason: str
    name: str
    """What operators call the topic, see `LogReader.name_of`."""
    is_damaged: bool = False
    """Its checksum does not match: what it said is not known."""

    def __str__(self) -> str:
        what = f"damaged: {self.reason}" if self.is_damaged else self.reason
        return f"record {self.name}:{self.partition}:{self.offset}: {what}"


class Checkpoint(NamedTuple):
    """What retention has sealed, as read from the log."""

    is_sound: bool
    """False if a record of it is damaged: which row that was is not known."""
    keys: frozenset[bytes]
    """The keys of all of its rows."""


class NotApplied(Exception):
    """A message failed while it was applied: the tables made so far are useless."""

    def __init__(self, offset: int, error: Exception) -> None:
        super().__init__(f"message {offset} cannot be applied: {error!r}")
        self.offset = offset


class Recomputation:
    """The tables and ids of one partition, recomputed. Methods block for as long as reading takes.

    `on_unusable` is called with every record that cannot be read, of any topic; all others are read.
    """

    def __init__(
        self, log: LogReader, number: int, scratch: Path, on_unusable: Callable[[UnreadableRecord], None]
    ) -> None:
        self._log = log
        self._number = number
        self._on_unusable = on_unusable
        self.ids = IdIndex(scratch / "ids", log.identity)
        """Every id that the tables count, with the offset of the message that did."""
        self.recorded = IdIndex(scratch / "claims", log.identity)
        """Every id of the claims log, with the first offset that claims it there."""
        self.tables = Tables(number, log.salt, self.ids)
        self.checkpoint = Checkpoint(True, frozenset())
        self.base = table_rows.NEVER
        """The last offset of the events that the checkpoint stands for."""
        self.counted = 0
        """Events that the checkpoint counts."""
        self.claimed_before = 0
        """Ids that the claims log has for offsets up to `base`."""
        self.last_claim = table_rows.NEVER
        """The last offset that the claims log has an id for."""
        self.claims_from: int | None = None
        """The offset of the first readable record of the claims log; None: there is none."""
        self.lost: list[Lost] = []
        """The losses reported of this partition."""
        self._newest = (table_rows.NEVER, table_rows.UNKNOWN)
        """Offset and digest of the message that was read last."""
        self.void: list[OffsetRange] = []
        """Events that are gone and in no table: claims for them do not count."""

    def close(self) -> None:
        """Close the files of ids."""
        self.ids.close()
        self.recorded.close()

    def damage(self) -> OnDamage:
        """Return a callback that passes a damaged record to `on_unusable`."""

        def note(error: DamagedRecord) -> None:
            self._on_unusable(_damaged(error))

        return note

    def unreadable(self, topic: str, offset: int, error: Exception) -> UnreadableRecord:
        """Return the record of a topic that could be read, and not understood."""
        return UnreadableRecord(topic, self._number, offset, str(error), self._log.name_of(topic))

    def scan(self, topic: str, start: int = 0, end: int | None = None, limit: int = 5000) -> Iterator[Record]:
        """Yield all records of a topic's partition but the damaged ones."""
        return scan_sound(self._log, TopicPartition(topic, self._number), self.damage(), start, end, limit)

    # --- the beginning ----------------------------------------------------------------------------------------------

    def has(self, topic: str) -> bool:
        """Whether the log has this partition of a topic."""
        return self._log.topics().get(topic, 0) > self._number

    def read_checkpoint(self) -> None:
        """Set the tables to the sealed checkpoint and `base` to its offset. Call it before `read_claims` and events."""
        if not self.has(CHECKPOINTS):
            return
        unusable = 0
        keys: set[bytes] = set()

        def count(error: DamagedRecord) -> None:
            nonlocal unusable
            unusable += 1
            self.damage()(error)

        base = Tables(self._number, self._log.salt, self.ids)
        tp = TopicPartition(CHECKPOINTS, self._number)
        records = scan_sound(self._log, tp, count)
        while rows := [(record.key or b"", record.value, record.offset) for record in islice(records, ROWS_TOGETHER)]:
            for key, offset, error in _restored(base, rows):
                if error is None:
                    keys.add(key)
                else:
                    unusable += 1
                    self._on_unusable(self.unreadable(CHECKPOINTS, offset, error))
        self.checkpoint = Checkpoint(not unusable, frozenset(keys))
        if not unusable:
            self.tables = base
            self.base = base.progress.offset
            self.counted = sum(row.requests for _, row in base.users.rows()) + base.progress.spans

    def read_lost(self) -> None:
        """Read what was reported as lost. Call it before everything else."""
        for record in scan_sound(self._log, losses.HOME, self.damage()):
            if record.value is not None and (record.key or b"").startswith(f"{losses.KIND}/".encode()):
                found = losses.decode(record.value)
                if found.partition == self._number:
                    same = (found.topic, found.start)
                    self.lost = [each for each in self.lost if (each.topic, each.start) != same] + [found]
        self.void = void_ranges(self.losses())

    def losses(self) -> list[Loss]:
        """Return `lost` in the form of `history`."""
        return [Loss(each.start, each.end, each.counted, each.reason, each.topic, each.ids) for each in self.lost]

    def unclaimed(self) -> int:
        """Return how many ids of the events that the checkpoint counts are neither claimed nor reported as lost; below
        0: so many more are claimed."""
        reported = sum(each.ids for each in self.lost if each.topic == CLAIMS_LOST)
        missing = self.counted - self.claimed_before
        return missing if missing < 0 else max(0, missing - reported)

    def pass_over(self, offset: int) -> None:
        """Continue as if a checkpoint stood for all messages up to `offset`."""
        self.tables.skip(offset)
        self.base = offset

    def is_void(self, offsets: NDArray[np.int64]) -> Mask:
        """Return a mask of the offsets whose events are gone."""
        found = np.zeros(len(offsets), np.bool_)
        for each in self.void:
            found |= (offsets >= each.start) & (offsets < each.end)
        return found

    def read_claims(self) -> None:
        """Read the ids of the claims log. Beside a running worker call it after the rows were read: it has their ids
        then."""
        for _, claimed in self.claims():
            keys, digests = arrays_of(claimed)
            before = len(self.recorded)
            self.recorded.claim(keys, digests, claimed.offset)
            self.last_claim = max(self.last_claim, claimed.offset)
            if claimed.offset <= self.base:
                self.claimed_before += len(self.recorded) - before
                self.ids.claim(keys, digests, claimed.offset)

    def claims(self) -> Iterator[tuple[int, Claimed]]:
        """Yield all claims that count, each with the offset of its record."""
        if not self.has(CLAIMS):
            return
        for record in self.scan(CLAIMS, limit=MESSAGES):
            try:
                found = dedupe.decode_claims(record.value or b"")
            except ValueError as error:
                self._on_unusable(self.unreadable(CLAIMS, record.offset, error))
                continue
            self.claims_from = record.offset if self.claims_from is None else min(self.claims_from, record.offset)
            for claimed in found:
                if not any(claimed.offset in each for each in self.void):
                    yield record.offset, claimed

    # --- the events -------------------------------------------------------------------------------------------------

    def messages(self, start: int, end: int) -> Iterator[tuple[int, Message | UnreadableRecord | None]]:
        """Yield the event messages from `start` to before `end`, in order: an `UnreadableRecord` for one that cannot be
        read, None for padding (`history.is_padding`)."""
        waiting: list[UnreadableRecord] = []
        tp = TopicPartition(EVENTS, self._number)

        def note(error: DamagedRecord) -> None:
            waiting.append(_damaged(error))

        for record in scan_sound(self._log, tp, note, start, end, MESSAGES):
            while waiting and waiting[0].offset < record.offset:
                yield waiting[0].offset, waiting.pop(0)
            self._newest = record.offset, digest_of(record.key, record.value)
            if is_padding(record.value):
                yield record.offset, None
                continue
            try:
                yield record.offset, message.decode(record.value or b"")
            except MessageError as error:
                yield record.offset, self.unreadable(EVENTS, record.offset, error)
        for found in waiting:
            if found.offset < end:
                yield found.offset, found

    def newest_arrival(self, start: int, end: int, dead: set[int]) -> int:
        """Return the arrival, in microseconds, of the last message from `start` to before `end` that can be read and is
        none of `dead`; 0: there is none. Call it before the messages are applied."""
        while end > start:
            first = max(start, end - MESSAGES)
            for offset, found in reversed(list(self.messages(first, end))):
                if isinstance(found, Message) and offset not in dead:
                    return found.arrival
            end = first
        return 0

    def sign(self) -> None:
        """Set in the progress the digest of its last message, and where the claims begin."""
        offset, digest = self._newest
        progress = self.tables.progress
        progress.digest = digest if offset == progress.offset else table_rows.UNKNOWN
        tp = TopicPartition(CLAIMS, self._number)
        progress.claims_from = self._log.end(tp) if self.claims_from is None else self.claims_from

    def apply(self, offset: int, decoded: Message) -> None:
        """Apply a message. Raises `NotApplied`: then this object is useless."""
        try:
            self.tables.apply(offset, decoded, self.tables.prepare(decoded))
        except Exception as error:
            raise NotApplied(offset, error) from error

    def drain_claims(self) -> list[Claimed]:
        """Return the ids claimed since the last call; forgets which rows have changed."""
        changes = self.tables.drain_changes()
        return [] if changes is None else changes.claimed


def _restored(
    base: Tables, rows: Sequence[tuple[bytes, bytes | None, int]]
) -> Iterator[tuple[bytes, int, ValueError | None]]:
    """Read back rows, all at once if there is nothing wrong with any: the key and offset of each, and what is wrong."""
    try:
        base.restore_all(rows)
    except ValueError:  # one by one, then: what was read back before it is so once more
        for key, value, offset in rows:
            try:
                base.restore(key, value, offset)
            except ValueError as error:
                yield key, offset, error
            else:
                yield key, offset, None
    else:
        yield from ((key, offset, None) for key, _, offset in rows)


def arrays_of(claimed: Claimed) -> tuple[U64, U64]:
    """Return keys, shape (n, 2), and digests, shape (n,), of what one message claimed."""
    return np.frombuffer(claimed.keys, "<u8").reshape(-1, 2), np.frombuffer(claimed.digests, "<u8")


def _damaged(error: DamagedRecord) -> UnreadableRecord:
    return UnreadableRecord(error.topic, error.partition, error.offset, error.reason, error.name, is_damaged=True)
