"""How deep a JSON text is nested."""

import re
from typing import Final

import numpy as np

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STEP: Final = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def is_deeper(text: bytes, limit: int) -> bool:
    """Whether objects and lists, the outermost one counted, are nested deeper than `limit`; linear in the length."""
    if text.count(b"{") + text.count(b"[") <= limit:
        return False
    steps = _STEP[np.frombuffer(_STRING.sub(b"", text), np.uint8)]
    return int(np.cumsum(steps, dtype=np.int64).max(initial=0)) > limit
