"""The Arrow table that a segment is written from: the rows of several messages, in the order of segments."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import chain, count
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from processor.core.events.columns import SPAN_FLAG, UNPRICED_FLAG, Rows, concatenated
from processor.core.events.compiled_rows import PackedUsers
from processor.core.kernel.loaded import kernel
from processor.event_store import compiled_take
from processor.event_store.compiled_take import MOST_PIECES
from processor.event_store.event_values import COLLECTIONS, COUNTS, MILLIS, TEXTS
from processor.event_store.rows import I64, Mask, MessageRows
from processor.event_store.schema import FEW_VALUES, SCHEMA, WRITTEN
from processor.event_store.value_arrays import ValueArrays

_T = TypeVar("_T", bound=Hashable)


def table_of(parts: Sequence[MessageRows]) -> Any:
    """Return a `pyarrow.Table` of `WRITTEN` with all rows, at least one, in the order of segments."""
    rows = concatenated([part.rows for part in parts])
    projects, homes = _joined((part.projects, part.homes) for part in parts)
    order = _order(projects, homes, rows["at"])
    table, values = (
        _Table(parts, rows.take(order), order),
        ValueArrays(parts, order),
    )  # `rows[order]`: ten times as long
    columns = {
        "event_id": _event_ids(table.rows),
        "timestamp": _times(table.rows["at"]),
        "input_tokens": _counts(table.rows["input"], values.absent("input_tokens")),
        "output_tokens": _counts(table.rows["output"], values.absent("output_tokens")),
        "cost_usd": _costs(table.rows, values.free()),
        "received_at": _times(table.ordered([part.arrivals for part in parts])),
        "user_id": table.users(),
        "cost_source": _encoded(
            *_joined(([None, *part.cost_sources], part.rows["cost_source"]) for part in parts), order
        ),
        "project": _encoded(projects, homes, order),
        "log_partition": pa.array(np.repeat([part.partition for part in parts], table.sizes), pa.int32()),
        "log_offset": pa.array(np.repeat([part.offset for part in parts], table.sizes)[order], pa.int64()),
        "log_index": pa.array(table.ordered([part.places for part in parts]), pa.int32()),
        "stream": values.streams(),
        "kind": values.kinds(),
        **table.names(),
    }
    columns |= {name: values.few(name) if name in FEW_VALUES else values.text(name) for name in (*TEXTS, "extra")}
    columns |= {name: values.number(name, pa.float64()) for name in MILLIS}
    columns |= {name: values.number(name, pa.int64()) for name in COUNTS}
    columns |= {name: values.collection(name, SCHEMA.field(name).type) for name in COLLECTIONS}
    return pa.table([columns[name] for name in WRITTEN.names], schema=WRITTEN)


class _Table:
    """What columns are made of that intake has decided: the rows in their order, and dictionaries of the messages."""

    def __init__(self, parts: Sequence[MessageRows], rows: Rows, order: I64) -> None:
        self.rows = rows
        self.sizes = list(map(len, parts))
        self._parts = parts
        self._order = order

    def ordered(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return arrays of each message as one, in order."""
        found: NDArray[Any] = np.concatenate(arrays)[self._order]
        return found

    def users(self) -> Any:
        """Return the users that the rows point to: most messages have nearly one a row, so none is looked up."""
        if kernel is not None and len(self._parts) <= MOST_PIECES:
            pieces = np.repeat(np.arange(len(self._parts), dtype=np.uint16), self.sizes)[self._order]
            return compiled_take.texts([_texts_of(part.users) for part in self._parts], pieces, self.rows["user"])
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

    def names(self) -> dict[str, Any]:
        """Return provider, model, environment, operation and status as dictionaries.

        All five are numbered once, and each column is looked up in them: a fourth of what numbering every one takes.
        """
        names, codes = _joined((part.names, part.named) for part in self._parts)
        ordered = codes[self._order]
        found: dict[str, Any] = {}
        for name, texts in zip(_NAMES, zip(*names, strict=True), strict=True):
            numbers = _numbers()
            of_names = np.fromiter(map(numbers.__getitem__, texts), np.int32, len(texts))
            found[name] = _encoded(list(numbers), of_names, ordered)
        return found


def _texts_of(users: Sequence[str | None]) -> Any:
    """Return texts as `compiled_take.texts` takes them, without an object for each if they are packed."""
    if isinstance(users, PackedUsers):
        return users.there, users.bounds, 0, len(users), users.data
    found = pa.array(users, pa.string())
    there, bounds, data = found.buffers()
    return there, bounds, 0, len(found), data or b""


_NAMES: Final = ("provider", "model", "environment", "operation", "status")


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
    ids = np.ascontiguousarray(rows["id"])
    text = id_texts(ids) if kernel is None else kernel.event_id_texts(ids)
    offsets = np.arange(0, 36 * (size + 1), 36, dtype=np.int32)
    return pa.StringArray.from_buffers(size, pa.py_buffer(offsets), pa.py_buffer(text))


def id_texts(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """Return ids, 16 bytes each, as text: the twin of the kernel's `event_id_texts`."""
    text = np.empty((len(ids), 36), np.uint8)
    text[:, _DASHES] = ord("-")
    text[:, _DIGITS] = np.frombuffer(ids.tobytes().hex().encode(), np.uint8).reshape(len(ids), 32)
    return text


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


def _encoded(texts: Sequence[str | None], codes: NDArray[np.int32], order: NDArray[np.integer[Any]]) -> Any:
    """Return a dictionary of texts, each there once, in which None stands for null."""
    ordered = codes[order]
    absent = None
    if None in texts:
        absent = ordered == texts.index(None)
        texts = [text or "" for text in texts]
    return pa.DictionaryArray.from_arrays(pa.array(ordered, mask=absent), pa.array(texts, pa.string()))
