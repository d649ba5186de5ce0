from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.money import MAX_COST, PICO, OutOfRange, format_cost, parse_cost


@pytest.mark.parametrize(
    ("text", "pico"),
    [
        ("0", 0),
        ("-0", 0),
        ("-0.0", 0),
        ("0.0034", 3_400_000_000),
        ("1000000", MAX_COST * PICO),
        ("1000000.000", MAX_COST * PICO),
        ("1E3", 1000 * PICO),
        ("1e-12", 1),
        ("5e-13", 0),  # half to even
        ("1.5e-12", 2),
        ("2.5e-12", 2),
        ("0.0000000000005000000000000000000000000000000000000001", 1),  # above the half, however little
        ("0e999999999", 0),
        ("1e-999999999", 0),
    ],
)
def test_reads_the_decimal_that_was_written(text: str, pico: int) -> None:
    assert parse_cost(text) == pico


@pytest.mark.parametrize("text", ["-0.01", "-1e-30", "1000000.0000000000001", "1e7", "1e999999999", "9" * 5000])
def test_out_of_range_is_judged_before_the_rounding(text: str) -> None:
    with pytest.raises(OutOfRange):
        parse_cost(text)


@pytest.mark.parametrize(
    "text", ["", ".", "1.", ".5", "+1", "NaN", "Infinity", "1_000", "0x10", "١", "1.٥", " 1", "1e"]
)
def test_anything_else_is_no_decimal(text: str) -> None:
    with pytest.raises(ValueError, match="not a decimal"):
        parse_cost(text)


@given(st.decimals(min_value=0, max_value=MAX_COST, allow_nan=False, allow_infinity=False))
def test_rounds_half_even_to_twelve_places(value: Decimal) -> None:
    assert parse_cost(str(value)) == round(Fraction(value) * PICO)  # Python's round is half to even, and exact here


@given(st.integers(min_value=0, max_value=10**40))
def test_written_with_all_digits_and_read_back(pico: int) -> None:
    text = format_cost(pico)
    assert Fraction(text) * PICO == pico
    assert "e" not in text.lower()
    assert not ("." in text and text.endswith("0"))
