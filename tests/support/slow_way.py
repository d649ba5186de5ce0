"""What `event.check` alone makes of a request's events: the measure of all faster ways."""

from typing import Any

from processor.core.events import codec
from processor.core.events.columns import Columns, Hot, columns_of
from processor.core.events.event import Fault, Handling, check
from processor.core.events.fields import RULES
from processor.core.events.syntax_faults import LineBudget


def decode(
    payload: codec.PayloadFormat, records: list[bytes], handling: Handling, now: int, rules: int = RULES
) -> codec.Decoded:
    """`codec.decode` by the slow way only."""
    hot: list[Hot] = []
    faults: list[tuple[int, Fault]] = []
    budget = LineBudget()
    for index, record in enumerate(records):
        try:
            hot.append(codec.hot_of(check(codec.fields(payload, record, budget, rules), handling, now), record))
        except Fault as fault:
            faults.append((index, fault))
    return codec.Decoded(columns_of(hot), faults)


def plain(decoded: codec.Decoded) -> tuple[Any, ...]:
    """As values that can be compared; the order of the two dictionaries counts too."""
    return *of_columns(decoded.columns), [
        (index, fault.code, fault.field, str(fault), fault.event_id) for index, fault in decoded.faults
    ]


def of_columns(columns: Columns) -> tuple[Any, ...]:
    """The same of columns; `records` as a list."""
    return (
        columns.rows.tobytes(),
        columns.users,
        columns.dims,
        list(columns.records),
        columns.cost_sources,
        columns.has_spans,
    )
