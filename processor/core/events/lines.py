"""The events of an NDJSON body as the one text they came in, cut up only where single events are looked at.

A usual request is decoded as a whole, and its original bytes go into the log as they are; so a hundred copies of lines
are never made.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import overload

SEPARATOR = b"\n"


class Lines(Sequence[bytes]):
    """Lines of JSON objects, each on one line, with nothing around them."""

    __slots__ = ("_count", "_lines", "texts")

    def __init__(self, text: bytes, count: int) -> None:
        """`text`: `count` lines, at least one, without an end of the last one."""
        self.texts = [text]
        """Texts like that, which the lines of this one are together."""
        self._count = count
        self._lines: list[bytes] | None = None

    @property
    def text(self) -> bytes:
        """All lines as one text, which is made only if it is asked for."""
        if len(self.texts) > 1:
            self.texts = [SEPARATOR.join(self.texts)]
        return self.texts[0]

    def _split(self) -> list[bytes]:
        if self._lines is None:
            self._lines = self.text.split(SEPARATOR)
        return self._lines

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._split())

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        return self._split()[index]


class Part(Sequence[bytes]):
    """Some of the lines, one after the other, still not cut up."""

    __slots__ = ("_count", "_start", "_whole")

    def __init__(self, whole: Sequence[bytes], start: int, count: int) -> None:
        self._whole = whole
        self._start = start
        self._count = min(count, len(whole) - start)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return list(self)[index]
        return self._whole[range(self._start, self._start + self._count)[index]]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._whole[self._start : self._start + self._count])


def joined(requests: Sequence[Sequence[bytes]]) -> Sequence[bytes] | None:
    """The records of all requests, one after the other; None if only some of them are lines."""
    lines = [each for each in requests if isinstance(each, Lines)]
    if not lines:
        return list(chain.from_iterable(requests))
    if len(lines) < len(requests):
        return None
    together = Lines(b"", sum(map(len, lines)))
    together.texts = [each.text for each in lines]
    return together


def size_of(records: Sequence[bytes]) -> int:
    """Bytes of all records."""
    if isinstance(records, Lines):
        return sum(map(len, records.texts)) + len(records.texts) - 1
    return sum(map(len, records))
