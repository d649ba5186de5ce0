"""One partition's rows of users, in columns: there may be millions, and nearly every event of a message has its own.

A row of sums (`sum_rows`) is found by 128 bits of hash of its user and of what else it is kept by, without a look-up
for each event. A user's half of the hash is computed once for each name in a message, the other half once for each
group.
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
from processor.core.tables import row_block, table_rows
from processor.core.tables.row_block import RowBlock
from processor.core.tables.row_marks import Dead, Singles
from processor.core.tables.sum_rows import Mask, SumRows
from processor.core.tables.table_rows import NEVER, Sums, UserPlace

GroupKey = tuple[str, int, str, str, str]
"""project, day, provider, model, environment: what a user's row is kept by, without the user."""

MAX_BLOCK: Final = 8192
"""Rows in one block of the changelog."""

_encode = msgspec.json.Encoder().encode


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
    wide: Singles
    """Those that do not fit into a block."""


class UserRows(SumRows):
    """The rows, and which of them have changed since the last `drain`."""

    def __init__(self, partition: int, seed: int) -> None:
        """`seed`: see `row_block.seed_of`."""
        super().__init__()
        self._partition = partition
        self._seed = seed
        self._key_hashes = Segments(np.zeros((), HASH))
        self._index = HashIndex()
        self._groups: dict[GroupKey, int] = {}
        self._group_keys: list[GroupKey] = []
        self._group_hashes = Segments(np.zeros((), HASH))
        self._written: dict[int, _Written] = {}

    def rows(self) -> Iterator[tuple[UserPlace, Sums]]:
        """All rows, an object made for each: for whoever compares them, not for the hot path."""
        places = table_rows.decode_users(self._keys)
        for row, found in self._all():
            yield places[row], found

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
        """`add_to` the rows of these `groups` and `users`, which count in `names`: shape (n,) like `events`."""
        self.add_to(self._rows_of(groups, users, names), offsets, events, errors)

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
        self._grow()
        self._key_hashes.put(self._key_hashes.extend(len(keys)), of_keys)
        return rows

    # --- the changelog ----------------------------------------------------------------------------------------------

    def drain(self) -> UserChanges:
        """What has changed since the last call."""
        rows = self._marks.take()
        wide = Singles(np.empty(0, np.int64), [])
        if self._wide:
            is_wide = np.isin(rows, list(self._wide))
            chosen = [self._wide[row] for row in rows[is_wide].tolist()]
            values = table_rows.encode_values(chosen)
            wide = Singles(rows[is_wide], [(row.key, value) for row, value in zip(chosen, values, strict=True)])
            rows = rows[~is_wide]
        keys = list(map(self._keys.__getitem__, rows.tolist()))
        return UserChanges(rows, RowBlock(keys, self._key_hashes.take(rows), self._values.take(rows)), wide)

    def wrote(self, rows: I64, offset: int) -> list[Dead]:
        """The newest values of `rows` are in the block at `offset` from now on; returns the records that this ends."""
        self._written[offset] = _Written(len(rows), len(rows), rows.astype(np.int32))
        return self.wrote_singly(rows, np.full(len(rows), offset))

    def wrote_singly(self, rows: I64, offsets: I64) -> list[Dead]:
        """The same for a record of each row's own."""
        before = self._marks.wrote(rows, offsets)
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
            self._marks.touch(rows[self._marks.changelogs(rows) == offset])
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
        rows = self._known(keys, hashes)
        self._replace(rows, values)
        self.wrote_singly(rows, offsets)
        if size:
            self._written[int(offsets[0])] = _Written(size, len(rows), rows.astype(np.int32))

    def restore_one(self, key: bytes, found: Sums | None, offset: int) -> None:
        """Read back a row whose numbers may not fit into columns; None: it is gone."""
        rows = self._known([key], None)
        self._replace_one(int(rows[0]), found)
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


def blocks_of(changes: UserChanges) -> Iterator[tuple[I64, RowBlock]]:
    """Changes as blocks of at most `MAX_BLOCK` rows, with the numbers of these."""
    for start in range(0, len(changes.rows), MAX_BLOCK):
        piece = slice(start, start + MAX_BLOCK)
        whole = changes.block
        yield changes.rows[piece], RowBlock(whole.keys[piece], whole.hashes[piece], whole.values[piece])
