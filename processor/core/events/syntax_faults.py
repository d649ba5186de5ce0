"""Why a line is not JSON: the cause as it is, the field that has it, and the event's id, as far as they can be read.

Only lines that the decoder has refused come here. The decoder of the standard library takes what JSON lacks (NaN, half
a character), so it can step over such a value to the fields beside it.
"""

import json
import re
from typing import Final, NamedTuple

from processor.core.events.event import MAX_KEY_SHOWN, Fault
from processor.core.events.fields import MAX_TEXT, NAMES

MAX_BYTES: Final = 4 * 1024
"""Bytes of a line up to which its fields are looked for."""

MAX_LINES: Final = 16
"""Lines of a request whose fields are looked for, the first bad ones: 64 KiB of it at most. A request of a hundred bad
lines must cost little."""

MAX_FIELDS: Final = 64
"""Fields of a line that are looked at, for the same reason."""

_skip_space = re.compile(r"[ \t\r\n]*").match
_find_half = re.compile("[\ud800-\udfff]").search


class LinePlace(NamedTuple):
    """What could be read of a line."""

    cause: str | None
    """What is wrong, without the field; None: nothing was found."""
    name: str | None
    """The top-level name under which it stands."""
    event_id: str | None


class LineBudget:
    """How many more lines of a request are looked into. What is spent depends on nothing but its lines and their order:
    the same request has the same faults each time.
    """

    __slots__ = ("_lines",)

    def __init__(self, lines: int = MAX_LINES) -> None:
        self._lines = lines

    def spend(self) -> bool:
        """Take one line's share; False: there is none left."""
        if not self._lines:
            return False
        self._lines -= 1
        return True


def syntax_fault(record: bytes, otherwise: str, budget: LineBudget | None = None) -> Fault:
    """The fault of a line that is UTF-8 and not JSON; `otherwise` is the decoder's own word for it, which is all there
    is to say of a long line, or when the `budget` is spent (None: the line is alone).
    """
    place = _place(record, budget)
    if place.cause is not None:
        return _fault(f"not valid JSON: {place.cause}", place)
    if record.endswith(b"}"):  # the decoder calls a string that ends with half a character truncated, too
        otherwise = otherwise.replace("Input data was truncated", "a string or a number in it is broken")
    return _fault(f"not valid JSON: {otherwise}", place)


def encoding_fault(record: bytes, error: UnicodeDecodeError, budget: LineBudget | None = None) -> Fault:
    """The fault of a line that is not UTF-8; `budget`: see `syntax_fault`."""
    if record.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Fault("syntax", None, "not valid UTF-8 but UTF-16: send UTF-8")
    return _fault(f"not valid UTF-8 at byte {error.start}", _place(record, budget))


def _fault(message: str, place: LinePlace) -> Fault:
    if place.name is not None:
        message = f"{message} (in {place.name[:MAX_KEY_SHOWN]!r})"
    return Fault("syntax", place.name if place.name in NAMES else None, message, place.event_id)


def _place(record: bytes, budget: LineBudget | None) -> LinePlace:
    if len(record) > MAX_BYTES or not (budget is None or budget.spend()):
        return LinePlace(None, None, None)
    try:
        return _walk(record.decode("utf-8", "surrogateescape"))
    except RecursionError:
        return LinePlace(None, None, None)


def _walk(text: str) -> LinePlace:
    """Go from field to field, as far as they can be read, for the first bad one and for the id."""
    constants: list[str] = []
    decoder = json.JSONDecoder(parse_constant=constants.append, parse_int=len, parse_float=len)
    found: tuple[str, str | None] | None = None
    event_id: str | None = None
    name: str | None = None
    at = _after_space(text, 0)
    if text[at : at + 1] != "{":
        return LinePlace(None, None, None)
    try:
        for _ in range(MAX_FIELDS):
            name = None
            at = _expect(text, at + 1, '"')
            name, at = decoder.raw_decode(text, at)
            at = _after_space(text, _expect(text, at, ":") + 1)
            value, at = decoder.raw_decode(text, at)
            if found is None and (cause := _cause(name, value, constants)) is not None:
                found = cause, name
            if name == "event_id":
                event_id = value if isinstance(value, str) else None
            at = _after_space(text, at)
            if text[at : at + 1] != ",":
                break
        else:
            name = None
        if found is None and text[at : at + 1] == "}" and _after_space(text, at + 1) < len(text):
            found, name = (f"something follows the object, at character {at + 2}", None), None
        elif found is None and text[at : at + 1] not in ("}", ","):
            found = _ends_or(text, at, "Expecting ',' or '}'"), name
    except json.JSONDecodeError as error:
        found = found or (_ends_or(text, error.pos, error.msg), name)
    if event_id is not None and (len(event_id) > MAX_TEXT or _find_half(event_id)):
        event_id = None
    cause, name = found or (None, None)
    return LinePlace(cause, None if name is None or _find_half(name) else name, event_id)


def _expect(text: str, at: int, wanted: str) -> int:
    """Where `wanted` stands after white space."""
    at = _after_space(text, at)
    if text[at : at + 1] != wanted:
        raise json.JSONDecodeError(f"Expecting {wanted!r}", text, at)
    return at


def _after_space(text: str, at: int) -> int:
    match = _skip_space(text, at)
    return match.end() if match else at


def _ends_or(text: str, at: int, what: str) -> str:
    """A cause by the decoder's word for it, if the line does not simply end there."""
    if what.startswith("Unterminated string"):
        return f"the line ends inside of the string that begins at character {at + 1}"
    return "the line ends too early" if at >= len(text) else f"{what.removesuffix(' at')} at character {at + 1}"


def _cause(name: str, value: object, constants: list[str]) -> str | None:
    """What JSON does not have in a field that was read."""
    if constants:
        constant = constants[0]
        constants.clear()
        return f"{constant} is not a number of JSON, leave the value out"
    waiting = [name, value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            half = _find_half(each)
            if half is not None and half[0] < "\udc00":
                return f"half a character (\\u{ord(half[0]):04x} without its pair): the text was cut inside of one"
            if half is not None:
                return f"half a character (\\u{ord(half[0]):04x} without what goes before it)"
        elif isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, list):
            waiting += each
    return None
