"""How many events each user of a project has in a segment, for those who are in many of its row groups.

The index says in which row groups a user may be, and where that is nearly all of them, counting a user's events means
to read a column of the whole segment. Users in few row groups are looked for there, and have no counts.

    page = hashes (u32), rows (u32), calls (u32), ends of texts (u32), texts; entries in the order of their hashes

A text is the project's name, a zero byte and the user. Readers compare it, so a count is exact whatever the hashes.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from processor.core.kernel.loaded import kernel
from processor.event_store import compiled_take
from processor.event_store.compiled_take import TakenPlaces

MANY: Final = 8
"""Row groups; of users who are in more of them the events are counted."""
MOST_BYTES: Final = 32 << 20
"""Of the different users of all row groups. With more of them, few come again often: none are counted."""
_NUMBER: Final = np.dtype("<u4")

I64 = NDArray[np.int64]


class Tally(NamedTuple):
    """The events of one user of a project in a segment."""

    rows: int
    calls: int


class UserCounts(NamedTuple):
    """The events of users, without an object for each of them: ten thousand took a twentieth of a merge."""

    keys: Any
    """An Arrow array of different texts: see `key_of`."""
    rows: I64
    calls: I64

    def of(self, places: I64) -> "UserCounts":
        """Return those of some users."""
        return UserCounts(self.keys.take(pa.array(places)), self.rows[places], self.calls[places])


NONE: Final = UserCounts(pa.array([], pa.string()), np.empty(0, np.int64), np.empty(0, np.int64))


class _Group(NamedTuple):
    """The users of one project in one row group."""

    users: Any
    """An Arrow array of different texts."""
    rows: I64
    """Of each of them."""
    calls: I64


class UserCounter:
    """Counts the events of the users of a segment, row group by row group."""

    def __init__(self) -> None:
        self._groups: dict[str, list[_Group]] = {}
        self._bytes = 0

    def add(self, project: str, users: Any, flags: NDArray[np.uint8]) -> None:
        """Add the rows of a project in the next row group: an Arrow array of texts, null for none, and of each row a
        flag, odd for a call."""
        if self._bytes > MOST_BYTES:
            return
        found = counted_users(users, flags) if kernel is None else compiled_users(users, flags)
        self._groups.setdefault(project, []).append(found)
        self._bytes += found.users.nbytes
        if self._bytes > MOST_BYTES:
            self._groups.clear()

    def counted(self) -> UserCounts:
        """Return the events of the users in more than `MANY` row groups."""
        found = [NONE]
        for project, groups in self._groups.items():
            if len(groups) <= MANY:
                continue
            encoded = pa.concat_arrays([each.users for each in groups]).dictionary_encode()
            codes, size = encoded.indices.to_numpy(), len(encoded.dictionary)
            wanted = np.flatnonzero(np.bincount(codes, minlength=size) > MANY)
            rows, calls = np.zeros(size, np.int64), np.zeros(size, np.int64)
            np.add.at(rows, codes, np.concatenate([each.rows for each in groups]))
            np.add.at(calls, codes, np.concatenate([each.calls for each in groups]))
            users = encoded.dictionary.take(pa.array(wanted))
            found.append(
                UserCounts(pc.binary_join_element_wise(key_of(project, ""), users, ""), rows[wanted], calls[wanted])
            )
        every, *tallies = zip(*found, strict=True)
        return UserCounts(pa.concat_arrays(every), *map(np.concatenate, tallies))


def counted_users(users: Any, flags: NDArray[np.uint8]) -> _Group:
    """Return the different users of some rows, and the rows and calls of each: `counted_texts` does the same."""
    encoded = users.dictionary_encode()
    size = len(encoded.dictionary)
    codes = encoded.indices.fill_null(size).to_numpy()
    rows, calls = (np.bincount(each, minlength=size + 1)[:size] for each in (codes, codes[(flags & 1) == 1]))
    return _Group(encoded.dictionary, rows, calls)


def compiled_users(users: Any, flags: NDArray[np.uint8]) -> _Group:
    """Return the same by the kernel."""
    assert kernel is not None
    there, offsets, data = users.buffers()
    found = kernel.counted_texts(there if users.null_count else None, data, offsets, users.offset, len(users), flags)
    if found is None:  # they take more than a mebibyte
        return counted_users(users, flags)
    places, rows, calls = found
    texts = compiled_take.array(users, TakenPlaces.in_one(np.frombuffer(places, np.int32)))
    return _Group(texts, np.frombuffer(rows, np.int64), np.frombuffer(calls, np.int64))


def key_of(project: str, user: str) -> str:
    """Return the text that stands for a user of a project."""
    return f"{project}\0{user}"


def page_of(hashes: NDArray[np.uint32], counts: UserCounts) -> bytes:
    """Return a page of entries, which are in the order of their hashes."""
    _, offsets, data = counts.keys.buffers()
    ends = np.frombuffer(offsets, np.int32)[counts.keys.offset : counts.keys.offset + len(counts.keys) + 1]
    first, last = int(ends[0]), int(ends[-1])
    numbers = [each.astype(_NUMBER).tobytes() for each in (hashes, counts.rows, counts.calls, ends[1:] - first)]
    return b"".join([*numbers, data.slice(first, last - first)])


def tally_in(page: bytes, entries: int, hashed: np.uint32, key: bytes) -> Tally | None:
    """Return what a page of so many entries has of a text with this hash; None: it is not there."""
    hashes, rows, calls, ends = np.frombuffer(page, _NUMBER, 4 * entries).reshape(4, entries)
    text = 4 * entries * _NUMBER.itemsize
    for place in range(*(int(np.searchsorted(hashes, hashed, side)) for side in ("left", "right"))):
        start = int(ends[place - 1]) if place else 0
        if page[text + start : text + int(ends[place])] == key:
            return Tally(int(rows[place]), int(calls[place]))
    return None
