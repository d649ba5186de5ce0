"""The rows of a message's events, and the Arrow table that a segment is written from.

What intake has decided (time, tokens, cost and where it is from) is taken from the message's columns, everything else
from the events' original bytes (`event_values`). A row says what `message.events` says of its event.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import accumulate, chain, count
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.events.columns import SPAN_FLAG, UNPRICED_FLAG, Rows, concatenated
from processor.core.events.message import Message
from processor.event_store import event_values
from processor.event_store.event_values import COLLECTIONS, COUNTS, MILLIS, TEXTS, Values
from processor.event_store.schema import FEW_VALUES, SCHEMA, WRITTEN

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_T = TypeVar("_T", bound=Hashable)


class MessageRows(Struct, gc=False):
    """The events of one message that are kept: what its columns say, and the other values."""

    rows: Rows
    users: list[str | None]
    dims: list[tuple[int, str, str, str, str, str]]
    cost_sources: list[str]
    projects: list[str]
    """Of each request."""
    homes: I64
    """The request of each row."""
    arrivals: I64
    places: I64
    """Where each row stands in its message."""
    partition: int
    offset: int
    values: Values

    def __len__(self) -> int:
        return len(self.rows)


def rows_of(found: Message, partition: int, offset: int, kept: Mask) -> MessageRows:
    """Return the kept events of the message at `offset`. Raises `MessageError` if its bytes cannot be read."""
    values = event_values.empty()
    event_values.read(values, found, kept.tolist())
    places = np.flatnonzero(kept)
    counts = [request.count for request in found.requests]
    arrivals = np.repeat(np.array([request.source.arrival for request in found.requests], np.int64), counts)
    return MessageRows(
        found.rows if len(places) == len(found.rows) else found.rows[places],
        found.users,
        found.dims,
        found.cost_sources,
        [request.source.project for request in found.requests],
        np.repeat(np.arange(len(counts)), counts)[places],
        arrivals[places],
        places,
        partition,
        offset,
        values,
    )


def table_of(parts: Sequence[MessageRows]) -> Any:
    """Return a `pyarrow.Table` of `WRITTEN` with all rows, at least one, in the order of segments."""
    rows = concatenated([part.rows for part in parts])
    projects, homes = _joined((part.projects, part.homes) for part in parts)
    order = _order(projects, homes, rows["at"])
    table = _Table(parts, rows[order], order)
    columns = {
        "event_id": _event_ids(table.rows),
        "timestamp": _times(table.rows["at"]),
        "input_tokens": _counts(table.rows["input"], table.absent("input_tokens")),
        "output_tokens": _counts(table.rows["output"], table.absent("output_tokens")),
        "cost_usd": _costs(table.rows, table.free()),
        "received_at": _times(table.ordered([part.arrivals for part in parts])),
        "user_id": table.users(),
        "cost_source": _encoded(
            *_joined(([None, *part.cost_sources], part.rows["cost_source"]) for part in parts), order
        ),
        "project": _encoded(projects, homes, order),
        "log_partition": pa.array(np.repeat([part.partition for part in parts], table.sizes), pa.int32()),
        "log_offset": pa.array(np.repeat([part.offset for part in parts], table.sizes)[order], pa.int64()),
        "log_index": pa.array(table.ordered([part.places for part in parts]), pa.int32()),
        "stream": pa.array(np.array(table.values("stream"), np.bool_)[order]),
        **table.dims(),
    }
    columns |= {
        name: table.few(name) if name in FEW_VALUES else table.texts(name) for name in (*TEXTS, "kind", "extra")
    }
    columns |= {name: table.numbers(name, pa.float64()) for name in MILLIS}
    columns |= {name: table.numbers(name, pa.int64()) for name in COUNTS}
    columns |= {name: table.collection(name, SCHEMA.field(name).type) for name in COLLECTIONS}
    return pa.table([columns[name] for name in WRITTEN.names], schema=WRITTEN)


class _Table:
    """What columns are made of: the rows in their order, and the other values in that of the messages."""

    def __init__(self, parts: Sequence[MessageRows], rows: Rows, order: I64) -> None:
        self.rows = rows
        self.sizes = list(map(len, parts))
        self._parts = parts
        self._order = order
        self._places = pa.array(order)
        self._starts = list(accumulate(self.sizes, initial=0))

    def values(self, name: str) -> list[Any]:
        """Return a field of `event_values.VALUES`, in the order of the messages."""
        return list(chain.from_iterable(part.values.columns[name] for part in self._parts))

    def ordered(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return arrays of each message as one, in order."""
        found: NDArray[Any] = np.concatenate(arrays)[self._order]
        return found

    def absent(self, name: str) -> Mask | None:
        """Return which events have no such count; None: all have it."""
        places = [[place for place, field in part.values.absent if field == name] for part in self._parts]
        return self._marked(places) if any(places) else None

    def free(self) -> Mask | None:
        """Return which spans say that they cost 0; None: none."""
        places = [part.values.free for part in self._parts]
        return self._marked(places) if any(places) else None

    def _marked(self, places: Sequence[Sequence[int]]) -> Mask:
        found = np.zeros(len(self.rows), np.bool_)
        for start, mine in zip(self._starts, places, strict=False):
            found[[start + place for place in mine]] = True
        return found[self._order]

    def users(self) -> Any:
        """Return the users that the rows point to: most messages have nearly one a row, so none is looked up."""
        texts = list(chain.from_iterable(part.users for part in self._parts))
        return pa.array(texts, pa.string()).take(
            pa.array(self._places_in("user", [len(part.users) for part in self._parts]))
        )

    def _places_in(self, column: str, sizes: Sequence[int]) -> I64:
        """Return where each row points to, in order, in the messages' dictionaries of these sizes laid end to end."""
        places = np.concatenate([part.rows[column] for part in self._parts]).astype(np.int64)
        starts = np.cumsum([0, *sizes[:-1]])
        found: I64 = (places + np.repeat(starts, self.sizes))[self._order]
        return found

    def dims(self) -> dict[str, Any]:
        """Return the columns that `Dim` has, as dictionaries."""
        codes = self._places_in("dim", [len(part.dims) for part in self._parts])
        columns = list(zip(*chain.from_iterable(part.dims for part in self._parts), strict=True))[1:]
        return {name: _numbered(texts, codes) for name, texts in zip(_DIMS, columns, strict=True)}

    def few(self, name: str) -> Any:
        """Return texts as a dictionary."""
        return _numbered(self.values(name), self._order)

    def texts(self, name: str) -> Any:
        """Return texts."""
        values = self.values(name)
        if values.count(None) == len(values):
            return pa.nulls(len(values), pa.string())
        return pa.array(values, pa.string()).take(self._places)

    def numbers(self, name: str, kind: Any) -> Any:
        """Return numbers."""
        values = self.values(name)
        missing = values.count(None)
        if missing == len(values):
            return pa.nulls(len(values), kind)
        found = pa.array(values, kind).take(self._places)
        return pc.add(found, 0.0) if kind == pa.float64() else found  # -0.0 becomes 0.0

    def collection(self, name: str, kind: Any) -> Any:
        """Return a column of maps or lists; those without an item are null."""
        parts = [part.values.collections[name] for part in self._parts]
        counts = np.fromiter(chain.from_iterable(part.counts for part in parts), np.int64, len(self.rows))
        if not counts.any():
            return pa.nulls(len(counts), kind)
        firsts, lengths = (np.cumsum(counts) - counts)[self._order], counts[self._order]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = pa.array(np.repeat(firsts - offsets[:-1], lengths) + np.arange(offsets[-1]))
        bounds, absent = pa.array(offsets, pa.int32()), pa.array(lengths == 0)
        is_map = pa.types.is_map(kind)
        items = pa.array(
            list(chain.from_iterable(part.items for part in parts)), kind.item_type if is_map else kind.value_type
        )
        items = items.take(places)
        if not is_map:
            return pa.ListArray.from_arrays(bounds, items, mask=absent)
        if kind.item_type == pa.float64():
            items = pc.add(items, 0.0)
        keys = pa.array(list(chain.from_iterable(part.keys for part in parts)), pa.string()).take(places)
        return pa.MapArray.from_arrays(bounds, keys, items, mask=absent)


_DIMS: Final = ("provider", "model", "environment", "operation", "status")


def _order(projects: Sequence[str], homes: NDArray[np.int32], times: I64) -> I64:
    """Return the order of a segment: by project, time, offset and place, of which the last two are there already."""
    if len(projects) == 1:
        return np.argsort(times, kind="stable")
    ranks = np.empty(len(projects), np.int64)
    ranks[sorted(range(len(projects)), key=projects.__getitem__)] = np.arange(len(projects))
    return np.lexsort((times, ranks[homes]))


# --- columns ---------------------------------------------------------------------------------------------------------

_DASHES: Final = (8, 13, 18, 23)
_DIGITS: Final = np.delete(np.arange(36), _DASHES)


def _event_ids(rows: Rows) -> Any:
    """Return the ids as text: 32 hex digits and four dashes."""
    size = len(rows)
    text = np.empty((size, 36), np.uint8)
    text[:, _DASHES] = ord("-")
    digits = np.ascontiguousarray(rows["id"]).tobytes().hex().encode()
    text[:, _DIGITS] = np.frombuffer(digits, np.uint8).reshape(size, 32)
    offsets = np.arange(0, 36 * (size + 1), 36, dtype=np.int32)
    return pa.StringArray.from_buffers(size, pa.py_buffer(offsets), pa.py_buffer(text))


def _times(micros: I64) -> Any:
    return pa.array(np.ascontiguousarray(micros), pa.int64()).cast(pa.timestamp("us", "UTC"))


def _counts(counts: I64, absent: Mask | None) -> Any:
    return pa.array(np.ascontiguousarray(counts), pa.int64(), mask=absent)


def _costs(rows: Rows, free: Mask | None) -> Any:
    """Return the costs as decimals of 12 places, which are whole picodollars; null: unpriced."""
    priced = (rows["flags"] & (UNPRICED_FLAG | SPAN_FLAG)) == 0
    if free is not None:
        priced |= free
    wide = np.zeros((len(rows), 2), "<i8")
    wide[:, 0] = rows["cost"]  # none is negative: the upper half is 0
    bitmap = pa.py_buffer(np.packbits(priced, bitorder="little"))
    return pa.Array.from_buffers(pa.decimal128(19, 12), len(rows), [bitmap, pa.py_buffer(wide)])


def _numbers() -> defaultdict[Any, int]:
    """Return a dict that numbers what it is asked for, without Python code for a new one."""
    return defaultdict(count().__next__)


def _joined(parts: Iterable[tuple[Sequence[_T], NDArray[Any]]]) -> tuple[list[_T], NDArray[np.int32]]:
    """Return one dictionary of all parts, and the place of each row in it."""
    numbers: defaultdict[_T, int] = _numbers()
    codes = [np.fromiter(map(numbers.__getitem__, values), np.int32, len(values))[places] for values, places in parts]
    return list(numbers), np.concatenate(codes)


def _numbered(texts: Sequence[str | None], places: NDArray[np.integer[Any]]) -> Any:
    """Return the texts at places as a dictionary."""
    numbers = _numbers()
    codes = np.fromiter(map(numbers.__getitem__, texts), np.int32, len(texts))
    return _encoded(list(numbers), codes, places)


def _encoded(texts: Sequence[str | None], codes: NDArray[np.int32], order: NDArray[np.integer[Any]]) -> Any:
    """Return a dictionary of texts, each there once, in which None stands for null."""
    ordered = codes[order]
    absent = None
    if None in texts:
        absent = ordered == texts.index(None)
        texts = [text or "" for text in texts]
    return pa.DictionaryArray.from_arrays(pa.array(ordered, mask=absent), pa.array(texts, pa.string()))
