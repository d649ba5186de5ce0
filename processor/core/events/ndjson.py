"""Sans-I/O: split an NDJSON body into lines, one for each event. Lines are not parsed here."""

import re
from collections.abc import Sequence

import numpy as np

from processor.core.events.lines import Lines
from processor.core.kernel.loaded import kernel

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
