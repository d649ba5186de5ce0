"""One partition's rows of hours, in columns: the events of a message may belong to a thousand of them.

There are far fewer of them than rows of users, so a dictionary maps their keys to numbers, and each has a record of its
own in the changelog.
"""

from collections.abc import Iterable, Iterator, Sequence
from sys import intern

import numpy as np

from processor.core.growing_arrays import I64, Records
from processor.core.tables import row_block, table_rows
from processor.core.tables.numbered_rows import Drained, SumRows
from processor.core.tables.table_rows import NEVER, HourKey, Sums


class HourRows(SumRows):
    """The rows, and which of them have changed since the last `drain`.

    A number without events is no row: the row was deleted, or only its histogram was read back.
    """

    def __init__(self, partition: int) -> None:
        self._keys: list[bytes] = []
        super().__init__(self._keys)
        self._partition = partition
        self._numbers: dict[HourKey, int] = {}

    @property
    def keys(self) -> Sequence[bytes]:
        """The changelog keys, by number."""
        return self._keys

    @property
    def places(self) -> list[HourKey]:
        """The keys of the rows, by number."""
        return list(self._numbers)

    def numbers_of(self, places: Iterable[HourKey]) -> I64:
        """Return the numbers of rows. Adds those that do not exist."""
        numbers, keys = self._numbers, self._keys
        found: list[int] = []
        for place in places:
            number = numbers.get(place)
            if number is None:
                project, hour, provider, model, environment = place
                kept = intern(project), hour, intern(provider), intern(model), intern(environment)
                number = numbers[kept] = len(keys)
                keys.append(table_rows.encode_key(self._partition, "hour", *kept))
            found.append(number)
        self._grow()
        return np.array(found, np.int64)

    def read(self, keys: Sequence[bytes]) -> I64:
        """Return the same for changelog keys, of hours or of latencies. Raises `ValueError` for another format."""
        places = table_rows.decode_hours(keys)
        return self.numbers_of((at.project, at.hour, at.provider, at.model, at.environment) for at in places)

    def rows(self) -> Iterator[tuple[HourKey, Sums]]:
        """Yield all rows. Makes an object for each: not for the hot path."""
        places = self.places
        for row, found in self._all():
            yield places[row], found

    # --- the changelog ----------------------------------------------------------------------------------------------

    def drain(self) -> list[Drained]:
        """Return what has changed since the last call."""
        rows, wide = self._take_changed_apart()
        keys = list(map(self._keys.__getitem__, rows.tolist()))
        return [self._drained(rows, row_block.pairs(keys, self._values.take(rows))), *wide]

    def restore(self, keys: Sequence[bytes], values: Records, offsets: I64) -> None:
        """Read back rows of distinct keys, with the offsets of their records. Raises `ValueError` for a key of another
        format."""
        rows = self.read(keys)
        self._replace(rows, values)
        self._move(rows, offsets)

    def restore_one(self, key: bytes, found: Sums | None, offset: int) -> None:
        """Read back a row, which may not fit into columns. None: the row is deleted."""
        rows = self.read([key])
        self._replace_one(int(rows[0]), found)
        self._move(rows, np.array([NEVER if found is None else offset]))
