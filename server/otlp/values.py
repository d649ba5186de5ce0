"""Values of attributes as JSON has them, each cut to a size and a depth, so that a hostile one costs little.

Both encodings open a value in their own way into a scalar, `Items` or `Pairs`; what holds others is opened further only
as far as it is kept.
"""

from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from math import isfinite, isnan
from typing import Any, Final, NamedTuple

MAX_VALUE: Final = 8 * 1024
"""Bytes of a value that are kept."""
MAX_NAME: Final = 256
"""Bytes of a name that are kept."""
MAX_DEPTH: Final = 32
"""Lists and objects in each other that are kept."""
TOO_DEEP: Final = f"[cut: nested deeper than {MAX_DEPTH}]"
CUT: Final = "[cut]"
"""The name, in an object that was cut, under which it says how much it had."""
UNREADABLE: Final = "[unreadable]"
"""Stands for a value that cannot be decoded."""

Value = Any
"""None, bool, int, float, str, or a list or dict of these."""


class Items(NamedTuple):
    """A list whose values have not been opened."""

    values: list[Any]


class Pairs(NamedTuple):
    """An object whose values have not been opened."""

    pairs: Iterable[tuple[str, Any]]
    size: int


def text_of(raw: bytes) -> str:
    """Text that is kept, from its bytes; what is no UTF-8 is replaced."""
    if len(raw) <= MAX_VALUE:
        return raw.decode("utf-8", "replace")
    kept = raw[:MAX_VALUE].decode("utf-8", "replace").rstrip("\ufffd")
    return f"{kept}… [cut: {len(raw)} bytes]"


def cut_text(text: str) -> str:
    """The same from a text."""
    return text if len(text) <= MAX_VALUE // 4 else text_of(text.encode("utf-8", "replace"))


def name_of(raw: bytes) -> str:
    """A name that is kept, from its bytes."""
    return raw[:MAX_NAME].decode("utf-8", "replace")


def cut_name(text: str) -> str:
    """The same from a text."""
    return text if len(text) <= MAX_NAME // 4 else name_of(text.encode("utf-8", "replace"))


def base64_of(raw: bytes) -> str:
    """Bytes that are kept, as base64."""
    most = MAX_VALUE // 4 * 3
    text = b64encode(raw[:most]).decode()
    return text if len(raw) <= most else f"{text}… [cut: {len(raw)} bytes]"


def number_of(value: float) -> float | str:
    """A number as JSON can say it: what is not finite becomes text."""
    if isfinite(value):
        return value
    return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"


class _Frame(NamedTuple):
    """A list or an object that is being filled."""

    into: "list[Any] | dict[str, Any]"
    left: Iterator[Any]


def _frame(opened: Items | Pairs) -> _Frame:
    return _Frame([], iter(opened.values)) if isinstance(opened, Items) else _Frame({}, iter(opened.pairs))


def composed(root: Items | Pairs, open_value: Callable[[Any], Any]) -> Value:
    """What a list or an object holds, opened by `open_value`, without recursion. Where `MAX_VALUE` bytes are reached it
    ends with how many values it had."""
    room = MAX_VALUE
    top = _frame(root)
    frames = [top]
    while frames:
        into, left = frames[-1]
        item: Any = next(left, _END)
        if item is _END:
            frames.pop()
            continue
        name: str = item[0] if isinstance(into, dict) else ""
        value = open_value(item[1] if isinstance(into, dict) else item)
        if isinstance(value, Items | Pairs):
            value = TOO_DEEP if len(frames) >= MAX_DEPTH else _frame(value)
        room -= len(name) + (len(value) if isinstance(value, str) else 8)
        if room < 0:
            _end(top.into, len(root.values) if isinstance(root, Items) else root.size)
            break
        if isinstance(value, _Frame):
            frames.append(value)
            value = value.into
        if isinstance(into, dict):
            into[name] = value
        else:
            into.append(value)
    return top.into


_END: Final = object()


def _end(into: "list[Any] | dict[str, Any]", count: int) -> None:
    """Say in a list or an object that it was cut."""
    if isinstance(into, dict):
        into[CUT] = f"{count} members"
    else:
        into.append(f"[cut: {count} items]")
