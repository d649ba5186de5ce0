"""The ids that messages have claimed, read from the claims topic along with the messages.

A worker that starts again claims the ids of some messages once more, with a record further on. So what a message has
claimed is the union of all records that name its offset. All of it is known once the topic was read to its end after
the message's offset had been committed. An old log has more claims than fit into memory: then the ids of the messages
ahead are kept, the rest of the topic is looked through, and of that only which records go back is kept.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from processor.core.kernel.loaded import kernel
from processor.core.partitioning import U64
from processor.core.tables import dedupe
from processor.core.tables.dedupe import Claimed
from processor.log.port import Read
from processor.log.records import Record, TopicPartition
from processor.log.topics import CLAIMS

MAX_BYTES: Final = 24 << 20
"""Ids that are kept, those of a record more or less."""

BATCH: Final = 200
"""Records of one read."""

KEY_BYTES: Final = 16

FEW: Final = 64
"""Rows of a message that may be left out for the quick way to be the quick one."""

FEW_LOOKS: Final = 1 << 20
"""The same where the kernel runs: those rows times all rows."""

OVERHEAD: Final = 200
"""Bytes that the ids of a message take besides their own."""

Mask = NDArray[np.bool_]


class _Reach(NamedTuple):
    """A record of claims: its offset, and the first and last message whose ids it has."""

    offset: int
    first: int
    last: int


class ClaimedIds:
    """The ids claimed by messages of one partition, from the message `reached` on. For one thread at a time.

    `start` is the offset in the claims topic to begin at: see `Segment.claims_from`. `on_damage` is called with what is
    wrong with a record that cannot be read; its claims are missing then.
    """

    def __init__(
        self,
        read: Read,
        partition: int,
        start: int,
        reached: int,
        on_damage: Callable[[str], None],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._read = read
        self._tp = TopicPartition(CLAIMS, partition)
        self._on_damage = on_damage
        self._max_bytes = max_bytes
        self._reached = reached
        self._ids: dict[int, list[bytes]] = {}
        """Message -> the ids it has claimed, as far as they are kept."""
        self._bytes = 0
        self._kept_to = start
        """Ids of all records before this offset are kept, but those of messages before `reached`."""
        self._seen_to = start
        """All records before this offset have been looked through."""
        self._newest = -1
        """The last message of the records before `_kept_to`."""
        self._seen_newest = -1
        """The last message of those before `_seen_to`."""
        self._kept: list[_Reach] = []
        """Records before `_kept_to` with messages that have not been reached."""
        self._late: list[_Reach] = []
        """Records from `_kept_to` on that name a message which an earlier record goes beyond."""

    def read_on(self) -> None:
        """Look through all records that are in the topic. Raises `LogError`, and may be repeated."""
        self._keep_more()
        while records := self._poll(self._seen_to):
            for record in records:
                self._seen_to = record.offset + 1
                reach = _reach_of(record.offset, self._decode(record))
                if reach is not None:
                    if reach.first <= self._seen_newest:
                        self._late.append(reach)
                    self._seen_newest = max(self._seen_newest, reach.last)

    def known_before(self, wanted: int) -> int:
        """Return up to which message, exclusive and at most `wanted`, all ids that were in the topic are kept here.

        `read_on` makes more of them known once `forget` has made room. Raises `LogError`, and may be repeated.
        """
        if self._kept_to >= self._seen_to:
            return wanted
        known = min(wanted, self._newest + 1)
        late = [each for each in self._late if each.first < known]
        for each in late:
            self._keep_late(each)
        return known

    def kept(self, offset: int, keys: U64) -> Mask:
        """Return which rows of the message at `offset`, with these claim keys, are the first copies of their events."""
        claimed = b"".join(self._ids.get(offset, ()))
        if claimed == keys.tobytes():  # the usual case; no key is claimed twice in a record, so there are no copies
            return np.ones(len(keys), np.bool_)
        found = _kept_in_order(keys, np.frombuffer(claimed, np.uint64).reshape(-1, 2))
        if found is not None:
            return found
        wanted = set(_split(claimed))
        found = np.zeros(len(keys), np.bool_)
        for row, key in enumerate(_split(keys.tobytes())) if wanted else ():
            if key in wanted:
                wanted.discard(key)
                found[row] = True
        return found

    def has_any(self, offset: int) -> bool:
        """Return whether the message at `offset` has claimed any id."""
        return offset in self._ids

    def forget(self, before: int) -> None:
        """Drop what was claimed by messages before this one."""
        self._reached = before
        for offset in [offset for offset in self._ids if offset < before]:
            self._bytes -= sum(OVERHEAD + len(keys) for keys in self._ids.pop(offset))
        self._kept = [each for each in self._kept if each.last >= before]
        self._late = [each for each in self._late if each.last >= before]

    def claims_from(self, end: int) -> int:
        """Return the offset in the claims topic from which on all claims of messages from `end` on are found."""
        return min((each.offset for each in self._kept if each.last >= end), default=self._kept_to)

    def _keep_more(self) -> None:
        """Keep the ids of further records as long as there is room, or as long as no message could be gone on with."""
        while self._has_room():
            records = self._poll(self._kept_to)
            if not records:
                break
            for record in records:
                self._keep(record.offset, self._decode(record))
                self._kept_to = record.offset + 1
                if not self._has_room():
                    break
        self._late = [each for each in self._late if each.offset >= self._kept_to]
        if self._kept_to > self._seen_to:
            self._seen_to, self._seen_newest = self._kept_to, max(self._newest, self._seen_newest)

    def _has_room(self) -> bool:
        return self._bytes < self._max_bytes or self._newest < self._reached

    def _keep(self, offset: int, claimed: Sequence[Claimed]) -> None:
        reach = _reach_of(offset, claimed)
        if reach is None or reach.last < self._reached:
            self._newest = max(self._newest, reach.last if reach else -1)
            return
        self._newest = max(self._newest, reach.last)
        self._kept.append(reach)
        self._add(claimed)

    def _keep_late(self, reach: _Reach) -> None:
        """Keep the ids of one record that lies further on. It is read again in its turn, which changes nothing."""
        for record in self._read(self._tp, reach.offset, 1):
            if record.offset == reach.offset:
                self._add(self._decode(record))
        self._late.remove(reach)  # only now: a read that failed is tried again

    def _add(self, claimed: Iterable[Claimed]) -> None:
        for each in claimed:
            if each.offset < self._reached:
                continue
            known = self._ids.setdefault(each.offset, [])
            if each.keys not in known:
                old = set(_split(b"".join(known)))
                keys = b"".join(key for key in _split(each.keys) if key not in old) if old else each.keys
                known.append(keys)
                self._bytes += len(keys) + OVERHEAD

    def _poll(self, start: int) -> Sequence[Record]:
        return self._read(self._tp, start, BATCH)

    def _decode(self, record: Record) -> list[Claimed]:
        try:
            return dedupe.decode_claims(record.value or b"")
        except ValueError as error:
            self._on_damage(f"record {self._tp.topic}:{self._tp.partition}:{record.offset}: {error}")
            return []


def _reach_of(offset: int, claimed: Sequence[Claimed]) -> _Reach | None:
    if not claimed:
        return None
    messages = [each.offset for each in claimed]
    return _Reach(offset, min(messages), max(messages))


def _kept_in_order(keys: U64, claimed: U64) -> Mask | None:
    """Return which rows are kept where these are few less than all, and claimed in the order of the rows, as a worker
    that is not started again does; else None: an eighth of what a look at each key takes.
    """
    gone = len(keys) - len(claimed)
    if kernel is None:
        return _kept_in_order_by_numpy(keys, claimed) if 0 < gone <= FEW and len(claimed) else None
    if gone < 0 or gone * len(keys) > FEW_LOOKS:
        return None
    found = kernel.kept_in_order(np.ascontiguousarray(keys), claimed)
    return None if found is None else np.frombuffer(found, np.bool_)


def _kept_in_order_by_numpy(keys: U64, claimed: U64) -> Mask | None:
    """The same for at least one row that is kept, and one that is not: a comparison for each of these, of all that come
    after it."""
    gone = len(keys) - len(claimed)
    kept = np.ones(len(keys), np.bool_)
    row = 0  # all rows before it are decided, and `row` minus those left out is the next claimed one
    for left_out in range(gone):
        differs = (keys[row : len(claimed) + left_out] != claimed[row - left_out :]).any(axis=1)
        if not differs.any():
            row = len(claimed) + left_out
        else:
            row += int(differs.argmax())
        kept[row] = False
        row += 1
    if (keys[kept] != claimed).any():
        return None
    # Of several copies in the message the first one is kept.
    for place in np.flatnonzero(~kept).tolist():
        copies = np.flatnonzero((keys == keys[place]).all(axis=1))
        if kept[copies].any() and not kept[copies[0]]:
            return None
    return kept


def _split(keys: bytes) -> Iterable[bytes]:
    return (keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES))
