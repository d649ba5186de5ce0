"""Sans-I/O: split an NDJSON body into lines, one for each event. Lines are not parsed here.

The events of a usual body stay the one text they came in (`Lines`), cut up only where single events are looked at: a
request is decoded as a whole, and its original bytes go into the log as they are, so a hundred copies of lines are
never made.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import overload

import numpy as np
from numpy.typing import NDArray

from processor.core.kernel.loaded import kernel

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


def by_home(records: Sequence[bytes], homes: NDArray[np.int64], partitions: int) -> list[Sequence[bytes]]:
    """The records of each partition that has any, in the order of the partitions; `homes`: the partition of each.

    Raises `ValueError` where there are not as many of both.
    """
    if isinstance(records, Lines) and kernel is not None:
        counts = np.bincount(homes, minlength=partitions)
        texts = kernel.lines_by_home(records.text, homes, partitions)
        return [Lines(text, count) for text, count in zip(texts, counts[counts > 0].tolist(), strict=True)]
    found: dict[int, list[bytes]] = {}
    for home, record in zip(homes.tolist(), records, strict=True):
        found.setdefault(home, []).append(record)
    chosen = [found[home] for home in sorted(found)]
    return [Lines(SEPARATOR.join(each), len(each)) for each in chosen] if isinstance(records, Lines) else [*chosen]


def lines_of(text: bytes) -> Lines:
    """The lines of a text, which are kept as one piece. To count them as bytes would take five times as long."""
    if kernel is not None:
        return Lines(text, 1 + kernel.line_ends(text))
    return Lines(text, 1 + int(np.count_nonzero(np.frombuffer(text, np.uint8) == _END)))


def size_of(records: Sequence[bytes]) -> int:
    """Bytes of all records."""
    if isinstance(records, Lines):
        return sum(map(len, records.texts)) + len(records.texts) - 1
    return sum(map(len, records))


_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
"""White space as JSON defines it; a vertical tab is none, so a line with one is not blank."""
_FEW = 8 * 1024
"""Bytes up to which it is faster to count than to look at the body as an array."""
_USUAL = 1024 * 1024
"""Bytes up to which a body is looked at as an array: the places of its line ends may take eight times as much."""
_END, _OPENS, _CLOSES = b"\n{}"
_skip_blank = re.compile(rb"[%b]*" % _SPACE).match


def split(body: bytes, limit: int) -> tuple[Sequence[bytes], Sequence[int]]:
    """The non-blank lines of `body` without surrounding white space, and the number of each in the body, from 1.

    Lines end with LF or CRLF, the last one may lack its end, and a UTF-8 byte order mark at the start is skipped. Stops
    after `limit` + 1 lines: enough to see that there are too many, whatever else the body holds.
    """
    if body.startswith(b"{") and body.endswith((b"}", b"}\n")):
        count = _objects(body)
        if 0 < count <= limit:  # nearly always
            return Lines(body.removesuffix(b"\n"), count), range(1, count + 1)
    return _split(body, limit)


def _objects(body: bytes) -> int:
    """How many lines a body has, if each begins and ends as an object does, as the first and the last do; 0 if not."""
    if kernel is not None:
        count: int = kernel.objects(body) if len(body) <= _USUAL else 0
        return count
    return _objects_by_numpy(body)


def _objects_by_numpy(body: bytes) -> int:
    """The kernel's twin."""
    if len(body) <= _FEW:
        ends = body.count(b"\n", 0, -1)
        return ends + 1 if ends == body.count(b"}\n{") else 0
    if len(body) > _USUAL:
        return 0
    found = np.frombuffer(body, np.uint8, len(body) - body.endswith(b"\n"))
    places = np.flatnonzero(found == _END)
    is_usual = (found[places - 1] == _CLOSES).all() and (found[places + 1] == _OPENS).all()
    return len(places) + 1 if is_usual else 0


def _split(body: bytes, limit: int) -> tuple[list[bytes], list[int]]:
    """The same for any body."""
    records: list[bytes] = []
    lines: list[int] = []
    position = len(_BOM) if body.startswith(_BOM) else 0
    end = len(body)
    line = 1
    while len(records) <= limit:
        start = _first_byte(body, position)
        if start == end:
            break
        if start != position:
            line += body.count(b"\n", position, start)
        stop = body.find(b"\n", start)
        if stop < 0:
            stop = end
        records.append(body[start:stop].rstrip(_SPACE))
        lines.append(line)
        line += 1
        position = min(stop + 1, end)
    return records, lines


def _first_byte(body: bytes, position: int) -> int:
    """Where the next byte is that is not white space."""
    match = _skip_blank(body, position)
    return match.end() if match else position
