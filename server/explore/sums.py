"""What is summed over events: expressions of the columns of the store, and what the engine gives for them as numbers.

None of the expressions has a value of a question in it. Tokens, cost and `unpriced` are those of calls only, `errors`
those of all events, as in the cost tables.
"""

from decimal import Decimal
from fractions import Fraction
from typing import Final

from msgspec import Raw

from processor.core.clock import LAST, format_timestamp
from processor.core.events.fields import ERRORS
from processor.core.money import PICO, PLACES, exact_decimal, exact_number

IS_CALL: Final = "kind = 'call'"
IS_ERROR: Final = f"status IN ({', '.join(repr(status) for status in sorted(ERRORS))})"
IS_ROOT: Final = "coalesce(parent_span_id, '') = ''"

REQUESTS: Final = "count(*)"
CALLS: Final = f"count(*) FILTER ({IS_CALL})"
ERROR_COUNT: Final = f"count(*) FILTER ({IS_ERROR})"
COST: Final = f"coalesce(sum(cost_usd) FILTER ({IS_CALL}), 0)"
UNPRICED: Final = f"count(*) FILTER ({IS_CALL} AND cost_usd IS NULL)"


def tokens(column: str) -> str:
    """Return the sum of a column of token counts."""
    return f"coalesce(sum({column}) FILTER ({IS_CALL}), 0)"


START: Final = "min(epoch_us(timestamp))"
"""Microseconds since the epoch, like `FIRST_SEEN` and `LAST_SEEN`."""
LAST_SEEN: Final = "max(epoch_us(timestamp))"

MOST_LATENCY: Final = 1e15
"""Milliseconds; a longer latency ends no later."""
END: Final = (
    f"max(epoch_us(timestamp)::HUGEINT * 1000 + round(least(latency_ms, {MOST_LATENCY:.0f}) * 1000000)::HUGEINT)"
)
"""The end of the last of some events, in nanoseconds since the epoch."""
NANOS: Final = 1000
"""In a microsecond."""

BY_START: Final = "row(timestamp, received_at, log_partition, log_offset, log_index)"
"""Events in the order of their start, then of their arrival; different for any two."""

BY_START_COLUMNS: Final = ("timestamp", "received_at", "log_partition", "log_offset", "log_index")
SUM_COLUMNS: Final = ("kind", "status", "cost_usd", "input_tokens", "output_tokens", "cached_tokens", "latency_ms")
"""Columns that the expressions above need, besides those of `BY_START`."""


# --- numbers ---------------------------------------------------------------------------------------------------------


def picodollars(cost: Decimal | int | None) -> int:
    """Return a sum of costs as the engine gives it in picodollars; of any size, without rounding."""
    if cost is None:
        return 0
    sign, digits, exponent = Decimal(cost).as_tuple()
    assert isinstance(exponent, int) and exponent >= -PLACES  # noqa: PT018 - the column has 12 places
    whole: int = int("".join(map(str, digits))) * 10 ** (exponent + PLACES)
    return -whole if sign else whole


def cost_json(cost: Decimal | int | None) -> Raw:
    """Return a sum of costs as a JSON number with all its digits."""
    return exact_decimal(picodollars(cost))


def count_json(count: int | None) -> int | Raw:
    """Return a count or a sum of counts as a JSON number."""
    return exact_number(int(count or 0))


def rounded_json(value: Fraction) -> Raw:
    """Return a quotient as a JSON number, rounded half-even to 12 places."""
    return exact_decimal(round(value * PICO))


def ratio_json(numerator: int | float | Decimal | Fraction | None, denominator: int | None) -> Raw | None:
    """Return a rate or an average as a JSON number, rounded half-even to 12 places; None where there is no value."""
    if not denominator or numerator is None:
        return None
    return rounded_json(Fraction(numerator) / denominator)


def deviation_json(value: float | Fraction | None) -> Raw | None:
    """Return a deviation as a JSON number, rounded half-even to 12 places; None: there are fewer than two values."""
    return None if value is None else rounded_json(Fraction(value))


def number_json(value: float | None) -> int | float | None:
    """Return a number as it was sent: a whole one without `.0`."""
    if value is None or not value.is_integer() or abs(value) >= 2**53:
        return value
    return int(value)


def millis_json(nanos: int) -> int | float:
    """Return nanoseconds as milliseconds."""
    return nanos // 1_000_000 if nanos % 1_000_000 == 0 else nanos / 1_000_000


def time_json(micros: int | None) -> str | None:
    """Return an instant as it is written; None: there is none."""
    return None if micros is None else format_timestamp(min(int(micros), LAST))


def end_json(nanos: int) -> str:
    """Return an end as it is written, to the microsecond; one that cannot be written is the last that can."""
    return format_timestamp(min(int(nanos) // NANOS, LAST))
