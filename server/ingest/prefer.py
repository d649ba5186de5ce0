"""Sans-I/O: parse the header `Prefer` (RFC 7240) for how a batch is handled."""

import re
from collections.abc import Iterable

from processor.core.events.event import Handling

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PREFERENCE = re.compile(
    rf"""[\s,]*(?P<name>{_WORD})(?:\s*=\s*(?:(?P<token>{_WORD})|"(?P<quoted>(?:[^"\\]|\\.)*)"))?"""
    rf"""(?:\s*;(?:\s*{_WORD}(?:\s*=\s*(?:{_WORD}|"(?:[^"\\]|\\.)*"))?)?)*\s*(?:,|$)"""
)


def handling(headers: Iterable[str]) -> Handling | None:
    """Return `strict` or `lenient` if the `Prefer` headers of a request ask for it, else None.

    Only the first `handling` counts. An unknown value is ignored, as is everything after a syntax error.
    """
    text = ",".join(headers)
    position = 0
    while match := _PREFERENCE.match(text, position):
        if match["name"].lower() == "handling":
            value = (match["token"] or match["quoted"] or "").lower()
            return "strict" if value == "strict" else "lenient" if value == "lenient" else None
        position = match.end()
    return None
