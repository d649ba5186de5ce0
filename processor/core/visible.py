"""Make text from outside safe to print: control characters and invisible characters become escapes."""

import re
from typing import Final

HIDDEN: Final = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: cursor movement, titles, the clipboard (ESC, CSI, OSC)
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidi controls: text is shown in another order than it has
    "\u00ad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # characters without a width
    "\u2028\u2029"  # line and paragraph separators
    "\ud800-\udfff"  # lone surrogates: no encoding can write them
    "\U000e0000-\U000e007f"  # tags: a text of their own that is not shown
    "]"
)
"""One character that must not be printed as it is. The joiners U+200C and U+200D are not among them: Persian, Indic
scripts and emoji are written with them."""

_SHORT: Final = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def escape(character: str) -> str:
    r"""Return the escape of one character, as in a Python string: `\n`, `\x1b`, `\u202e`, `\U000e0041`."""
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: str) -> str:
    """Return `text` with every hidden character as its escape. Line breaks and tabs count as hidden."""
    return HIDDEN.sub(lambda found: escape(found[0]), text)


def visible_lines(text: str) -> str:
    r"""As `visible`, for text of several lines, like a traceback: `\n` stays."""
    return "\n".join(map(visible, text.split("\n")))


_JSON_HIDDEN: Final = re.compile(f"(?![\t\n\r]){HIDDEN.pattern}")
_NOT_ASCII: Final = re.compile("[^\x00-\x7e]")


def visible_json(text: str, *, ascii_only: bool = False) -> str:
    r"""JSON of the same value with hidden characters as `\u` escapes; with `ascii_only` all that are not ASCII.

    In valid JSON they stand in strings only, apart from the white space between tokens, which stays.
    """
    escaped = _JSON_HIDDEN.sub(_json_escape, text)
    return _NOT_ASCII.sub(_json_escape, escaped) if ascii_only else escaped


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
