"""Arrays of records that grow without long pauses at any size, and without an object for each record."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Records = NDArray[np.void]
"""Structured arrays."""

BITS: Final = 18
SIZE: Final = 1 << BITS
"""Records in a full segment."""
FIRST: Final = 256

Part = tuple[Records, I64, Any]
"""A segment, indexes into it, and for each the index into the numbers that were asked for."""


class Segments:
    """Records numbered from 0. The first segment grows by doubling; the others have their full size from the start but
    use memory only as they are filled. So no step copies more than half a segment."""

    def __init__(self, empty: Records) -> None:
        """`empty`, of shape (), is the value of a new record."""
        self._plain = np.dtype(f"V{empty.dtype.itemsize}")  # whole records: numpy copies structured ones by field
        self._empty = empty
        self._parts: list[Records] = [np.empty(FIRST, empty.dtype)]
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def parts(self) -> list[Records]:
        """The segments, the last one perhaps with room for more. To be read only."""
        return self._parts

    def extend(self, count: int) -> I64:
        """Add `count` empty records; return their numbers."""
        first, self._length = self._length, self._length + count
        if len(self._parts) == 1 and len(self._parts[0]) < min(self._length, SIZE):
            grown = np.empty(min(SIZE, 1 << (self._length - 1).bit_length()), self._empty.dtype)
            grown.view(self._plain)[:first] = self._parts[0].view(self._plain)[:first]
            self._parts[0] = grown
        while self._length > len(self._parts) * SIZE:
            self._parts.append(np.empty(SIZE, self._empty.dtype))
        for number in range(first >> BITS, (self._length - 1 >> BITS) + 1):
            start = number << BITS
            part = self._parts[number].view(self._plain)
            part[max(0, first - start) : self._length - start] = self._empty.view(self._plain)
        return np.arange(first, self._length)

    def split(self, numbers: I64) -> Iterator[Part]:
        """Yield where the records with these numbers are, one segment after the other."""
        if len(self._parts) == 1:
            yield self._parts[0], numbers, slice(None)
            return
        homes = numbers >> BITS
        for home in np.flatnonzero(np.bincount(homes, minlength=1)):
            which = np.flatnonzero(homes == home)
            yield self._parts[home], numbers[which] & (SIZE - 1), which

    def take(self, numbers: I64) -> Records:
        """Return a copy of the records with these numbers."""
        if len(self._parts) == 1:
            return self._parts[0].take(numbers)
        found = np.empty(len(numbers), self._empty.dtype)
        plain = found.view(self._plain)
        for part, places, which in self.split(numbers):
            plain[which] = part.view(self._plain).take(places)
        return found

    def column(self, name: str, numbers: I64, *, ascending: bool = False) -> NDArray[Any]:
        """Return a copy of one field of the records with these numbers; faster if they are known to be `ascending`."""
        found = np.empty(len(numbers), self._empty.dtype[name])
        if ascending:
            ends = np.searchsorted(numbers, np.arange(len(self._parts) + 1) << BITS).tolist()
            for number, part in enumerate(self._parts):
                which = slice(ends[number], ends[number + 1])
                found[which] = part[name][numbers[which] - (number << BITS)]  # `take` would copy the whole field first
        else:
            for part, places, of in self.split(numbers):
                found[of] = part[name][places]
        return found

    def item(self, name: str, number: int) -> int:
        """Return one integer field of one record."""
        return int(self._parts[number >> BITS][name][number & (SIZE - 1)])

    def put(self, numbers: I64, records: Records) -> None:
        """Replace the records with these numbers."""
        plain = records.view(self._plain)
        for part, places, which in self.split(numbers):
            part.view(self._plain)[places] = plain[which]
