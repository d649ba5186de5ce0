"""Give the events of a request that came without a cost one by price lists.

What a list may need beside the columns of an event (which token counts were sent at all, tokens written to a cache and
spent on reasoning, what the sender calls the provider) is read from the event's original bytes once more.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np
from google.protobuf.message import DecodeError
from msgspec import Raw, Struct

from processor.core.events.codec import PayloadFormat
from processor.core.events.columns import UNPRICED_FLAG, Columns, Dim, with_prices
from processor.core.events.ndjson import Lines
from processor.core.events.prices.price_list import FoundModel, Prices
from processor.core.events.prices.token_rates import Rates, Usage, cost_of, rates_for
from protos.spendstream.v1 import ingest_pb2 as pb

UNPRICED_OPERATIONS: Final = frozenset({"image", "tts"})
"""What no list prices by tokens alone."""

RAW_PROVIDER: Final = "provider.raw"
"""The tag that has what the sender calls a provider that is `custom`."""

MAX_KNOWN: Final = 10_000
"""Names of models whose prices are remembered."""

Why = Literal["unknown_model", "no_tokens", "operation", "part_without_price", "no_price"]
"""Why a call has no price: no list knows the model, its sender has not said both token counts, its operation is not
priced by tokens; the list has no price for a part of it (or its parts are more than the whole, or it would cost too
much), or none at all at its time."""


class Quote(NamedTuple):
    """What a call costs by the lists."""

    cost: int | None
    """Picodollars; None: it is unpriced."""
    source: str | None = None
    """The list, for `cost_source`."""
    why: Why | None = None
    """Of a call that is unpriced."""
    found: FoundModel | None = None
    rates: Rates | None = None


Sent = tuple[str | None, int, int, int]
"""What an event with both token counts says beside its columns: the name of a custom provider (see `Prices.find`),
tokens written to a cache, tokens of reasoning, and of the written ones those that are kept for an hour: only spans say
that."""

_UNKNOWN: Final = Quote(None, why="unknown_model")
_OPERATION: Final = Quote(None, why="operation")


class Pricer:
    """Prices of several lists, of which the first that knows a model decides. Not for several threads at a time."""

    def __init__(self, lists: Sequence[Prices]) -> None:
        self.lists = tuple(lists)
        self._known: dict[tuple[str, str | None, str], tuple[FoundModel, ...]] = {}

    def find(self, provider: str, raw: str | None, model: str) -> tuple[FoundModel, ...]:
        """See `Prices.find`; of all lists, in their order."""
        key = provider, raw, model
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            found = tuple(each for prices in self.lists for each in prices.find(provider, raw, model))
            self._known[key] = found
        return found

    def quote(self, provider: str, raw: str | None, model: str, operation: str, at: int, usage: Usage) -> Quote:
        """What a call costs, and if nothing, why; `at` in microseconds since the epoch.

        `priced` decides in the same way, for many events; this says how it came to it.
        """
        candidates = self.find(provider, raw, model)
        if not candidates:
            return _UNKNOWN
        if operation in UNPRICED_OPERATIONS:
            return _OPERATION
        for found in candidates:
            tiers = found.model.tiers_at(at)
            if tiers is not None:
                rates = rates_for(tiers, usage.input)
                cost = cost_of(rates, usage)
                if cost is None:
                    return Quote(None, None, "part_without_price", found, rates)
                return Quote(cost, found.list_name, None, found, rates)
        return Quote(None, None, "no_price", candidates[0])

    def priced(self, columns: Columns, payload: PayloadFormat, sent_of: Sequence[Sent | None] | None = None) -> Columns:
        """The same events, in which those that came without a cost have one where a list has a price. `payload`: of
        their original bytes. `sent_of`: what these say of each event, where that is known already, so that they need
        not be read once more. Raises nothing: what cannot be read stays unpriced."""
        places = np.flatnonzero(columns.rows["flags"] & UNPRICED_FLAG)
        if not self.lists or not len(places):
            return columns
        numbers: list[int] = places.tolist()
        rows = columns.rows[places]
        counts = zip(*(rows[name].tolist() for name in ("dim", "at", "input", "output", "cached")), strict=True)
        candidates: dict[tuple[int, str | None], tuple[FoundModel, ...]] = {}
        prices: dict[int, tuple[int, str]] = {}
        every = _sent(columns.records, numbers, payload) if sent_of is None else [sent_of[place] for place in numbers]
        for place, sent, (dim, at, tokens, answer, cached) in zip(numbers, every, counts, strict=True):
            if sent is None:
                continue
            raw, written, reasoning, hourly = sent
            known = candidates.get((dim, raw))
            if known is None:
                known = candidates[dim, raw] = self._candidates(columns.dims[dim], raw)
            for found in known:
                tiers = found.model.tiers_at(at)
                if tiers is not None:
                    usage = Usage(tokens, answer, cached, written, reasoning, hourly)
                    cost = cost_of(rates_for(tiers, tokens), usage)
                    if cost is not None:
                        prices[place] = cost, found.list_name
                    break
        return with_prices(columns, prices) if prices else columns

    def _candidates(self, dim: Dim, raw: str | None) -> tuple[FoundModel, ...]:
        _, provider, model, _, operation, _ = dim
        return (
            ()
            if operation in UNPRICED_OPERATIONS
            else self.find(provider, raw if provider == "custom" else None, model)
        )


# --- the original bytes ----------------------------------------------------------------------------------------------


class _Counts(Struct, gc=False):
    """Of a line that has been checked: a count is there or not, and whole."""

    input_tokens: int | float | None = None
    output_tokens: int | float | None = None
    cache_write_tokens: int | float | None = None
    reasoning_tokens: int | float | None = None
    provider: str | None = None
    tags: Raw = Raw(b"null")


_decode_line = msgspec.json.Decoder(_Counts).decode
_decode_lines = msgspec.json.Decoder(_Counts).decode_lines
_decode_tags = msgspec.json.Decoder(dict[str, str] | None).decode
_parse = pb.Event.FromString


def _sent(records: Sequence[bytes], places: Sequence[int], payload: PayloadFormat) -> list[Sent | None]:
    """None: an event without both token counts."""
    if payload == "protobuf":
        return [_sent_proto(records[place]) for place in places]
    if isinstance(records, Lines) and len(places) == len(records):
        try:
            found = _decode_lines(records.text)
            if len(found) == len(places):
                return list(map(_sent_of, found))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
    return [_sent_json(records[place]) for place in places]


def _sent_json(record: bytes) -> Sent | None:
    try:
        return _sent_of(_decode_line(record))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _sent_of(line: _Counts) -> Sent | None:
    if line.input_tokens is None or line.output_tokens is None:
        return None
    raw = line.provider
    if raw is None or raw == "custom":
        raw = (_decode_tags(line.tags) or {}).get(RAW_PROVIDER)
    return raw, int(line.cache_write_tokens or 0), int(line.reasoning_tokens or 0), 0


def _sent_proto(record: bytes) -> Sent | None:
    try:
        event = _parse(record)
    except DecodeError:
        return None
    if not (event.HasField("input_tokens") and event.HasField("output_tokens")):
        return None
    is_raw = event.HasField("provider") and event.provider != "custom"
    raw = event.provider if is_raw else event.tags.get(RAW_PROVIDER)
    return raw, event.cache_write_tokens, event.reasoning_tokens, 0
