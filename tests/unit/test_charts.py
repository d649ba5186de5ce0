"""Charts of characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cli.charts import bar, sparkline, time_line

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "drawn"), [(0, ""), (-1, ""), (0.001, "▏"), (5, "█████"), (5.5, "█████▌"), (10, "█" * 10), (99, "█" * 10)]
)
def test_bars(value: float, drawn: str) -> None:
    assert bar(value, 10, 10) == drawn
    assert set(bar(value, 10, 10, ascii_only=True)) == (set("#") if drawn else set())


def test_sparklines() -> None:
    assert sparkline([0, 1, None, 7, 8], 10) == "▁▂ ██"
    assert sparkline([1, 2, 3, 4], 2) == "▅█"
    assert sparkline([0, 0], 9) == "▁▁"
    assert sparkline([None], 9) == " "
    assert sparkline([], 9) == ""
    assert sparkline([0, 4], 9, ascii_only=True) == "_@"


@pytest.mark.parametrize(
    ("start", "end", "drawn"),
    [
        (0, 100, "━━━━━━━━━━"),
        (0, 0, "━         "),
        (50, 60, "     ━    "),
        (100, 100, "         ━"),
        (-5, 1, "━         "),
    ],
)
def test_time_lines(start: float, end: float, drawn: str) -> None:
    assert time_line(start, end, 100, 10) == drawn
    assert time_line(start, end, 100, 10, ascii_only=True) == drawn.replace("━", "=")


def test_a_trace_of_no_length() -> None:
    assert time_line(0, 0, 0, 5) == "━━━━━"
    assert time_line(1e9, 1e9, 5e-324, 5) == "    ━"
    assert time_line(0, 1e9, 5e-324, 5) == "━━━━━"


@given(NUMBERS, NUMBERS, NUMBERS, st.lists(NUMBERS | st.none()), st.integers(1, 40))
def test_no_chart_is_wider_than_asked(a: float, b: float, c: float, values: list[float | None], width: int) -> None:
    assert len(bar(a, b, width)) <= width
    assert len(sparkline(values, width)) == min(len(values), width)
    assert len(time_line(a, b, c, width)) == width
