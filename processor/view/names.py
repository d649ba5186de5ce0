"""The ids of many users in one buffer: 8 bytes each besides the text, and no objects for the garbage collector."""

from array import array
from collections.abc import Sequence
from heapq import nsmallest
from typing import Final

import numpy as np
from numpy.typing import NDArray

from processor.core.growing_arrays import I64

WORD: Final = 8
WORDS: Final = 4
"""Words of names that are compared in arrays; names that are equal up to there are compared one by one."""


class Names:
    """Texts by number, in the order in which they were added. UTF-8 bytes sort as the characters do."""

    def __init__(self) -> None:
        self._text = bytearray(WORD)  # so that a whole word can be read after the last name
        self._starts = array("q", [0])  # the last item is the end of the last name

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, names: Sequence[bytes]) -> None:
        """Append names."""
        end = self._starts[-1]
        for name in names:
            end += len(name)
            self._starts.append(end)
        self._text[-WORD:] = b"".join(names) + bytes(WORD)

    def get(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the names with these numbers."""
        text, starts = self._text, self._starts
        return [bytes(text[starts[number] : starts[number + 1]]) for number in numbers]

    def _words(self, numbers: I64, skip: int) -> NDArray[np.uint64]:
        """Return eight bytes of each name, zeros after its end, as integers that sort as the bytes do."""
        starts = np.frombuffer(self._starts, np.int64)
        at = starts[numbers] + skip
        missing = np.clip(at + WORD - starts[numbers + 1], 0, WORD)
        everywhere: NDArray[np.uint64] = np.ndarray((len(self._text) - WORD + 1,), ">u8", self._text, 0, (1,))
        words: NDArray[np.uint64] = everywhere[np.minimum(at, len(everywhere) - 1)].astype(np.uint64)
        bits = (8 * np.minimum(missing, WORD - 1)).astype(np.uint64)
        words >>= bits
        words <<= bits
        words[missing == WORD] = 0
        return words

    def first(self, numbers: I64, count: int) -> I64:
        """Return the `count` of these numbers whose names are first, unordered."""
        found = []
        skip = 0
        while count < len(numbers) and skip < WORDS * WORD:
            words = self._words(numbers, skip)
            last = np.partition(words, count - 1)[count - 1] if count else np.uint64(0)
            below = numbers[words < last] if count else numbers[:0]
            found.append(below)
            count -= len(below)
            numbers = numbers[words == last]
            skip += WORD
        if count < len(numbers):
            chosen = numbers.tolist()
            by_name = dict(zip(self.get(chosen), chosen, strict=True))
            numbers = np.array([by_name[name] for name in nsmallest(count, by_name)], np.int64)
        return np.concatenate((*found, numbers))

    def after(self, numbers: I64, name: bytes) -> I64:
        """Return those of these numbers whose names come after `name`, unordered."""
        found = []
        for skip in range(0, WORDS * WORD, WORD):
            words = self._words(numbers, skip)
            bound = np.uint64(int.from_bytes(name[skip : skip + WORD].ljust(WORD, b"\0"), "big"))
            found.append(numbers[words > bound])
            numbers = numbers[words == bound]
        chosen = numbers.tolist()
        found.append(np.array([n for n, own in zip(chosen, self.get(chosen), strict=True) if own > name], np.int64))
        return np.concatenate(found)
