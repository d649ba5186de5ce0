"""One partition's rows of users, in columns: there may be millions, and nearly every event of a message has its own.

A row of sums (`numbered_rows`) is found by 128 bits of hash of its user and of what else it is kept by, without a
look-up for each event. A user's half of the hash is computed once for each name in a message, the other half once for
each group.
"""

from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from sys import intern
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.growing_arrays import I64, Records, Segments
from processor.core.hash_index import HASH, HashIndex, hashes_of, name_hashes
from processor.core.kernel.loaded import kernel
from processor.core.tables import row_block, table_rows
from processor.core.tables.numbered_rows import Dead, Drained, SumRows
from processor.core.tables.row_block import RowBlock
from processor.core.tables.table_rows import NEVER, Sums, UserPlace
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


class UserKeys:
    """The changelog keys of rows, numbered as they are added. Of most only the user differs, so each takes 12 bytes
    besides the user's name as JSON, and no object."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._starts: list[bytes] = []  # of each group, what its keys have before the user
        self._ends: list[bytes] = []  # and behind it
        self._groups = array("i")
        self._bounds = array("q", [0])  # where each name begins, and where the last one ends
        self._texts = bytearray()

    def __len__(self) -> int:
        return len(self._groups)

    def add_group(self, key: GroupKey) -> None:
        """Add a group, whose number is how many there were before."""
        project, *rest = key
        self._starts.append(b'[%d,"user",%b,' % (self._partition, _encode(project)))
        self._ends.append(b"," + _encode(rest)[1:])

    def extend(self, groups: I64, users: Sequence[str | None]) -> None:
        """Add the keys of users, each in one of the groups."""
        texts, lengths = _texts_of(users)
        bounds = np.cumsum(lengths)
        bounds += len(self._texts)
        self._texts += texts
        self._groups.frombytes(groups.astype(np.int32).tobytes())
        self._bounds.frombytes(bounds.tobytes())

    def __getitem__(self, number: int) -> bytes:
        group, name = self._groups[number], self._texts[self._bounds[number] : self._bounds[number + 1]]
        return self._starts[group] + name + self._ends[group]

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(len(self)))

    def take(self, numbers: I64) -> list[bytes]:
        """The keys with these numbers."""
        if kernel is None:
            return list(map(self.__getitem__, numbers.tolist()))
        keys: list[bytes] = kernel.row_keys(
            self._starts, self._ends, self._groups, self._bounds, self._texts, np.ascontiguousarray(numbers)
        )
        return keys


def _texts_of(users: Sequence[str | None]) -> tuple[bytes | bytearray, I64]:
    """Names as JSON, one behind the other, and how long each is."""
    if kernel is not None:
        texts, lengths = kernel.name_texts(list(users), _encode)
        return texts, np.frombuffer(lengths, np.int64)
    encoded = list(map(_encode, users))
    return b"".join(encoded), np.fromiter(map(len, encoded), np.int64, len(encoded))


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

    def drain(self, seed: int | None) -> list[Drained]:
        """Return what has changed since the last call: in blocks, or without their `seed` (`row_block.seed_of`) with a
        record for each row; those that do not fit into a block come last."""
        rows, wide = self._take_changed_apart()
        if seed is None:
            return [self._drained(rows, row_block.pairs(self._keys.take(rows), self._values.take(rows))), *wide]
        return [*(self._block(rows[at : at + MAX_BLOCK], seed) for at in range(0, len(rows), MAX_BLOCK)), *wide]

    def _block(self, rows: I64, seed: int) -> Drained:
        """Return rows with one record for all."""
        keys = self._keys.take(rows)
        block = RowBlock(keys, row_block.key_hashes(keys, seed), self._values.take(rows))
        record = row_block.key_of(self._partition), row_block.encode(block)
        return Drained(len(rows), [record], partial(self._wrote_block, rows))

    def _wrote_block(self, rows: I64, offsets: I64) -> list[Dead]:
        [offset] = offsets.tolist()
        self._written[offset] = _Written(len(rows), len(rows), rows.astype(np.int32))
        return self._wrote(rows, np.full(len(rows), offset))

    def _wrote(self, rows: I64, offsets: I64) -> list[Dead]:
        """See `NumberedRows`: a block is replaced with the last of its rows."""
        dead = []
        before = np.unique(self._move(rows, offsets), return_counts=True)
        for offset, count in zip(*(found.tolist() for found in before), strict=True):
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

    def restore(self, keys: Sequence[bytes], values: Records, offsets: I64, size: int = 0) -> None:
        """Read rows back, no two of one key, with the offsets of their records. Raises `ValueError` for a key of
        another format. Of a block the offsets are all the same and `size` is the number of rows it has, these among
        them."""
        rows = self._known(keys)
        self._replace(rows, values)
        self._wrote(rows, offsets)
        if size:
            self._written[int(offsets[0])] = _Written(size, len(rows), rows.astype(np.int32))

    def restore_one(self, key: bytes, found: Sums | None, offset: int) -> None:
        """Read back a row whose numbers may not fit into columns; None: it is gone."""
        rows = self._known([key])
        self._replace_one(int(rows[0]), found)
        self._wrote(rows, np.array([NEVER if found is None else offset]))

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
