"""Money as whole picodollars (10^-12 US dollars).

A cost is read as the decimal that was written, rounded half-even to 12 places once, at intake; from there on it is an
integer, so sums are exact in any order and never overflow (Python integers).
"""

from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Final

from msgspec import Raw

PLACES = 12
PICO: int = 10**PLACES
"""Picodollars in a dollar."""

MAX_COST = 1_000_000
"""The highest cost of one event, in dollars."""


_MAX_INT: Final = 2**63 - 1
"""The largest that msgspec encodes."""
_POWERS: list[int] = [10**n for n in range(PLACES + 1)]
_QUANTUM = Decimal(1).scaleb(-PLACES)


class OutOfRange(ValueError):
    """The number is a decimal, but negative or above `MAX_COST`."""


def parse_cost(text: str) -> int:
    """Read a JSON number or plain decimal as picodollars.

    Raises `OutOfRange` below 0 or above `MAX_COST` (judged on the decimal as written, before rounding) and
    `ValueError` if `text` is not a finite decimal number.
    """
    whole, _, frac = text.partition(".")
    if (
        len(whole) < 7 and whole.isdecimal() and whole.isascii()
    ):  # the usual "0.0034"; its length keeps it below the maximum
        if not frac:
            if len(whole) == len(text):
                return int(whole) * PICO
        elif len(frac) <= PLACES and frac.isdecimal() and frac.isascii():
            return int(whole + frac) * _POWERS[PLACES - len(frac)]
    return _parse_any(text)


def _parse_any(text: str) -> int:
    if not text or text[0] not in "-0123456789" or text[-1] not in "0123456789" or "_" in text or not text.isascii():
        raise ValueError(f"not a decimal number: {text[:40]!r}")
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"not a decimal number: {text[:40]!r}") from None
    if not value.is_finite():
        raise ValueError(f"not a decimal number: {text[:40]!r}")
    if not 0 <= value <= MAX_COST:
        raise OutOfRange(f"must be between 0 and {MAX_COST:,}")
    exact = Context(
        prec=len(text) + 40, Emin=-(10**17), Emax=10**17
    )  # no digit of the input is lost before the rounding
    return int(value.quantize(_QUANTUM, ROUND_HALF_EVEN, exact).scaleb(PLACES, exact))


def format_cost(pico: int) -> str:
    """Write picodollars as a plain decimal number: all digits, no exponent, no trailing zeros."""
    sign = "-" if pico < 0 else ""
    whole, frac = divmod(abs(pico), PICO)
    if not frac:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{frac:012d}".rstrip("0")


def exact_number(value: int) -> int | Raw:
    """Return an integer of any size as what msgspec's encoder writes with all its digits."""
    return value if value <= _MAX_INT else Raw(str(value).encode())


def exact_decimal(pico: int) -> Raw:
    """Return picodollars as a decimal number of dollars, with all its digits."""
    return Raw(format_cost(pico).encode())
