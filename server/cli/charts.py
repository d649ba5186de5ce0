"""Small charts made of characters: bars, sparklines, and the time line of a trace. Pure."""

from collections.abc import Sequence
from typing import Final

_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_HEIGHTS: Final = "▁▂▃▄▅▆▇█"
_ASCII_HEIGHTS: Final = "_.-=+*#@"


def bar(value: float, most: float, width: int, *, ascii_only: bool = False) -> str:
    """Return a bar that is `width` characters long for `most`; one that is above 0 is never empty."""
    if value <= 0 or most <= 0:
        return ""
    eighths = max(1, round(min(value / most, 1.0) * width * 8))
    if ascii_only:
        return "#" * max(1, round(eighths / 8))
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")


def sparkline(values: Sequence[float | None], width: int, *, ascii_only: bool = False) -> str:
    """Return a character a value, as high as its share of the greatest; None: a blank.

    More values than `width` are put together: a character then stands for the greatest of several neighbours.
    """
    heights = _ASCII_HEIGHTS if ascii_only else _HEIGHTS
    shown = [_greatest(part) for part in _parts(values, width)]
    most = max((value for value in shown if value is not None), default=0.0)
    return "".join(" " if value is None else heights[_level(value, most, len(heights))] for value in shown)


def time_line(start: float, end: float, length: float, width: int, *, ascii_only: bool = False) -> str:
    """Return the time from `start` to `end` as a mark on a line that stands for 0 to `length`."""
    if length <= 0:
        return _mark(ascii_only) * width
    first = min(int(_share(start, length) * width), width - 1)
    behind = min(max(round(_share(end, length) * width), first + 1), width)
    return (" " * first + _mark(ascii_only) * (behind - first)).ljust(width)


def _share(value: float, most: float) -> float:
    """Return the part of `most`, from 0 to 1; a quotient may be more than a float can hold."""
    return min(max(value / most, 0.0), 1.0)


def _mark(ascii_only: bool) -> str:
    return "=" if ascii_only else "━"


def _parts(values: Sequence[float | None], width: int) -> list[Sequence[float | None]]:
    if len(values) <= width:
        return [values[at : at + 1] for at in range(len(values))]
    ends = [len(values) * (at + 1) // width for at in range(width)]
    return [values[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _greatest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _level(value: float, most: float, levels: int) -> int:
    return 0 if most <= 0 or value <= 0 else min(int(value / most * levels), levels - 1)
