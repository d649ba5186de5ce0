"""Exact numbers in JSON: integers of any size and decimal money, where the encoder would stop at 64 bits or round."""

from typing import Final

from msgspec import Raw

from processor.core.money import format_cost

_MAX_INT: Final = 2**63 - 1


def exact_number(value: int) -> int | Raw:
    """Return an integer of any size as what msgspec's encoder writes with all its digits."""
    return value if value <= _MAX_INT else Raw(str(value).encode())


def exact_decimal(pico: int) -> Raw:
    """Return picodollars as a decimal number of dollars, with all its digits."""
    return Raw(format_cost(pico).encode())
