"""Checks of a whole batch at a time: ids, times and costs in a few calls of numpy instead of a few of Python an event.

Each function gives what its one-at-a-time twin (`event.is_uuid4`, `clock.parse_timestamp`, `money.parse_cost`) gives
for every text, or raises `ValueError` if that does for any of them: then the caller goes through them one by one.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from processor.core.clock import HOUR, MINUTE, SECOND, parse_timestamp
from processor.core.events.fields import MAX_INT
from processor.core.money import PICO, parse_cost

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


def _classes(*classes: bytes) -> bytes:
    """A table for `bytes.translate`: each byte becomes one bit for each class it is in."""
    table = bytearray(256)
    for bit, members in enumerate(classes):
        for byte in members:
            table[byte] |= 1 << bit
    return bytes(table)


# --- event ids -------------------------------------------------------------------------------------------------------

_ID_CLASSES: Final = _classes(b"0123456789abcdefABCDEF", b"4", b"89abAB", b"-", b"\n")
_ID_FORM: Final = np.array([1 << "x4v-\n".index(c) for c in "xxxxxxxx-xxxx-4xxx-vxxx-xxxxxxxxxxxx\n"], np.uint8)
_ID_LINE: Final = len(_ID_FORM)


def uuid_bytes(texts: Sequence[str]) -> bytes:
    """The 16 bytes of each UUID version 4, one after the other."""
    # The line ends keep neighbours apart: there are as many as places for them, so no id can hold or lack a character.
    joined = "\n".join([*texts, ""])
    classes = np.frombuffer(joined.encode("ascii").translate(_ID_CLASSES), np.uint8)
    if len(classes) != _ID_LINE * len(texts) or not (classes.reshape(-1, _ID_LINE) & _ID_FORM).all():
        raise ValueError("not all are UUIDs of version 4")
    return bytes.fromhex(joined.replace("-", ""))  # passes over the line ends


# --- times -----------------------------------------------------------------------------------------------------------


class _Form(NamedTuple):
    """How times of one length are written: the lowest and the span of each byte, and what the digits weigh."""

    low: Bytes
    span: Bytes
    weights: NDArray[np.float64]
    """(bytes of a line, 4): hours, minutes, seconds, microseconds; floats, for numpy multiplies those fastest."""
    limits: NDArray[np.float64]
    """What hours, minutes, seconds and microseconds stay below."""


_UNITS: Final = np.array([HOUR, MINUTE, SECOND, 1], np.float64)
_DATE: Final = len("2026-04-20T")


def _form(text: str) -> _Form:
    """The form of `text`, in which H, M, S and f stand for the digits of a time, d for any other digit."""
    line = text + "\n"
    weights = np.zeros((len(line), 4))
    for column, letter in enumerate("HMSf"):
        for rank in range(line.count(letter)):
            weights[line.index(letter) + rank, column] = 10 ** ((6 if letter == "f" else 2) - 1 - rank)
    low = line.translate(str.maketrans("dHMSf", "00000"))
    span = [9 if letter in "dHMSf" else 0 for letter in line]
    return _Form(
        np.frombuffer(low.encode(), np.uint8), np.array(span, np.uint8), weights, np.array([24, 60, 60, 10**6], float)
    )


_FORMS: Final = {
    len(text): _form(text)
    for fraction in ("", ".fff", ".ffffff")
    for offset in ("Z", "+00:00")
    for text in [f"dddd-dd-ddTHH:MM:SS{fraction}{offset}"]
}
"""The ways JavaScript and Python write a time of UTC: six, of six lengths."""


def parse_timestamps(texts: Sequence[str]) -> Ints:
    """Microseconds since the epoch. Fast if all are of one day and written in one of the usual ways, like most."""
    form = _FORMS.get(len(texts[0])) if texts else None
    if form is not None and texts[0].isascii():
        line = len(form.low)
        joined = "\n".join([*texts, ""]).encode()
        if len(joined) == line * len(texts):
            found = np.frombuffer(joined, np.uint8).reshape(-1, line)
            digits = found - form.low  # what lies below wraps round to above the span
            if (digits <= form.span).all() and (found[:, :_DATE] == found[0, :_DATE]).all():
                parts = digits @ form.weights
                if (parts < form.limits).all():
                    midnight = parse_timestamp(texts[0][:_DATE] + "00:00:00.000Z")
                    times: Ints = (parts @ _UNITS).astype(np.int64)
                    return times + midnight
    return np.array([parse_timestamp(text) for text in texts], np.int64)


# --- tokens ----------------------------------------------------------------------------------------------------------


def with_cached(inputs: Sequence[int], cached: Sequence[int]) -> Sequence[int]:
    """Input tokens of events whose sender may count cached tokens beside them: where there are more of those, the sum
    of both. All are at most `MAX_INT`; raises `ValueError` for a sum that is not."""
    found, beside = np.array(inputs, np.int64), np.array(cached, np.int64)
    over = beside > found
    if not over.any():
        return inputs
    found[over] += beside[over]
    if found.max() > MAX_INT:
        raise ValueError("more tokens than a count can hold")
    sums: list[int] = found.tolist()
    return sums


# --- costs -----------------------------------------------------------------------------------------------------------

_SLACK: Final = 2.0**-51


def parse_costs(texts: Sequence[str]) -> Ints:
    """Picodollars. The texts are numbers as JSON writes them, or anything that `float` refuses."""
    numbers = np.fromiter(map(float, texts), np.float64, len(texts))
    near = np.minimum(numbers, 10**7) * PICO  # without the overflow of `1e400`
    whole = np.rint(near)
    # The double nearest to a decimal and its product with 10^12 are each off by at most 2^-53 of themselves, so the
    # exact value lies within `_SLACK` of `near`. As long as that does not reach half a picodollar (a tie, or above
    # 1,100 dollars), there is only one way to round it. A zero may be a negative number too small for a double.
    sure = (np.abs(near - whole) + near * _SLACK < 0.5) & (numbers > 0)
    if sure.all():
        costs: Ints = whole.astype(np.int64)
        return costs
    return np.array(
        [int(cost) if certain else parse_cost(text) for cost, certain, text in zip(whole, sure, texts, strict=True)],
        np.int64,
    )
