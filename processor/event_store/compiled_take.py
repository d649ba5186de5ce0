"""Rows of several batches as one table, by the compiled kernel, where it runs.

pyarrow, which `merge` has for that, is its twin: it joins the batches and takes from the whole, in twice the time.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from processor.core.kernel.loaded import kernel
from processor.event_store.schema import WRITTEN

MOST_KNOWN: Final = 256
"""Dictionaries of one column that are remembered: each is that of a batch."""
MOST_PIECES: Final = 1 << 16
"""Arrays that rows are taken of at once."""
MOST_LETTERS: Final = 1 << 20
"""Bytes of the texts of these. With more of them the next rows begin a new dictionary, and where the batches of these
rows have more themselves it is made of what the rows have."""

_kernel: Final[Any] = kernel


class TakenBatch:
    """A batch that rows are taken of, whose buffers are looked up once."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self._arrays: dict[str, _Array] = {}

    def __len__(self) -> int:
        return len(self.batch)

    @cached_property
    def size(self) -> int:
        """Bytes of all its rows."""
        found: int = self.batch.nbytes
        return found

    def array(self, name: str) -> "_Array":
        """Return a column."""
        found = self._arrays.get(name)
        if found is None:
            found = self._arrays[name] = _Array.of(self.batch.column(name))
        return found


class _Array(NamedTuple):
    """An Arrow array."""

    type: Any
    there: Any
    """Which values are there; None: all."""
    data: Any
    """The numbers, or where texts or items begin."""
    start: int
    size: int
    texts: Any
    """The bytes of texts."""
    is_absent: bool
    """Whether there is no value."""
    children: "tuple[_Array, ...]"
    """Of a list its items, of a map keys and items."""
    dictionary: Any
    letters: int
    """Bytes of the dictionary's texts."""

    @classmethod
    def of(cls, array: Any) -> Self:
        """Look up the buffers of an array."""
        kind, dictionary = array.type, None
        if pa.types.is_dictionary(kind):
            array, dictionary = array.indices, array.dictionary
        buffers = array.buffers()
        children: tuple[Any, ...] = ()
        if pa.types.is_map(kind):
            children = array.keys, array.items
        elif pa.types.is_list(kind):
            children = (array.values,)
        return cls(
            kind,
            buffers[0] if array.null_count else None,
            buffers[1],
            array.offset,
            len(array),
            buffers[2] if pa.types.is_string(kind) else None,
            array.null_count == len(array),
            tuple(map(cls.of, children)),
            dictionary,
            0 if dictionary is None else dictionary.nbytes,
        )


class TakenPlaces(NamedTuple):
    """Where each row comes from."""

    given: Any
    """As the kernel has them."""
    size: int

    @classmethod
    def of(cls, pieces: NDArray[np.uint16], rows: NDArray[np.int32]) -> Self:
        """Row i comes from row `rows[i]` of array `pieces[i]`."""
        return cls(_kernel.taken_places(pieces, rows), len(rows))

    @classmethod
    def in_one(cls, rows: NDArray[np.int32]) -> Self:
        """The same of only one array."""
        return cls.of(np.zeros(len(rows), np.uint16), rows)


class Taking:
    """Takes rows of one batch after the other. Dictionaries of all become one for each column, which grows while it is
    small."""

    def __init__(self) -> None:
        self._dictionaries = {field.name: _Dictionary() for field in WRITTEN if pa.types.is_dictionary(field.type)}

    def table(self, batches: Sequence[TakenBatch], pieces: NDArray[np.uint16], rows: NDArray[np.int32]) -> Any:
        """Return a table of `WRITTEN`: row i is row `rows[i]` of batch `pieces[i]`."""
        places = TakenPlaces.of(pieces, rows)
        columns = []
        for name in WRITTEN.names:
            arrays = [batch.array(name) for batch in batches]
            dictionary = self._dictionaries.get(name)
            if dictionary is None:
                columns.append(_taken(arrays, places))
            elif _letters(arrays) > MOST_LETTERS:
                columns.append(_encoded(name, batches, pieces, rows))
            else:
                columns.append(dictionary.taken(arrays, places))
        return pa.table(columns, schema=WRITTEN)


class _Dictionary:
    """The texts of one column."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._numbers: dict[str | None, int] = {}
        self._texts: Any = pa.array([], pa.string())
        self._known: dict[tuple[int, int, int], tuple[NDArray[np.int32], Any]] = {}
        """Address, start and size of a dictionary -> the number here of each of its texts, and the dictionary, which
        keeps the address its own."""
        self._letters = 0
        """Bytes of the texts of all these."""

    def taken(self, arrays: Sequence[_Array], places: TakenPlaces) -> Any:
        """Return rows as a dictionary array."""
        if self._letters > MOST_LETTERS:
            self._begin()
        given = [(each.there, each.data, each.start, each.size, self._names(each)) for each in arrays]
        bits, data, nulls = _kernel.take_codes(given, places.given)
        if len(self._texts) < len(self._numbers):
            self._texts = pa.array(list(self._numbers), pa.string())
        indices = pa.Array.from_buffers(pa.int32(), places.size, [_buffer(bits), pa.py_buffer(data)], nulls)
        return pa.DictionaryArray.from_arrays(indices, self._texts)

    def _names(self, array: _Array) -> NDArray[np.int32]:
        texts = array.dictionary
        key = (texts.buffers()[1].address, texts.offset, len(texts)) if len(texts) else (0, 0, 0)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            names = [self._numbers.setdefault(text, len(self._numbers)) for text in texts.to_pylist()]
            self._known[key] = found = np.array(names, np.int32), texts
            self._letters += array.letters
        return found[0]


def _letters(arrays: Sequence[_Array]) -> float:
    """Return the bytes of the texts of their dictionaries; infinite: one has none."""
    if any(each.dictionary is None for each in arrays):
        return math.inf
    return sum({id(each.dictionary): each.letters for each in arrays}.values())


def _encoded(name: str, batches: Sequence[TakenBatch], pieces: NDArray[np.uint16], rows: NDArray[np.int32]) -> Any:
    """Return rows of a column as a dictionary array, of batches whose dictionaries are too large to be joined, or
    which have none."""
    order = np.argsort(pieces, kind="stable")
    bounds = np.searchsorted(pieces[order], np.arange(len(batches) + 1)).tolist()
    texts = [
        batch.batch.column(name).take(pa.array(rows[order[start:end]])).cast(pa.string())
        for batch, start, end in zip(batches, bounds, bounds[1:], strict=False)
    ]
    homes = np.empty(len(rows), np.int64)
    homes[order] = np.arange(len(rows))
    return pa.concat_arrays(texts).take(pa.array(homes)).dictionary_encode()


Texts = tuple[Any, Any, int, int, Any]
"""Which are there (bits, None: all), where each begins (int32), the first one, how many there are, and the bytes."""


def texts(arrays: Sequence[Texts], pieces: NDArray[np.uint16], rows: NDArray[np.integer[Any]]) -> Any:
    """Return an array of texts: text i is text `rows[i]` of array `pieces[i]`, of at most `MOST_PIECES`."""
    bits, *rest, nulls = _kernel.take_texts(
        list(arrays), _kernel.taken_places(pieces, np.ascontiguousarray(rows, np.int32))
    )
    return pa.Array.from_buffers(pa.string(), len(rows), [_buffer(bits), *map(pa.py_buffer, rest)], nulls)


def array(found: Any, places: TakenPlaces) -> Any:
    """Return rows of an array without a dictionary."""
    return _taken([_Array.of(found)], places)


def _taken(arrays: Sequence[_Array], places: TakenPlaces) -> Any:
    kind = arrays[0].type
    if all(each.is_absent for each in arrays):
        return pa.nulls(places.size, kind)
    if pa.types.is_nested(kind):
        return _nested(arrays, places)
    if pa.types.is_string(kind):
        texts = [(each.there, each.data, each.start, each.size, each.texts) for each in arrays]
        bits, *rest, nulls = _kernel.take_texts(texts, places.given)
    else:
        width = 0 if pa.types.is_boolean(kind) else kind.bit_width // 8
        numbers = [(each.there, each.data, each.start, each.size) for each in arrays]
        bits, *rest, nulls = _kernel.take_numbers(numbers, places.given, width)
    return pa.Array.from_buffers(kind, places.size, [_buffer(bits), *map(pa.py_buffer, rest)], nulls)


def _nested(arrays: Sequence[_Array], places: TakenPlaces) -> Any:
    kind = arrays[0].type
    lists = [(each.there, each.data, each.start, each.size, each.children[0].size) for each in arrays]
    bits, offsets, items, count, nulls = _kernel.take_lists(lists, places.given)
    of_items = TakenPlaces(items, count)
    taken = [_taken(each, of_items) for each in zip(*(each.children for each in arrays), strict=True)]
    child = taken[0]
    if pa.types.is_map(kind):
        child = pa.StructArray.from_arrays(taken, fields=[kind.key_field, kind.item_field])
    return pa.Array.from_buffers(kind, places.size, [_buffer(bits), pa.py_buffer(offsets)], nulls, children=[child])


def _buffer(data: bytes | None) -> Any:
    return None if data is None else pa.py_buffer(data)
