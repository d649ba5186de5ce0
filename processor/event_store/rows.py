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

from processor.core.events.columns import SPAN_FLAG, UNPRICED_FLAG, Rows
from processor.core.events.message import Message
from processor.event_store import event_values
from processor.event_store.event_values import COUNTS, MILLIS, TEXTS, Values
from processor.event_store.schema import SCHEMA

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
    """Return a `pyarrow.Table` of the schema with all rows, at least one, in the order of segments."""
    rows = np.concatenate([part.rows.view(_BYTES) for part in parts]).view(parts[0].rows.dtype)
    columns = {
        "event_id": _event_ids(rows),
        "timestamp": _times(rows["at"]),
        "input_tokens": _counts(rows["input"], _absent(parts, "input_tokens", len(rows))),
        "output_tokens": _counts(rows["output"], _absent(parts, "output_tokens", len(rows))),
        "cost_usd": _costs(rows, _free(parts, len(rows))),
        "received_at": _times(np.concatenate([part.arrivals for part in parts])),
        "user_id": _named([(part.users, part.rows["user"]) for part in parts]),
        "cost_source": _named([([None, *part.cost_sources], part.rows["cost_source"]) for part in parts]),
        "project": _named([(part.projects, part.homes) for part in parts]),
        "log_partition": pa.array(np.repeat([part.partition for part in parts], list(map(len, parts))), pa.int32()),
        "log_offset": pa.array(np.repeat([part.offset for part in parts], list(map(len, parts))), pa.int64()),
        "log_index": pa.array(np.concatenate([part.places for part in parts]), pa.int32()),
        "stream": pa.array(_all(parts, "stream"), pa.bool_()),
        "tags": _map(_all(parts, "tags"), pa.string()),
        "tools_used": _list(_all(parts, "tools_used")),
        "eval_scores": _map(_all(parts, "eval_scores"), pa.float64()),
    }
    dims, codes = _joined(([dim[1:] for dim in part.dims], part.rows["dim"]) for part in parts)
    for name, texts in zip(
        ("provider", "model", "environment", "operation", "status"), zip(*dims, strict=True), strict=True
    ):
        columns[name] = pa.array(texts, pa.string()).take(codes)
    for name in (*TEXTS, "kind", "extra"):
        columns[name] = pa.array(_all(parts, name), pa.string())
    for name in MILLIS:
        columns[name] = pc.add(pa.array(_all(parts, name), pa.float64()), 0.0)  # -0.0 becomes 0.0
    for name in COUNTS:
        columns[name] = pa.array(_all(parts, name), pa.int64())
    table = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    return table.take(pa.array(_order(columns["project"], rows["at"])))


_BYTES: Final = np.dtype("V72")


def _all(parts: Sequence[MessageRows], name: str) -> list[Any]:
    return list(chain.from_iterable(part.values.columns[name] for part in parts))


def _starts(parts: Sequence[MessageRows]) -> list[int]:
    return list(accumulate(map(len, parts), initial=0))[:-1]


def _absent(parts: Sequence[MessageRows], name: str, size: int) -> Mask | None:
    """Return which events have no such count; None: all have it."""
    places = [
        start + place
        for start, part in zip(_starts(parts), parts, strict=True)
        for place, field in part.values.absent
        if field == name
    ]
    return _mask(places, size) if places else None


def _free(parts: Sequence[MessageRows], size: int) -> Mask:
    return _mask(
        [start + place for start, part in zip(_starts(parts), parts, strict=True) for place in part.values.free], size
    )


def _mask(places: Sequence[int], size: int) -> Mask:
    found = np.zeros(size, np.bool_)
    found[places] = True
    return found


def _order(projects: Any, times: I64) -> I64:
    """Return the order of a segment: by project, time, offset and place, of which the last two are there already."""
    encoded = projects.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    ranks = np.empty(len(names), np.int64)
    ranks[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return np.lexsort((times, ranks[encoded.indices.to_numpy()]))


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


def _costs(rows: Rows, free: Mask) -> Any:
    """Return the costs as decimals of 12 places, which are whole picodollars; null: unpriced."""
    flags = rows["flags"]
    priced = (flags & (UNPRICED_FLAG | SPAN_FLAG)) == 0
    priced |= free
    wide = np.zeros((len(rows), 2), "<i8")
    wide[:, 0] = rows["cost"]  # none is negative: the upper half is 0
    bitmap = pa.py_buffer(np.packbits(priced, bitorder="little"))
    return pa.Array.from_buffers(pa.decimal128(19, 12), len(rows), [bitmap, pa.py_buffer(wide)])


def _named(parts: Iterable[tuple[Sequence[str | None], NDArray[Any]]]) -> Any:
    """Return texts: of each part a dictionary, and the place of each row in it."""
    texts, codes = _joined(parts)
    return pa.array(texts, pa.string()).take(codes)


def _joined(parts: Iterable[tuple[Sequence[_T], NDArray[Any]]]) -> tuple[list[_T], Any]:
    """Return one dictionary of all parts, and the place of each row in it."""
    numbers: defaultdict[_T, int] = defaultdict(count().__next__)  # so that a new one is numbered without Python code
    codes = []
    for values, places in parts:
        codes.append(np.fromiter(map(numbers.__getitem__, values), np.int32, len(values))[places])
    return list(numbers), pa.array(np.concatenate(codes))


def _list(values: Sequence[Sequence[str] | None]) -> Any:
    offsets, absent = _offsets(values)
    flat = pa.array(list(chain.from_iterable(value for value in values if value)), pa.string())
    return pa.ListArray.from_arrays(offsets, flat, mask=absent)


def _map(values: Sequence[dict[str, Any] | None], kind: Any) -> Any:
    offsets, absent = _offsets(values)
    there = [value for value in values if value]
    keys = pa.array(list(chain.from_iterable(there)), pa.string())
    items = pa.array(list(chain.from_iterable(value.values() for value in there)), kind)
    if kind == pa.float64():
        items = pc.add(items, 0.0)
    return pa.MapArray.from_arrays(offsets, keys, items, mask=absent)


def _offsets(values: Iterable[Any]) -> tuple[Any, Any]:
    """Return where each collection begins among all items, and which are null: those that have none."""
    lengths = np.array([len(value) if value else 0 for value in values], np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.array(offsets), pa.array(lengths == 0)
