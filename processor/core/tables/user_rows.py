"""One partition's rows of users, in columns: there may be millions, and nearly every event of a message has its own.

A row is a number. Its sums are 72 bytes (`row_bytes`), found by 128 bits of hash of its user and of what else it is
kept by; so the events of a message are added with a few calls of numpy, without an object or a look-up for each. A
user's half of the hash is computed once for each name in a message, the other half once for each group.

Sums are exact. What is in columns stays below 2^62, and what a message adds does too, so no addition overflows; a row
beyond that is *wide*: its numbers are Python integers, in an object of its own.
"""

from collections.abc import Iterator, Sequence
from sys import intern
from typing import Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.events.columns import Rows
from processor.core.growing_arrays import I64, Records, Segments
from processor.core.hash_index import HASH, HashIndex, hashes_of
from processor.core.tables import grouped_sums, row_block, row_bytes, table_rows
from processor.core.tables.row_block import RowBlock
from processor.core.tables.row_sums import AMOUNTS, words_of
from processor.core.tables.table_rows import NEVER, Sums, UserPlace

GroupKey = tuple[str, int, str, str, str]
"""project, day, provider, model, environment: what a user's row is kept by, without the user."""

MAX_BLOCK: Final = 8192
"""Rows in one block of the changelog."""

_BOUND: Final = grouped_sums.SAFE
_MAX_COUNT: Final = 2**31
_WORDS: Final = row_bytes.SIZE // 8
_AMOUNTS: Final = words_of(row_bytes.DTYPE, AMOUNTS)

_NOTHING: Final = np.zeros((), row_bytes.DTYPE)
_NOTHING["offset"] = NEVER
_MARK: Final = np.dtype([("changelog", "<i8"), ("low", "<u8"), ("high", "<u8"), ("dirty", "<i4"), ("_", "<i4")])
_NO_MARK: Final = np.array((NEVER, 0, 0, 0, 0), _MARK)

Mask = NDArray[np.bool_]

_encode = msgspec.json.Encoder().encode


class Dead(NamedTuple):
    """A record of the changelog that newer ones have replaced."""

    offset: int
    rows: int
    """How many rows it has."""


class _Written(Struct, gc=False):
    """A block of the changelog that some rows have their newest values in."""

    size: int
    live: int
    rows: NDArray[np.int32]
    """Those rows, and perhaps others."""


class UserChanges(NamedTuple):
    """Rows to be written: their values are those of the moment in which this was made."""

    rows: I64
    block: RowBlock
    """As many as `rows`, in their order."""
    wide: list[tuple[int, bytes, bytes]]
    """Row, key and value of those that do not fit into a block."""


class UserRows:
    """The rows, and which of them have changed since the last `drain`."""

    def __init__(self, partition: int, seed: int) -> None:
        """`seed`: see `row_block.seed_of`."""
        self._partition = partition
        self._seed = seed
        self._values = Segments(_NOTHING)
        self._marks = Segments(_NO_MARK)
        self._keys: list[bytes] = []
        self._index = HashIndex()
        self._groups: dict[GroupKey, int] = {}
        self._group_keys: list[GroupKey] = []
        self._group_hashes = Segments(np.zeros((), HASH))
        self._wide: dict[int, Sums] = {}
        self._dirty: list[I64] = []
        self.changed = 0
        """Rows waiting for `drain`."""
        self._written: dict[int, _Written] = {}
        self._tally: tuple[int, int] | None = (0, 0)
        """Rows that have events, and these events; None: rows were read back since they were counted."""

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def tally(self) -> tuple[int, int]:
        """How many rows have events, and how many unique events these are.

        Kept up with what is added; after rows were read back it looks at all of them once (20 ms for a million).
        """
        if self._tally is None:
            requests = self._values.column("requests", np.arange(len(self._keys)), ascending=True)
            wide = list(self._wide.values())
            events = int(requests.sum(dtype=np.int64)) + sum(row.requests for row in wide)
            self._tally = int(np.count_nonzero(requests)) + sum(row.requests > 0 for row in wide), events
        return self._tally

    def rows(self) -> Iterator[tuple[UserPlace, Sums]]:
        """All rows, an object made for each: for whoever compares them, not for the hot path."""
        numbers = np.arange(len(self._keys))
        places = table_rows.decode_users(self._keys)
        values, marks = self._values.take(numbers).tolist(), self._marks.take(numbers).tolist()
        for row, (place, value, (changelog, *_)) in enumerate(zip(places, values, marks, strict=True)):
            found = self._wide.get(row) or _sums_of(self._keys[row], value)
            if found.requests:  # one that was taken away has none
                found.changelog = changelog
                yield place, found

    # --- adding events ----------------------------------------------------------------------------------------------

    def group(self, key: GroupKey) -> int:
        """The number of a group."""
        number = self._groups.get(key)
        if number is None:
            project, day, provider, model, environment = key
            key = (intern(project), day, intern(provider), intern(model), intern(environment))
            number = self._groups[key] = len(self._group_keys)
            self._group_keys.append(key)
            self._group_hashes.put(self._group_hashes.extend(1), hashes_of([_encode(key)]))
        return number

    def add(
        self, offsets: I64, groups: I64, users: I64, names: Sequence[str | None], events: Rows, errors: Mask
    ) -> None:
        """Add events, at least one, to the rows that do not have their messages yet, whose offsets these are.

        `groups` and `users` are shape (n,) like `events`, and in the order of the log; `users` counts in `names`. All
        these rows are written again, also those that have the message: what is in memory may be ahead of what is
        durable.
        """
        rows = self._rows_of(groups, users, names)
        is_open = self._values.column("offset", rows) < offsets
        if not is_open.all():
            self._touch(np.unique(rows[~is_open]))
            rows, offsets, events, errors = rows[is_open], offsets[is_open], events[is_open], errors[is_open]
            if not len(rows):
                return
        added = grouped_sums.grouped(rows, offsets, events, errors)
        if self._tally is not None:
            empty = self._values.column("requests", added.codes) == 0  # of a wide row these are 0, too
            fresh = np.count_nonzero(empty) - (sum(map(added.codes.__contains__, self._wide)) if self._wide else 0)
            self._tally = self._tally[0] + int(fresh), self._tally[1] + len(rows)
        self._touch(added.codes)
        if added.amounts.dtype == object:
            self._add_exactly(added)
            return
        if self._wide:
            is_wide = np.isin(added.codes, list(self._wide))
            if is_wide.any():
                self._add_exactly(added.where(is_wide))
                added = added.where(~is_wide)
        self._add(added)

    def _add(self, added: grouped_sums.Grouped) -> None:
        values = self._values.take(added.codes)
        is_new = values["requests"] == 0
        values["offset"] = added.offsets
        values["requests"] += added.requests.astype(np.uint32)
        values["errors"] += added.errors.astype(np.uint32)
        values["unpriced"] += added.unpriced.astype(np.uint32)
        values["first_seen"] = np.where(is_new, added.first_seen, np.minimum(values["first_seen"], added.first_seen))
        values["last_seen"] = np.where(is_new, added.last_seen, np.maximum(values["last_seen"], added.last_seen))
        _amounts(values)[:] += added.amounts
        self._values.put(added.codes, values)
        for row in added.codes[_is_over(values)].tolist():
            self._put(row, self._get(row))

    def _add_exactly(self, added: grouped_sums.Grouped) -> None:
        for group in added.each():
            row = self._get(group.code)
            group.add_to(row)
            self._put(group.code, row)

    def _get(self, row: int) -> Sums:
        """A row by itself; to be given back to `_put`."""
        return self._wide.get(row) or _sums_of(self._keys[row], self._values.take(np.array([row])).tolist()[0])

    def _put(self, row: int, found: Sums) -> None:
        """Set what a row says: in columns if it fits."""
        amounts = (found.input_tokens, found.output_tokens, found.cached_tokens, found.cost)
        value = np.zeros(1, row_bytes.DTYPE)
        value["offset"] = found.offset
        if found.requests < _MAX_COUNT and all(-_BOUND < amount < _BOUND for amount in amounts):
            self._wide.pop(row, None)
            value[0] = (0, *row_bytes.members_of(found))
        else:
            self._wide[row] = found
        self._values.put(np.array([row]), value)

    # --- finding rows -----------------------------------------------------------------------------------------------

    def _rows_of(self, groups: I64, users: I64, names: Sequence[str | None]) -> I64:
        """The row of each event; those that there are not are made."""
        hashes = self._hashes(names, users, groups)
        rows = self._index.find(hashes)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            low, high = hashes["low"][unknown], hashes["high"][unknown]
            order = np.lexsort((high, low))  # events of one row come side by side
            low, high, ordered = low[order], high[order], unknown[order]
            is_first = np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1]))
            first = np.sort(ordered[is_first])  # rows are numbered as their first events come
            keys = self._keys_of(groups[first].tolist(), [names[user] for user in users[first].tolist()])
            self._make(keys, hashes.take(first), row_block.key_hashes(keys, self._seed))
            rows[unknown] = self._index.find(hashes.take(unknown))
        return rows

    def _hashes(self, names: Sequence[str | None], users: I64, groups: I64) -> Records:
        """The hashes of rows, from those of their halves; `users` counts in `names`."""
        found: Records = hashes_of(names, [b"" if name is None else name.encode() for name in names]).take(users)
        of_groups = self._group_hashes.take(groups)
        found["low"] ^= of_groups["low"]
        found["high"] ^= of_groups["high"]
        return found

    def _keys_of(self, groups: Sequence[int], users: Sequence[str | None]) -> list[bytes]:
        ends: dict[int, tuple[bytes, bytes]] = {}
        for group in set(groups):
            project, *rest = self._group_keys[group]
            ends[group] = b'[%d,"user",%b,' % (self._partition, _encode(project)), b"," + _encode(rest)[1:]
        found = []
        for group, user in zip(groups, users, strict=True):
            start, end = ends[group]
            found.append(start + _encode(user) + end)
        return found

    def _make(self, keys: Sequence[bytes], hashes: Records, of_keys: Records) -> I64:
        rows = self._index.add(hashes)
        self._keys.extend(keys)
        self._values.extend(len(keys))
        self._marks.extend(len(keys))
        marks = np.repeat(_NO_MARK[None], len(keys))
        marks["low"], marks["high"] = of_keys["low"], of_keys["high"]
        self._marks.put(rows, marks)
        return rows

    def _touch(self, rows: I64) -> None:
        """These rows, no two the same, are written with the next flush."""
        fresh = rows[self._marks.column("dirty", rows) == 0]
        if len(fresh):
            for part, at, _ in self._marks.split(fresh):
                part["dirty"][at] = 1
            self._dirty.append(fresh)
            self.changed += len(fresh)

    def touch_all(self) -> None:
        """Every row that counts an event is written with the next flush."""
        numbers = np.arange(len(self._keys))
        is_there = self._values.column("requests", numbers) > 0
        is_there[list(self._wide)] = True
        self._touch(numbers[is_there])

    # --- the changelog ----------------------------------------------------------------------------------------------

    def drain(self) -> UserChanges:
        """What has changed since the last call."""
        rows = np.concatenate(self._dirty) if self._dirty else np.empty(0, np.int64)
        self._dirty, self.changed = [], 0
        for part, at, _ in self._marks.split(rows):
            part["dirty"][at] = 0
        wide: list[tuple[int, bytes, bytes]] = []
        if self._wide:
            is_wide = np.isin(rows, list(self._wide))
            for row in rows[is_wide].tolist():
                found = self._wide[row]
                wide.append((row, found.key, table_rows.encode_value(found)))
            rows = rows[~is_wide]
        hashes = np.empty(len(rows), HASH)
        hashes["low"], hashes["high"] = self._marks.column("low", rows), self._marks.column("high", rows)
        keys = list(map(self._keys.__getitem__, rows.tolist()))
        return UserChanges(rows, RowBlock(keys, hashes, self._values.take(rows)), wide)

    def wrote(self, rows: I64, offset: int) -> list[Dead]:
        """The newest values of `rows` are in the block at `offset` from now on; returns the records that this ends."""
        self._written[offset] = _Written(len(rows), len(rows), rows.astype(np.int32))
        return self.wrote_singly(rows, np.full(len(rows), offset))

    def wrote_singly(self, rows: I64, offsets: I64) -> list[Dead]:
        """The same for a record of each row's own."""
        before = self._marks.column("changelog", rows)
        for part, at, which in self._marks.split(rows):
            part["changelog"][at] = offsets[which]
        dead = []
        for offset, count in zip(*(found.tolist() for found in np.unique(before, return_counts=True)), strict=True):
            written = self._written.get(offset)
            if written is None:
                if offset != NEVER:
                    dead.append(Dead(offset, 1))
                continue
            written.live -= count
            if not written.live:
                del self._written[offset]
                dead.append(Dead(offset, written.size))
        return dead

    def rewrite(self, surplus: int, limit: int) -> int:
        """Have rows written anew whose blocks have the most dead rows beside them, at most about `limit`, until these
        blocks have `surplus` dead ones; returns how many rows that is. When they are written the blocks are dead."""
        count = 0
        for offset, written in sorted(self._written.items(), key=lambda item: item[1].live / item[1].size):
            if surplus <= 0 or count >= limit or written.live == written.size:
                break
            rows = written.rows.astype(np.int64)
            self._touch(rows[self._marks.column("changelog", rows) == offset])
            surplus -= written.size - written.live
            count += written.live
        return count

    # --- reading back -----------------------------------------------------------------------------------------------

    def restore(
        self, keys: Sequence[bytes], values: Records, offsets: I64, hashes: Records | None = None, size: int = 0
    ) -> None:
        """Read rows back, no two of one key, with the offsets of their records. Raises `ValueError` for a key of
        another format. `hashes`: of the keys, if they are known. Of a block the offsets are all the same and `size` is
        the number of rows it has, these among them."""
        self._tally = None
        rows = self._known(keys, hashes)
        for row in rows.tolist() if self._wide else ():
            self._wide.pop(row, None)
        self._values.put(rows, values)
        for place in np.flatnonzero(_is_over(values)).tolist():
            self._put(int(rows[place]), _sums_of(keys[place], values[place].tolist()))
        self.wrote_singly(rows, offsets)
        if size:
            self._written[int(offsets[0])] = _Written(size, len(rows), rows.astype(np.int32))

    def restore_one(self, key: bytes, found: Sums | None, offset: int) -> None:
        """Read back a row whose numbers may not fit into columns; None: it is gone."""
        self._tally = None
        rows = self._known([key], None)
        self._put(int(rows[0]), found or Sums(key))
        self.wrote_singly(rows, np.array([NEVER if found is None else offset]))

    def _known(self, keys: Sequence[bytes], hashes: Records | None) -> I64:
        """The rows with these keys; those that there are not are made."""
        rows, ours = self._look_up(keys)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            chosen = [keys[number] for number in unknown.tolist()]
            of_keys = row_block.key_hashes(chosen, self._seed) if hashes is None else hashes.take(unknown)
            rows[unknown] = self._make(chosen, ours.take(unknown), of_keys)
        return rows

    def _look_up(self, keys: Sequence[bytes]) -> tuple[I64, Records]:
        """The rows with these keys, or -1, and what they are found by."""
        places = table_rows.decode_users(keys)
        groups = np.empty(len(keys), np.int64)
        for number, place in enumerate(places):
            key = (place.project, place.day, place.provider, place.model, place.environment)
            found = self._groups.get(key)
            groups[number] = self.group(key) if found is None else found
        ours = self._hashes([place.user for place in places], np.arange(len(places)), groups)
        return self._index.find(ours), ours

    def changelogs(self) -> I64:
        """Where the newest record of each row is, `NEVER` if it has none."""
        return self._marks.column("changelog", np.arange(len(self)), ascending=True)


def _amounts(values: Records) -> I64:
    """The `AMOUNTS` of records of `row_bytes.DTYPE`: a view, shape (n, 4)."""
    return values.view(np.int64).reshape(-1, _WORDS)[:, _AMOUNTS]


def _is_over(values: Records) -> Mask:
    """Which of these are not to stay in columns."""
    amounts = _amounts(values)
    counts: Mask = values["requests"] >= _MAX_COUNT
    if not len(values) or (amounts.max() < _BOUND and amounts.min() > -_BOUND):
        return counts
    return counts | (amounts >= _BOUND).any(axis=1) | (amounts <= -_BOUND).any(axis=1)


def _sums_of(key: bytes, value: tuple[int, ...]) -> Sums:
    """A record of `row_bytes.DTYPE` as an object."""
    return Sums(key, *row_bytes.listed(value))


def blocks_of(changes: UserChanges) -> Iterator[tuple[I64, RowBlock]]:
    """Changes as blocks of at most `MAX_BLOCK` rows, with the numbers of these."""
    for start in range(0, len(changes.rows), MAX_BLOCK):
        piece = slice(start, start + MAX_BLOCK)
        whole = changes.block
        yield changes.rows[piece], RowBlock(whole.keys[piece], whole.hashes[piece], whole.values[piece])
