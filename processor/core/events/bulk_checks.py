"""Checks of a whole batch at a time: ids, times and costs in a few calls of numpy instead of a few of Python an event.

Each function gives what its one-at-a-time twin (`event.is_uuid4`, `clock.parse_timestamp`, `money.parse_cost`) gives
for every text, or raises `ValueError` if that does for any of them: then the caller goes through them one by one.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from processor.core.clock import DAY, HOUR, parse_timestamp
from processor.core.events.fields import MAX_INT
from processor.core.money import PICO, parse_cost

Ints = NDArray[np.int64]

_ZEROS: Final = bytes.maketrans(b"123456789", b"0" * 9)
"""For `bytes.translate`: every digit is the same."""


# --- event ids -------------------------------------------------------------------------------------------------------

_HEX_AS_ZEROS: Final = bytes.maketrans(b"123456789abcdefABCDEF", b"0" * 21)
_ID_FORM: Final = b"00000000-0000-0000-0000-000000000000\n"
_VERSION: Final = slice(14, None, len(_ID_FORM))
_VARIANT: Final = slice(19, None, len(_ID_FORM))


def uuid_bytes(texts: Sequence[str]) -> bytes:
    """The 16 bytes of each UUID version 4, one after the other."""
    # The line ends keep neighbours apart: they are where the form has them, so no id can hold or lack a character.
    joined = "\n".join([*texts, ""])
    found = joined.encode("ascii")
    if (
        found.translate(_HEX_AS_ZEROS) != _ID_FORM * len(texts)
        or found[_VERSION] != b"4" * len(texts)
        or found[_VARIANT].strip(b"89abAB")
    ):
        raise ValueError("not all are UUIDs of version 4")
    return bytes.fromhex(joined.replace("-", ""))  # passes over the line ends


# --- times -----------------------------------------------------------------------------------------------------------


class _Form(NamedTuple):
    """How times of one length are written."""

    blank: bytes
    """A line of it with every digit 0."""
    offset: bytes
    """Its end."""
    second: int
    """A second in units of the last digit."""
    unit: int
    """Microseconds in one of these units."""


_DATE: Final = len("2026-04-20T")
_MINUTES: Final = len("2026-04-20T10:")
_SECONDS: Final = len("2026-04-20T10:00:")
_FORMS: Final = {
    len(text): _Form(f"{text}\n".encode(), f"{offset}\n".encode(), 10**places, 10 ** (6 - places))
    for places, fraction in ((0, ""), (3, ".000"), (6, ".000000"))
    for offset in ("Z", "+00:00")
    for text in [f"0000-00-00T00:00:00{fraction}{offset}"]
}
"""The ways JavaScript and Python write a time of UTC: six, of six lengths."""
MANY_DAYS: Final = 16
"""Days from which on times are read one by one."""


def parse_timestamps(texts: Sequence[str]) -> Ints:
    """Microseconds since the epoch. Fast if all are written in one of the usual ways and are of few days, like most.

    On texts as a whole, not on arrays of their bytes: numpy lets the interpreter's lock go for more than 500 elements,
    and each time this thread waits for a core that it had.
    """
    form = _FORMS.get(len(texts[0])) if texts else None
    if form is not None:
        times = _of_form(texts, form)
        if times is not None:
            return times
    return np.array([parse_timestamp(text) for text in texts], np.int64)


def _of_form(texts: Sequence[str], form: _Form) -> Ints | None:
    """`parse_timestamps` if all are of a form and of few days, else None."""
    joined = "\n".join([*texts, ""]).encode()
    line = len(form.blank)
    if (
        joined.translate(_ZEROS) != form.blank * len(texts)
        or joined.count(form.offset) != len(texts)  # those of zeros may have been others
        or joined[_MINUTES::line].strip(b"012345")
        or joined[_SECONDS::line].strip(b"012345")
    ):
        return None
    date = texts[0][:_DATE]
    if joined.count(date.encode()) == len(texts):
        midnights: Ints | int = _midnight(date)
        joined = joined.replace(date.encode(), b"")
    else:
        dates = [text[:_DATE] for text in texts]
        days = {date: _midnight(date) for date in set(dates)}
        if len(days) > MANY_DAYS:
            return None
        midnights = np.fromiter(map(days.__getitem__, dates), np.int64, len(dates))
        for each in days:
            joined = joined.replace(each.encode(), b"")
    clocks = joined.replace(form.offset, b"\n").translate(None, b":.").split()
    # A clock reads hhmmss and the fraction, in decimal digits: to the base of 60 they are less.
    found = np.fromiter(map(int, clocks), np.int64, len(clocks))
    hours, minutes = found // (10_000 * form.second), found // (100 * form.second)
    if hours.max() >= DAY // HOUR:
        return None
    seconds = found - 40 * form.second * minutes - 2400 * form.second * hours
    times: Ints = seconds * form.unit + midnights
    return times


def _midnight(date: str) -> int:
    return parse_timestamp(date + "00:00:00.000Z")


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
