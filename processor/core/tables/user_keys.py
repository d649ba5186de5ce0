"""The changelog keys of users' rows by number, without an object for each: of most rows only the user differs."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from processor.core.growing_arrays import I64
from processor.core.kernel.loaded import kernel
from processor.core.tables.user_places import GroupKey

_encode: Final = msgspec.json.Encoder().encode


class UserKeys:
    """Keys, numbered as they are added: 12 bytes each besides the user's name as JSON."""

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
