"""What `spendstream prices audit` adds up: what was sent against the lists, and what is unpriced, by model."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from processor.core.clock import parse_timestamp
from processor.core.events.columns import CLIENT
from processor.core.events.prices.pricing import RAW_PROVIDER, Pricer
from processor.core.events.prices.token_rates import Usage
from processor.core.money import format_cost, parse_cost

SUMS: Final = (
    *("sent", "sent_usd", "comparable", "comparable_usd", "by_list_usd", "over_usd"),
    *("listed", "listed_usd", "unpriced", "unpriced_tokens"),
)
"""What is said of each model."""


class _Event(Struct, gc=False):
    """A line of an export."""

    timestamp: str
    provider: str
    model: str
    operation: str
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: Raw = Raw(b"null")
    cost_source: str | None = None
    tags: dict[str, str] = {}


class ModelSums(Struct):
    """The sums of a model; costs in picodollars."""

    provider: str
    model: str
    sent: int = 0
    """Calls that came with a cost."""
    sent_cost: int = 0
    comparable: int = 0
    """Those of them that the lists can price."""
    comparable_cost: int = 0
    """What was sent for these."""
    list_cost: int = 0
    """What they cost by the lists."""
    listed: int = 0
    """Calls that a list has priced when they arrived."""
    listed_cost: int = 0
    unpriced: int = 0
    unpriced_tokens: int = 0
    """Input and output tokens of unpriced calls."""

    def add(self, other: "ModelSums") -> None:
        """Add the sums of another row."""
        for name in ModelSums.__struct_fields__[2:]:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def values(self) -> Sequence[int | Decimal]:
        """Those of `SUMS`, costs as dollars."""
        costs = (self.sent_cost, self.comparable_cost, self.list_cost, self.comparable_cost - self.list_cost)
        sent, comparable, listed, over, priced = map(_dollars, (*costs, self.listed_cost))
        return (
            *(self.sent, sent, self.comparable, comparable, listed, over),
            *(self.listed, priced, self.unpriced, self.unpriced_tokens),
        )

    def cells(self) -> list[str | int]:
        """The same for a table."""
        return [value if isinstance(value, int) else f"{value:f}" for value in self.values()]

    def encoded(self) -> dict[str, Any]:
        """The same for JSON."""
        pairs = zip(SUMS, self.values(), strict=True)
        numbers = {name: value if isinstance(value, int) else Raw(f"{value:f}".encode()) for name, value in pairs}
        return {"provider": self.provider, "model": self.model, **numbers} if self.model else numbers


def _dollars(cost: int) -> Decimal:
    return Decimal(format_cost(cost))


_decode = msgspec.json.Decoder(_Event).decode


class PriceSums:
    """Adds events up, as they come."""

    def __init__(self, pricer: Pricer) -> None:
        self.pricer = pricer
        self._rows: dict[tuple[str, str], ModelSums] = {}

    def take(self, line: bytes) -> None:
        """Add an event, a line of an export."""
        event = _decode(line)
        # A provider of its own stands by the name that its sender has for it.
        raw = event.tags.get(RAW_PROVIDER) if event.provider == "custom" else None
        key = raw or event.provider, event.model
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = ModelSums(*key)
        text = bytes(event.cost_usd).decode()
        if text == "null":
            row.unpriced += 1
            row.unpriced_tokens += event.input_tokens + event.output_tokens
        elif event.cost_source == CLIENT:
            self._compare(row, event, raw, parse_cost(text))
        else:
            row.listed += 1
            row.listed_cost += parse_cost(text)

    def _compare(self, row: ModelSums, event: _Event, raw: str | None, sent: int) -> None:
        row.sent += 1
        row.sent_cost += sent
        usage = Usage(
            event.input_tokens,
            event.output_tokens,
            event.cached_tokens,
            event.cache_write_tokens,
            event.reasoning_tokens,
        )
        at = parse_timestamp(event.timestamp)
        quote = self.pricer.quote(event.provider, raw, event.model, event.operation, at, usage)
        if quote.cost is not None:
            row.comparable += 1
            row.comparable_cost += sent
            row.list_cost += quote.cost

    def rows(self) -> list[ModelSums]:
        """The models: by how far what was sent is from the lists, then by what is unpriced, then by name."""
        return sorted(
            self._rows.values(),
            key=lambda row: (-abs(row.comparable_cost - row.list_cost), -row.unpriced, row.provider, row.model),
        )

    def total(self) -> ModelSums:
        """All of them together."""
        total = ModelSums("", "")
        for row in self._rows.values():
            total.add(row)
        return total
