"""Sans-I/O: cuts an NDJSON body into its events. Nothing here looks into a line."""

import re
from operator import methodcaller

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
"""White space as JSON has it; a vertical tab is none, and a line of it is not blank."""
_opens, _closes = methodcaller("startswith", b"{"), methodcaller("endswith", b"}")
_skip_blank = re.compile(rb"[%b]*" % _SPACE).match


def split(body: bytes, limit: int) -> tuple[list[bytes], list[int]]:
    """The non-blank lines of `body` without surrounding white space, and the number of each in the body, from 1.

    Lines end with LF or CRLF, the last one may lack its end, and a UTF-8 byte order mark at the start is skipped. Stops
    after `limit` + 1 lines: enough to see that there are too many, whatever else the body holds.
    """
    if body.count(b"\n") <= limit:
        records = body.split(b"\n")
        if not records[-1]:
            records.pop()
        if all(map(_opens, records)) and all(map(_closes, records)):  # nearly always
            return records, list(range(1, len(records) + 1))
    return _split(body, limit)


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
