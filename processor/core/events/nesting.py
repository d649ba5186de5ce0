"""How deep a JSON text is nested."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_QUOTE, _ESCAPED, _OPEN, _CLOSE = b'"q[]'
_KINDS: Final = bytes(
    _OPEN if byte in b"[{" else _CLOSE if byte in b"]}" else byte if byte in b'"\\' else 0x20 for byte in range(256)
)
"""What each byte stands for: quote and backslash for themselves, a bracket for its direction, a blank for the rest."""
_STEP: Final = np.zeros(256, np.int8)
_STEP[_OPEN] = 1
_STEP[_CLOSE] = -1


def is_deeper(text: bytes, limit: int) -> bool:
    """Whether objects and lists, the outermost one counted, are nested deeper than `limit`.

    Strings do not count, from a quote to the next one without an odd number of backslashes before it; one that does not
    end is none. Linear in the length, whatever the text: 16 KiB take 0.02 to 0.4 ms. A regular expression that finds
    the strings took up to 2 ms, and 1.5 s where many escaped quotes stand in a string that does not end.
    """
    if text.count(b"{") + text.count(b"[") <= limit:
        return False
    # An even number of backslashes escapes nothing, an odd one the quote behind it; then none of them matters any more.
    kinds = text.translate(_KINDS)
    if b"\\" in kinds:
        kinds = kinds.replace(b"\\\\", b"  ").replace(b'\\"', b"q")
    marks = np.frombuffer(kinds.translate(None, b" \\"), np.uint8)
    steps = _STEP[marks]
    if b'"' in kinds or b"q" in kinds:
        steps[_is_inside(marks)] = 0
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0)) > limit


def _is_inside(marks: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether what stands at each place is in a string. A quote begins or ends one; an escaped one only begins one."""
    turns = np.cumsum(marks == _QUOTE, dtype=np.int32)
    escaped = marks == _ESCAPED
    if escaped.any():  # each begins the count anew, with a string
        turns += np.logical_or.accumulate(escaped) - np.maximum.accumulate(np.where(escaped, turns, 0))
    inside: NDArray[np.bool_] = turns & 1 == 1
    if inside[-1]:  # the last one does not end
        outside = np.flatnonzero(~inside)
        inside[outside[-1] + 1 if len(outside) else 0 :] = False
    return inside
