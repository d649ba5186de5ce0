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

from processor.core.growing_arrays import I64, Records, Segments
from processor.core.hash_index import HASH, HashIndex, hashes_of, name_hashes
from processor.core.tables import row_block, table_rows
from processor.core.tables.row_block import RowBlock
from processor.core.tables.row_marks import Dead, Singles
from processor.core.tables.sum_rows import SumRows
from processor.core.tables.table_rows import NEVER, Sums, UserPlace
from processor.core.tables.user_keys import UserKeys
from processor.core.tables.user_places import GroupKey, user_places

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
    keys: list[bytes]
    """Of `rows`, in their order, like `values`."""
    values: Records
    wide: Singles
    """Those that do not fit into a block."""


class UserRows(SumRows):
    """The rows, and which of them have changed since the last `drain`."""

    def __init__(self, partition: int) -> None:
        self._keys = UserKeys(partition)
        super().__init__(self._keys)
        self._partition = partition
        self._index = HashIndex()
        self._groups: dict[GroupKey, int] = {}
        self._group_hashes = Segments(np.zeros((), HASH))
        self._written: dict[int, _Written] = {}

    def rows(self) -> Iterator[tuple[UserPlace, Sums]]:
        """All rows, an object made for each: for whoever compares them, not for the hot path."""
        places = table_rows.decode_users(list(self._keys))
        for row, found in self._all():
            yield places[row], found

    # --- finding rows -----------------------------------------------------------------------------------------------

    def group(self, key: GroupKey) -> int:
        """The number of a group."""
        number = self._groups.get(key)
        if number is None:
            project, day, provider, model, environment = key
            key = (intern(project), day, intern(provider), intern(model), intern(environment))
            number = self._groups[key] = len(self._groups)
            self._keys.add_group(key)
            self._group_hashes.put(self._group_hashes.extend(1), hashes_of([_encode(key)]))
        return number

    def rows_of(self, groups: I64, users: I64, names: Sequence[str | None]) -> I64:
        """The row of each event, of these `groups` and `users`, which count in `names`: shape (n,). Rows that there are
        not are made."""
        hashes = self._hashes(names, users, groups)
        rows = self._index.find(hashes)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            low, high = hashes["low"][unknown], hashes["high"][unknown]
            order = np.lexsort((high, low))  # events of one row come side by side
            low, high, ordered = low[order], high[order], unknown[order]
            is_first = np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1]))
            first = np.sort(ordered[is_first])  # rows are numbered as their first events come
            self._make(groups[first], [names[user] for user in users[first].tolist()], hashes.take(first))
            rows[unknown] = self._index.find(hashes.take(unknown))
        return rows

    def _hashes(self, names: Sequence[str | None], users: I64, groups: I64) -> Records:
        """The hashes of rows, from those of their halves; `users` counts in `names`."""
        found: Records = name_hashes(names).take(users)
        of_groups = self._group_hashes.take(groups)
        found["low"] ^= of_groups["low"]
        found["high"] ^= of_groups["high"]
        return found

    def _make(self, groups: I64, users: Sequence[str | None], hashes: Records) -> I64:
        rows = self._index.add(hashes)
        self._keys.extend(groups, users)
        self._grow()
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
        return UserChanges(rows, self._keys.take(rows), self._values.take(rows), wide)

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

    def restore(self, keys: Sequence[bytes], values: Records, offsets: I64, size: int = 0) -> None:
        """Read rows back, no two of one key, with the offsets of their records. Raises `ValueError` for a key of
        another format. Of a block the offsets are all the same and `size` is the number of rows it has, these among
        them."""
        rows = self._known(keys)
        self._replace(rows, values)
        self.wrote_singly(rows, offsets)
        if size:
            self._written[int(offsets[0])] = _Written(size, len(rows), rows.astype(np.int32))

    def restore_one(self, key: bytes, found: Sums | None, offset: int) -> None:
        """Read back a row whose numbers may not fit into columns; None: it is gone."""
        rows = self._known([key])
        self._replace_one(int(rows[0]), found)
        self.wrote_singly(rows, np.array([NEVER if found is None else offset]))

    def _known(self, keys: Sequence[bytes]) -> I64:
        """The rows with these keys; those that there are not are made."""
        places = user_places(self._partition, keys)
        groups = np.array(list(map(self.group, places.groups)), np.int64)[places.codes]
        hashes = self._hashes(places.users, np.arange(len(keys)), groups)
        rows = self._index.find(hashes)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            users = [places.users[number] for number in unknown.tolist()]
            made = rows[unknown] = self._make(groups[unknown], users, hashes.take(unknown))
            for number, key in zip(unknown.tolist(), self._keys.take(made), strict=True):
                if keys[number] != key:
                    raise ValueError(f"not a row key: {keys[number]!r} ({key!r} has the same meaning)")
        return rows


def pieces_of(changes: UserChanges) -> Iterator[slice]:
    """Changes in pieces of at most `MAX_BLOCK` rows."""
    for start in range(0, len(changes.rows), MAX_BLOCK):
        yield slice(start, start + MAX_BLOCK)


def blocks_of(changes: UserChanges, seed: int) -> Iterator[RowBlock]:
    """These pieces as blocks. `seed`: see `row_block.seed_of`."""
    for piece in pieces_of(changes):
        keys = changes.keys[piece]
        yield RowBlock(keys, row_block.key_hashes(keys, seed), changes.values[piece])
