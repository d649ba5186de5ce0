"""The values of a segment's events that its rows do not have, as Arrow arrays in the order of the segment."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from processor.core.events.fields import KINDS
from processor.core.kernel.loaded import kernel
from processor.event_store import compiled_take
from processor.event_store.compiled_take import TakenPlaces
from processor.event_store.compiled_values import EventArrays
from processor.event_store.event_values import Values
from processor.event_store.rows import I64, Mask, MessageRows

_SPAN: Final = KINDS.index("span")


class ValueArrays:
    """Values of the rows of messages: those that the kernel has read come before those of its twin, and `_places` says
    where each row's are."""

    def __init__(self, parts: Sequence[MessageRows], order: I64) -> None:
        buffers = [each for part in parts for each in part.cells]
        self._cells = EventArrays.joined(buffers) if buffers else None
        self._values = [part.values for part in parts if len(part.values)]
        self._sizes = list(map(len, self._values))
        by_twin = np.concatenate([part.by_twin for part in parts])
        compiled = 0 if self._cells is None else len(self._cells)
        homes = np.where(by_twin, compiled + np.cumsum(by_twin), np.cumsum(~by_twin)) - 1
        self._places: I64 = homes[order]
        self._taken = pa.array(self._places)
        self._given = None if kernel is None else TakenPlaces.in_one(self._places.astype(np.int32))

    def text(self, name: str) -> Any:
        """Return texts."""
        return self._ordered(lambda cells: cells.text(name), name, pa.string())

    def few(self, name: str) -> Any:
        """Return texts of few different values, as a dictionary."""
        return self.text(name).dictionary_encode()

    def number(self, name: str, kind: Any) -> Any:
        """Return numbers."""
        found = self._ordered(lambda cells: cells.number(name), name, kind)
        return pc.add(found, 0.0) if kind == pa.float64() else found  # -0.0 becomes 0.0

    def _ordered(self, compiled: Callable[[EventArrays], Any], name: str, kind: Any) -> Any:
        pieces = [] if self._cells is None else [compiled(self._cells)]
        if self._values:
            pieces.append(pa.array(self._listed(name), kind))
        found = pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)
        if found.null_count == len(found):
            return pa.nulls(len(found), kind)
        return found.take(self._taken) if self._given is None else compiled_take.array(found, self._given)

    def _listed(self, name: str) -> list[Any]:
        """Return a field of `event_values.VALUES`, as the twin has read it."""
        return list(chain.from_iterable(values.columns[name] for values in self._values))

    def kinds(self) -> Any:
        """Return the kinds, as a dictionary."""
        are_spans = self._marked(lambda cells: cells.spans, lambda values: values.columns["kind"], "span")
        codes = are_spans.astype(np.int32) if _SPAN else (~are_spans).astype(np.int32)
        if len(codes) and codes.min() == codes.max():  # what is not there would be among the least and the greatest
            only = pa.array([KINDS[codes[0]]])
            return pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(codes), np.int32)), only)
        return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(KINDS))

    def streams(self) -> Any:
        """Return whether the answers were streamed."""
        return pa.array(self._marked(lambda cells: cells.streams, lambda values: values.columns["stream"], True))

    def _marked(
        self, compiled: Callable[[EventArrays], Mask], listed: Callable[[Values], Sequence[Any]], value: Any
    ) -> Mask:
        """Return which rows have a value."""
        pieces = [] if self._cells is None else [compiled(self._cells)]
        pieces += [np.array([each == value for each in listed(values)], np.bool_) for values in self._values]
        found: Mask = np.concatenate(pieces)[self._places]
        return found

    def absent(self, name: str) -> Mask | None:
        """Return which events have no such count; None: all have it."""
        return self._at(
            lambda cells: cells.absent(name),
            lambda values: [place for place, field in values.absent if field == name],
        )

    def free(self) -> Mask | None:
        """Return which spans say that they cost 0; None: none."""
        return self._at(lambda cells: cells.free, lambda values: values.free)

    def _at(self, compiled: Callable[[EventArrays], Mask], places: Callable[[Values], Sequence[int]]) -> Mask | None:
        """Return which rows are marked; None: none."""
        found = [] if self._cells is None else [compiled(self._cells)]
        for values, size in zip(self._values, self._sizes, strict=True):
            marked = np.zeros(size, np.bool_)
            marked[places(values)] = True
            found.append(marked)
        every = np.concatenate(found)
        return every[self._places] if every.any() else None

    def collection(self, name: str, kind: Any) -> Any:
        """Return a column of maps or lists; those without an item are null."""
        counts = self._counts(name)
        if not counts.any():
            return pa.nulls(len(counts), kind)
        if self._given is not None:
            return self._compiled_collection(name, kind, counts, self._given)
        firsts, lengths = (np.cumsum(counts) - counts)[self._places], counts[self._places]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = pa.array(np.repeat(firsts - offsets[:-1], lengths) + np.arange(offsets[-1]))
        keys, items = self._laid_out(name, kind)
        keys = None if keys is None else keys.take(places)
        return _collection(offsets, lengths == 0, keys, items.take(places))

    def _compiled_collection(self, name: str, kind: Any, counts: NDArray[np.int64], places: TakenPlaces) -> Any:
        offsets = np.concatenate([[0], np.cumsum(counts)])
        found = _collection(offsets, counts == 0, *self._laid_out(name, kind))
        return compiled_take.array(found, places)

    def _laid_out(self, name: str, kind: Any) -> tuple[Any, Any]:
        """Return the keys, None for lists, and the items of all events, end to end."""
        parts = [values.collections[name] for values in self._values]
        is_map = pa.types.is_map(kind)
        item_type = kind.item_type if is_map else kind.value_type
        items = self._laid(
            lambda cells: cells.items(name),
            [[each.items for each in part.packed] for part in parts],
            [part.items for part in parts],
            item_type,
        )
        if not is_map:
            return None, items
        if item_type == pa.float64():
            items = pc.add(items, 0.0)
        keys = self._laid(
            lambda cells: cells.keys(name),
            [[each.keys for each in part.packed] for part in parts],
            [part.keys for part in parts],
            pa.string(),
        )
        return keys, items

    def _counts(self, name: str) -> NDArray[np.int64]:
        found = [np.array(values.collections[name].counts, np.int64) for values in self._values]
        if self._cells is not None:
            found.insert(0, self._cells.counts(name).astype(np.int64))
        return np.concatenate(found)

    def _laid(
        self,
        compiled: Callable[[EventArrays], Any],
        packed: Sequence[Sequence[Any]],
        parts: Sequence[Sequence[Any]],
        kind: Any,
    ) -> Any:
        """Return the items, or keys, of all events, end to end; of each part those that are packed come first."""
        found = [] if self._cells is None else [compiled(self._cells)]
        if any(packed):
            for arrays, rest in zip(packed, parts, strict=True):
                found += [*arrays, pa.array(rest, kind)]
        elif parts:
            found.append(pa.array(list(chain.from_iterable(parts)), kind))
        return found[0] if len(found) == 1 else pa.concat_arrays(found)


def _collection(offsets: NDArray[np.int64], is_absent: Mask, keys: Any, items: Any) -> Any:
    """Return maps, or lists if there are no keys, of items that lie end to end; some are not there."""
    bounds, absent = pa.array(offsets, pa.int32()), pa.array(is_absent)
    if keys is None:
        return pa.ListArray.from_arrays(bounds, items, mask=absent)
    return pa.MapArray.from_arrays(bounds, keys, items, mask=absent)
