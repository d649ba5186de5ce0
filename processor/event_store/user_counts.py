"""How many events each user of a project has in a segment, for those who are in many of its row groups.

The index says in which row groups a user may be, and where that is nearly all of them, counting a user's events means
to read a column of the whole segment. Users in few row groups are looked for there, and have no counts.

    page = hashes (u32), rows (u32), calls (u32), ends of texts (u32), texts; entries in the order of their hashes

A text is the project's name, a zero byte and the user. Readers compare it, so a count is exact whatever the hashes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MANY: Final = 8
"""Row groups; of users who are in more of them the events are counted."""
MOST_BYTES: Final = 32 << 20
"""Of the different users of all row groups. With more of them, few come again often: none are counted."""
_NUMBER: Final = np.dtype("<u4")

I64 = NDArray[np.int64]
Counts = Mapping[tuple[str, str], "Tally"]
"""(Project, user) -> events."""


class Tally(NamedTuple):
    """The events of one user of a project in a segment."""

    rows: int
    calls: int


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

    def add(self, project: str, users: Any, is_call: NDArray[np.bool_]) -> None:
        """Add the rows of a project in the next row group: an Arrow array of texts, null for none."""
        if self._bytes > MOST_BYTES:
            return
        encoded = users.dictionary_encode()
        texts, size = encoded.dictionary, len(encoded.dictionary)
        codes = encoded.indices.fill_null(size).to_numpy()
        rows, calls = (np.bincount(each, minlength=size + 1)[:size] for each in (codes, codes[is_call]))
        self._groups.setdefault(project, []).append(_Group(texts, rows, calls))
        self._bytes += texts.nbytes
        if self._bytes > MOST_BYTES:
            self._groups.clear()

    def counted(self) -> Counts:
        """Return (project, user) -> events, of the users in more than `MANY` row groups."""
        found: dict[tuple[str, str], Tally] = {}
        for project, groups in self._groups.items():
            if len(groups) <= MANY:
                continue
            encoded = pa.concat_arrays([each.users for each in groups]).dictionary_encode()
            codes, size = encoded.indices.to_numpy(), len(encoded.dictionary)
            wanted = np.flatnonzero(np.bincount(codes, minlength=size) > MANY)
            rows, calls = np.zeros(size, np.int64), np.zeros(size, np.int64)
            np.add.at(rows, codes, np.concatenate([each.rows for each in groups]))
            np.add.at(calls, codes, np.concatenate([each.calls for each in groups]))
            texts = encoded.dictionary.take(pa.array(wanted)).to_pylist()
            tallies = map(Tally, rows[wanted].tolist(), calls[wanted].tolist())
            found.update(zip(((project, text) for text in texts), tallies, strict=True))
        return found


def key_of(project: str, user: str) -> str:
    """Return the text that stands for a user of a project."""
    return f"{project}\0{user}"


def page_of(hashes: NDArray[np.uint32], keys: Sequence[str], tallies: Sequence[Tally]) -> bytes:
    """Return a page of entries, which are in the order of their hashes."""
    texts = [key.encode() for key in keys]
    rows, calls = zip(*tallies, strict=True)
    numbers = [np.array(each, _NUMBER) for each in (hashes, rows, calls, np.cumsum([*map(len, texts)]))]
    return b"".join([*(each.tobytes() for each in numbers), *texts])


def tally_in(page: bytes, entries: int, hashed: np.uint32, key: bytes) -> Tally | None:
    """Return what a page of so many entries has of a text with this hash; None: it is not there."""
    hashes, rows, calls, ends = np.frombuffer(page, _NUMBER, 4 * entries).reshape(4, entries)
    text = 4 * entries * _NUMBER.itemsize
    for place in range(*(int(np.searchsorted(hashes, hashed, side)) for side in ("left", "right"))):
        start = int(ends[place - 1]) if place else 0
        if page[text + start : text + int(ends[place])] == key:
            return Tally(int(rows[place]), int(calls[place]))
    return None
