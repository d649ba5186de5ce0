"""Records of the changelog, sorted: which of a batch go into columns, and which are applied one by one.

Nothing here changes a view, so a batch with a record of another format raises before anything has changed.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from processor.core.growing_arrays import Records
from processor.core.hash_index import HASH
from processor.core.tables import row_block, row_bytes, row_dtype, table_rows
from processor.core.tables.horizon import Horizon
from processor.core.tables.row_sums import RowSums
from processor.core.tables.table_rows import HourPlace, Progress, Sums
from processor.core.tables.user_places import UserPlaces, plain_places, user_places
from processor.view.limbs import SAFE_BITS

Change = tuple[bytes, bytes | None]

_ZERO: Final = table_rows.encode_value(Sums(b""))
_BINARY: Final = {row_bytes.SIZE}
_ROWS: Final = {"user", "hour"}
_sums = msgspec.json.Decoder(tuple[int, int, int, int, int, int, int, int, int, int]).decode
_counts = msgspec.json.Decoder(tuple[int, int, int, int]).decode
_numbers = msgspec.json.Decoder(list[int]).decode


class Wide(NamedTuple):
    """A row that does not fit into columns."""

    offset: int
    """The offset of the last message applied to it."""
    sums: RowSums


class ChangelogBatch(Struct, gc=False):
    """The last record of each key in a batch."""

    keys: Sequence[bytes]
    """Rows of users and hours."""
    hashes: Records
    """Hashes of the keys, see `row_block.key_hashes`."""
    rows: Records
    """Their values: shape (n,), `row_dtype.DTYPE`, may be overwritten. Zeros for wide and deleted rows."""
    wide: dict[int, Wide]
    """Index in `keys` -> a row that does not fit into columns."""
    gone: list[int]
    """Indexes in `keys` of tombstones."""
    windows: list[tuple[bytes, tuple[Any, ...], bytes | None]]
    """(key, its parts after the kind, value)."""
    progress: Progress | None
    """To be applied after everything else."""
    latencies: list[tuple[HourPlace, bytes | None]]
    """(place, value)."""
    horizon: int = 0
    """The instant up to which windows may be gone; 0: no change."""


def changes_of(keys: Sequence[bytes], hashes: Records, values: Records) -> ChangelogBatch:
    """Return a batch of packed rows with distinct keys; `values` are overwritten."""
    changes = ChangelogBatch(keys, hashes, values, {}, [], [], None, [])
    _set_wide_apart(values, changes.wide)
    return changes


def sort_out(partition: int, records: Sequence[Change], seed: int = 0) -> ChangelogBatch:
    """Return a batch of single records of one changelog partition. Raises `ValueError` for one of another format."""
    latest = dict(records)
    others = [key for key, value in latest.items() if value is None or value[:1] != row_bytes.MARK]
    changes = ChangelogBatch([], np.empty(0, HASH), np.empty(0, row_dtype.DTYPE), {}, [], [], None, [])
    late: list[tuple[bytes, Wide | None]] = []
    histograms = b'[%d,"latency",' % partition
    of_latencies = [key for key in others if key.startswith(histograms)]
    if of_latencies:
        _latencies(of_latencies, list(map(latest.pop, of_latencies)), changes)
        others = [key for key in others if not key.startswith(histograms)]
    for key in others:
        _other(partition, key, latest.pop(key), changes, latest, late)
    keys, values = list(latest), list(latest.values())
    if values and set(map(len, values)) != _BINARY:  # type: ignore[arg-type] # the tombstones have been taken out
        raise ValueError("not a row of the changelog: the numbers of a row have another length")
    for key, row in late:
        if row is None:
            changes.gone.append(len(keys))
        else:
            changes.wide[len(keys)] = row
        keys.append(key)
        values.append(_ZERO)
    changes.keys, changes.hashes = keys, row_block.key_hashes(keys, seed)
    changes.rows = np.frombuffer(bytearray().join(values), row_dtype.DTYPE)  # type: ignore[arg-type] # the same
    _set_wide_apart(changes.rows, changes.wide)
    return changes


def _set_wide_apart(rows: Records, wide: dict[int, Wide]) -> None:
    high = (rows["input_tokens"] | rows["output_tokens"] | rows["cached_tokens"]) >> SAFE_BITS
    over = np.flatnonzero((high != 0) | (rows["cost"] < 0))
    for index in over.tolist():
        wide[index] = _wide(row_bytes.listed(rows[index].item()))
        rows[index] = np.zeros((), row_dtype.DTYPE)


def _wide(listed: Sequence[int]) -> Wide:
    """Return the numbers of a row in the changelog."""
    offset, *sums = listed
    return Wide(offset, RowSums(*sums))


def _latencies(keys: list[bytes], values: list[bytes | None], changes: ChangelogBatch) -> None:
    """Sort histograms, all at once: there may be a thousand in each flush."""
    places = table_rows.decode_hours(keys)
    numbers = table_rows.decode_lists([value for value in values if value is not None])
    if not all(len(each) % 2 for each in numbers):
        raise ValueError("not a row of the changelog: latencies are an offset, and pairs of bucket and count")
    changes.latencies += zip(places, values, strict=True)


def _other(
    partition: int,
    key: bytes,
    value: bytes | None,
    changes: ChangelogBatch,
    latest: dict[bytes, bytes | None],
    late: list[tuple[bytes, Wide | None]],
) -> None:
    """Sort a record that is not packed: of another kind, of an older version, wide, or a tombstone."""
    home, kind, parts = table_rows.decode_key(key)
    if home != partition:
        raise _misplaced(partition, key)
    try:
        if kind == "window":
            if len(parts) != 4 or (value is not None and not _counts(value)):
                raise ValueError(f"not a row of the changelog: {key[:80]!r}")
            changes.windows.append((key, parts, value))
        elif kind == "progress":
            if value is None:
                raise ValueError(f"the progress of partition {partition} was deleted")
            changes.progress = table_rows.progress_of(key, _numbers(value))
        elif kind in _ROWS:
            _unpacked_sums(key, value, latest, late)
        elif kind == "horizon" and value is not None:
            changes.horizon = Horizon(key, table_rows.decode_value(value)).windows
        else:
            raise _misplaced(partition, key)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a row of the changelog: {error}") from None


def _unpacked_sums(
    key: bytes, value: bytes | None, latest: dict[bytes, bytes | None], late: list[tuple[bytes, Wide | None]]
) -> None:
    """Sort a user's or hour's row that is not packed: packed now if it fits, else wide; or its tombstone."""
    numbers = None if value is None else _sums(value)
    small = None if numbers is None else table_rows.encode_value(Sums(key, *numbers))
    if small is not None and small[:1] == row_bytes.MARK:
        latest[key] = small
    else:
        late.append((key, None if numbers is None else _wide(numbers)))


def places(partition: int, keys: Sequence[bytes]) -> tuple[UserPlaces, list[HourPlace], list[int]]:
    """Return the places of users' rows, those of hours' rows, and the indexes in `keys` of the latter.

    Raises `ValueError` for a key of another format.
    """
    if (found := plain_places(partition, keys)) is not None:
        return found, [], []
    user, hour = b'[%d,"user",' % partition, b'[%d,"hour",' % partition
    others = [index for index, key in enumerate(keys) if not key.startswith(user)]
    of_hours = [keys[index] for index in others]
    for key in of_hours:
        if not key.startswith(hour):
            raise _misplaced(partition, key)
    of_users = [key for key in keys if key.startswith(user)] if others else keys
    return user_places(partition, of_users), table_rows.decode_hours(of_hours), others


def _misplaced(partition: int, key: bytes) -> ValueError:
    home, kind, _ = table_rows.decode_key(key)
    if home != partition:
        return ValueError(f"a row of partition {home} in partition {partition}: {key[:80]!r}")
    return ValueError(f"{'not a row key' if kind in _ROWS else 'unknown kind of row'}: {key[:80]!r}")
