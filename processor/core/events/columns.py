"""The valid events of a request in columns: what a message carries and the tables are made of.

One fixed-width row an event, and beside it two dictionaries that the rows point into: the users, and what else the
events are told apart by. A request of a hundred events has a handful of the second kind, so that whatever is done with
these strings, from here to the tables, is done a handful of times.
"""

import operator
import struct
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import accumulate, chain, count
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
import xxhash
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.clock import HOUR
from processor.core.events.bulk_checks import Ints
from processor.core.kernel.loaded import kernel

Dim = tuple[int, str, str, str, str, str]
"""Hour since the epoch (event time), provider, model, environment, operation, status."""

UNPRICED_FLAG: Final = 1
SPAN_FLAG: Final = 2
"""A step that is no call: it counts in no row of cost, and its tokens are information."""

CLIENT: Final = "client"
"""The `cost_source` of a cost that the sender has stated."""

ROW: Final = np.dtype(
    [
        ("id", "<u8", (2,)),
        ("digest", "<u8"),
        ("at", "<i8"),
        ("input", "<i8"),
        ("output", "<i8"),
        ("cached", "<i8"),
        ("cost", "<i8"),
        ("user", "<u2"),
        ("dim", "<u2"),
        ("flags", "u1"),
        ("latency", "u1"),
        ("cost_source", "u1"),
        ("spare", "u1"),
    ]
)
"""One event: 72 bytes, every number at a multiple of its size. `at` in microseconds, `cost` in picodollars; `user` and
`dim` count in the dictionaries beside the rows; `latency` is a bucket (`latency`); `cost_source` is 0 for none, else
1 + its place among the names beside the rows."""

_OFFSETS: Final = {"user": 64, "dim": 66}
"""Where the columns of 16 bits are in a row."""

SUMMED: Final = ("input", "output", "cached", "cost")
"""The columns that are added up."""

Rows = NDArray[np.void]
"""An array of `ROW`."""

Hot = tuple[str, str | None, int, str, str, str, str, str, int, int, int, int, int, int, int, bytes]
"""One event by itself: event_id, user, timestamp, provider, model, environment, operation, status, input, output and
cached tokens, cost, flags, bucket of the latency, `recent_part` of its digest, original bytes."""


class Columns(Struct):
    """Events of one request, in its order."""

    rows: Rows
    users: list[str | None]
    """Each once; None: not attributed. As among `dims` there may be some of others that were decoded with these."""
    dims: list[Dim]
    """Each once."""
    records: Sequence[bytes]
    """The events' original bytes."""
    cost_sources: list[str]
    """Where costs are from: the sender, or a price list by its name."""
    has_spans: bool = False
    """False: all are calls."""

    def __len__(self) -> int:
        return len(self.records)

    def without_spans(self) -> "tuple[Columns, Sequence[int]]":
        """The calls, and the place of each among all events."""
        if not self.has_spans:
            return self, range(len(self))
        places = np.flatnonzero(self.rows["flags"] & SPAN_FLAG == 0)
        return self.at(places), places.tolist()

    def cut(self, start: int, records: Sequence[bytes]) -> "Columns":
        """The events from a place on whose records these are; they share rows and dictionaries with all others."""
        rows = self.rows[start : start + len(records)]
        has_spans = self.has_spans and bool((rows["flags"] & SPAN_FLAG).any())
        return Columns(rows, self.users, self.dims, records, self.cost_sources, has_spans)

    def used_dims(self) -> list[Dim]:
        """Those of `dims` that these events have."""
        return [self.dims[number] for number in dict.fromkeys(self.rows["dim"].tolist())]

    def at(self, places: NDArray[np.int64]) -> "Columns":
        """Those of the events at these places, with dictionaries of what they point to."""
        rows = self.rows[places]
        return Columns(
            rows,
            pointed_to(rows, "user", self.users),
            pointed_to(rows, "dim", self.dims),
            [self.records[place] for place in places.tolist()],
            self.cost_sources,
        )


class Recent(NamedTuple):
    """What the fields that are new in version 5 say of some events."""

    spans: list[int]
    """The places of those that are spans."""
    digests: NDArray[np.uint64]
    """`recent_part` of each."""


def columns_of(events: Iterable[Hot]) -> Columns:
    """Columns of events one by one: the way for the few, for which the calls of `assemble` cost more than they save."""
    users: dict[str | None, int] = {}
    dims: dict[Dim, int] = {}
    rows: list[bytes] = []
    records: list[bytes] = []
    every_flag = 0
    for event in events:
        event_id, user, at, provider, model, environment, operation, status = event[:8]
        *numbers, flags, latency, recent, record = event[8:]
        dim = (at // HOUR, provider, model, environment, operation, status)
        named = (_hash_of_user(user), _hash_of_dim(dim), at, *numbers, flags)
        digest = _mixed(recent + sum(map(operator.mul, named, _FACTOR_NUMBERS)))
        every_flag |= flags
        user_code, dim_code = users.setdefault(user, len(users)), dims.setdefault(dim, len(dims))
        raw_id = bytes.fromhex(event_id.replace("-", ""))
        rows.append(_pack_row(raw_id, digest, at, *numbers, user_code, dim_code, flags, latency, int(not flags)))
        records.append(record)
    has_spans = bool(every_flag & SPAN_FLAG)
    return Columns(np.frombuffer(b"".join(rows), ROW), list(users), list(dims), records, [CLIENT], has_spans)


def assemble(
    ids: bytes,
    users: Iterable[str | None],
    times: Ints,
    names: Sequence[Iterable[str]],
    tokens: Sequence[Iterable[int]],
    costs: Ints,
    latencies: NDArray[np.uint8],
    records: Sequence[bytes],
    recent: Recent | None = None,
    unpriced: Sequence[int] = (),
) -> Columns:
    """Put columns of events together; `names` are those of `Dim` after the hour, `tokens` those of `ROW`. `unpriced`:
    the places of calls without a cost, which is 0 for them."""
    size = len(records)
    rows = np.empty(size, ROW)
    rows["id"] = np.frombuffer(ids, "<u8").reshape(-1, 2)
    rows["at"] = times
    for name, column in zip(SUMMED, tokens, strict=False):
        rows[name] = np.fromiter(column, np.int64, size)
    rows["cost"] = costs
    rows["flags"] = rows["spare"] = 0
    rows["cost_source"] = 1
    rows["latency"] = latencies
    rows["user"], found_users = numbered(users, size)
    rows["dim"], found_dims = numbered(zip((times // HOUR).tolist(), *names, strict=True), size)
    if recent is not None and recent.spans:
        rows["flags"][recent.spans], rows["cost_source"][recent.spans] = SPAN_FLAG, 0
    if unpriced:
        rows["flags"][unpriced], rows["cost_source"][unpriced] = UNPRICED_FLAG, 0
    rows["digest"] = _digests(rows, found_users, found_dims, None if recent is None else recent.digests)
    return Columns(rows, found_users, found_dims, records, [CLIENT], recent is not None and bool(recent.spans))


_T = TypeVar("_T", bound=Hashable)


def numbered(values: Iterable[_T], size: int) -> tuple[NDArray[np.uint16], list[_T]]:
    """Each value's place among the distinct ones, and those. Raises `ValueError` beyond 65,536 of them."""
    numbers: defaultdict[_T, int] = defaultdict(count().__next__)  # so that a new one is numbered without Python code
    try:
        codes = np.fromiter(map(numbers.__getitem__, values), np.uint16, size)
    except OverflowError:
        raise ValueError("too many different values for one request") from None
    return codes, list(numbers)


def with_prices(columns: Columns, prices: Mapping[int, tuple[int, str]]) -> Columns:
    """Give events that came without a cost one from a price list: place -> (picodollars, the list).

    Their digests stay those of events without a cost, so that a newer list makes no conflict of a second copy.
    """
    rows = columns.rows.copy()
    cost_sources = list(dict.fromkeys([*columns.cost_sources, *(name for _, name in prices.values())]))
    numbers = {name: number for number, name in enumerate(cost_sources, start=1)}
    places = list(prices)
    rows["cost"][places] = [cost for cost, _ in prices.values()]
    rows["cost_source"][places] = [numbers[name] for _, name in prices.values()]
    rows["flags"][places] &= ~UNPRICED_FLAG & 0xFF
    return Columns(rows, columns.users, columns.dims, columns.records, cost_sources, columns.has_spans)


def with_digests(columns: Columns, digests: Mapping[int, int]) -> Columns:
    """Give the events at some places digests that are not made of the event alone: place -> 64 bits."""
    rows = columns.rows.copy()
    rows["digest"][list(digests)] = np.fromiter(digests.values(), np.uint64, len(digests))
    return Columns(rows, columns.users, columns.dims, columns.records, columns.cost_sources, columns.has_spans)


def concatenated(parts: Sequence[Rows]) -> Rows:
    """All rows in one new array. `np.concatenate` would compare the fields of each part in Python."""
    return np.frombuffer(bytearray().join([part.data for part in parts]), ROW)


def one_dictionary(
    rows: Rows, name: Literal["user", "dim"], blocks: Sequence[list[_T]], sizes: Sequence[int]
) -> list[_T]:
    """Let a column of several blocks' rows, of these sizes, point into one dictionary, which has nothing that none of
    them points to, and return that.

    Raises `ValueError` for a row that points to nothing.
    """
    if kernel is not None:
        found: list[_T] | None = kernel.one_dictionary(rows, ROW.itemsize, _OFFSETS[name], blocks, sizes, False)
        if found is not None:
            return found
    return _one_dictionary_by_numpy(rows, name, blocks, sizes)


def _one_dictionary_by_numpy(
    rows: Rows, name: Literal["user", "dim"], blocks: Sequence[list[_T]], sizes: Sequence[int]
) -> list[_T]:
    """The kernel's twin, which says what is wrong with a row."""
    runs: list[list[_T]] = []
    lengths: list[int] = []
    for dictionary, size in zip(blocks, sizes, strict=True):
        if runs and dictionary is runs[-1]:  # neighbours often share one, and use some of it
            lengths[-1] += size
        else:
            runs.append(dictionary)
            lengths.append(size)
    values = runs[0] if len(runs) == 1 else join_dictionaries(rows[name], runs, lengths)
    return only_used(rows[name], values)


def pointed_to(rows: Rows, name: Literal["user", "dim"], values: list[_T]) -> list[_T]:
    """Let a column that points into a dictionary point into one of what it points to, in the order of the rows, and
    return that."""
    if kernel is not None:
        found: list[_T] | None = kernel.one_dictionary(rows, ROW.itemsize, _OFFSETS[name], [values], [len(rows)], True)
        if found is not None:
            return found
    rows[name], used = numbered(rows[name].tolist(), len(rows))
    return [values[number] for number in used]


def join_dictionaries(codes: NDArray[Any], dictionaries: Sequence[Sequence[_T]], sizes: Sequence[int]) -> list[_T]:
    """Let a column of several blocks' rows, of these sizes, point into one dictionary, and return that.

    Raises `ValueError` for a row that points to nothing.
    """
    lengths = list(map(len, dictionaries))
    if (codes >= np.repeat(lengths, sizes)).any():
        raise ValueError("a row points to nothing")
    places, values = numbered(chain.from_iterable(dictionaries), sum(lengths))
    starts = list(accumulate(lengths, initial=0))[:-1]
    codes[:] = places[codes + np.repeat(starts, sizes)]
    return values


def only_used(codes: NDArray[Any], values: list[_T]) -> list[_T]:
    """Let a column point into a dictionary that has nothing that it does not point to, and return that."""
    if np.bincount(codes, minlength=len(values)).all():
        return values
    codes[:], used = numbered(codes.tolist(), len(codes))
    return [values[number] for number in used]


# --- digests ---------------------------------------------------------------------------------------------------------

_pack = msgspec.msgpack.Encoder().encode
_hash = xxhash.xxh3_64_intdigest
_pack_row: Final = struct.Struct("<16sQ5qHHBBBx").pack
FACTORS: Final = np.array([_hash(bytes([number])) | 1 for number in range(8)], np.uint64)
"""Odd, so that no change of a single number is lost. Part of the log's format, like all of `_digests`."""
_FACTOR_NUMBERS: Final[list[int]] = FACTORS.tolist()


RECENT_FACTORS: Final = [_hash(bytes([number])) | 1 for number in range(8, 11)]


def recent_part(name: str | None, cache_write: int | None, reasoning: int | None) -> int:
    """What a name and the recent counts of tokens add to an event's digest: 0 for those that are missing, so that
    events without them keep theirs."""
    numbers = _hash(name.encode()) if name else 0, cache_write or 0, reasoning or 0
    found: int = sum(map(operator.mul, numbers, RECENT_FACTORS)) % 2**64
    return found


def _digests(
    rows: Rows, users: Sequence[str | None], dims: Sequence[Dim], recent: NDArray[np.uint64] | None = None
) -> NDArray[np.uint64]:
    """64 bits for all that a second copy of an event may differ in (contract, "conflict").

    A hash of each distinct user and dim, and of the numbers their sum of products modulo 2^64, mixed. A sender
    may look for two events of the same digest, and would hide a conflict of its own only.
    """
    names = np.fromiter([_hash((user or "").encode()) for user in users], np.uint64, len(users))
    kinds = np.fromiter(map(_hash_of_dim, dims), np.uint64, len(dims))
    found: NDArray[np.uint64] = names[rows["user"]] * FACTORS[0] + kinds[rows["dim"]] * FACTORS[1]
    for factor, name in zip(FACTORS[2:], ("at", *SUMMED, "flags"), strict=True):
        found += rows[name].astype(np.uint64) * factor
    if recent is not None:
        found += recent
    found ^= found >> np.uint64(32)
    found *= FACTORS[0]
    found ^= found >> np.uint64(29)
    return found


def _mixed(total: int) -> int:
    """The last steps of `_digests` on a Python integer."""
    total %= 2**64
    total ^= total >> 32
    total = total * int(FACTORS[0]) % 2**64
    return total ^ total >> 29


def _hash_of_user(user: str | None) -> int:
    return _hash((user or "").encode())


def _hash_of_dim(dim: Dim) -> int:
    return _hash(_pack(dim))
