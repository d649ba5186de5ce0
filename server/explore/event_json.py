"""An event as the API answers it: the fields in the published order, then what the service knows beside them.

Absent fields are left out; `kind` is always there, and so is `cost_usd`, null of an unpriced event. A cost has all of
its digits, as a plain number. `extra` has the unknown fields with their values as they were sent.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec
import pyarrow as pa
from msgspec import Raw

from processor.core.clock import format_timestamp
from processor.core.events.fields import FIELDS
from processor.core.money import PLACES, format_cost

MEMBERS: Final = (*(field.name for field in FIELDS), "received_at", "cost_source", "extra")
"""All that an event may have, in their order: columns of the store, too."""

_ALWAYS: Final = frozenset({"kind", "cost_usd"})
_TIMES: Final = ("timestamp", "received_at")
_MAPS: Final = frozenset({"tags", "eval_scores"})
_MANY: Final = _MAPS | {"tools_used"}
"""Fields of which an empty one is the same as none."""


def events_of(table: Any, *, extra: bool = True) -> list[dict[str, Any]]:
    """Return the rows of a `pyarrow.Table` that has the columns of `MEMBERS` as objects for `msgspec.json.encode`."""
    names = [name for name in MEMBERS if extra or name != "extra"]
    columns = [_column(name, table[name]) for name in names]
    return [_event(names, values) for values in zip(*columns, strict=True)]


def _column(name: str, column: Any) -> Iterable[Any]:
    found: list[Any] = column.cast(pa.int64()).to_pylist() if name in _TIMES else column.to_pylist()
    if name in _TIMES:
        return [format_timestamp(micros) for micros in found]
    if name == "cost_usd":
        return [None if cost is None else Raw(cost_text(cost).encode()) for cost in found]
    if name in _MAPS:
        return [None if each is None else dict(each) for each in found]
    return [None if text is None else Raw(text.encode()) for text in found] if name == "extra" else found


def _event(names: Iterable[str], values: Iterable[Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in zip(names, values, strict=True)
        if name in _ALWAYS or not (value is None or (name in _MANY and not value))
    }


def cost_text(cost: Decimal) -> str:
    """Return dollars as a plain decimal number with all digits, no exponent and no trailing zeros."""
    return format_cost(int(cost.scaleb(PLACES)))


def encode_events(events: Iterable[Mapping[str, Any]]) -> Raw:
    """Return a list of events as JSON."""
    return Raw(msgspec.json.encode(list(events)))
