"""What tokens cost: picodollars for one token of each part of a call, and the cost of a call by them.

A price of D dollars a million tokens is D * 10^6 picodollars a token: whole where D has at most 6 decimals. So a cost
is a sum of whole products, and nothing is rounded.
"""

from typing import Final, NamedTuple

from msgspec import Struct

from processor.core.money import MAX_COST, PICO

PARTS: Final = ("input", "cached", "cache_write", "cache_write_1h", "output", "reasoning")
"""The parts of a call that may have a price of their own."""

_MOST: Final = MAX_COST * PICO


class Usage(NamedTuple):
    """The tokens of a call."""

    input: int
    """All of the prompt: those from a cache and those written to one are among them."""
    output: int
    """All of the answer: those of reasoning are among them."""
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    cache_write_1h: int = 0
    """Those of `cache_write` that are kept for an hour, where the source says so."""


class Rates(Struct, frozen=True, omit_defaults=True):
    """Picodollars a token. None: the part has no price, and a call that uses it has no cost; reasoning costs what
    output does then."""

    above: int = -1
    """They hold for calls of more input tokens than this, for all of their tokens."""
    input: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    """Of a cache that is kept for as long as it is by default, five minutes with Anthropic."""
    cache_write_1h: int | None = None
    output: int | None = None
    reasoning: int | None = None


def rates_for(tiers: tuple[Rates, ...], tokens: int) -> Rates:
    """The rates of a call of so many input tokens; `tiers` by `above`, ascending."""
    found = tiers[0]
    for rates in tiers[1:]:
        if tokens > rates.above:
            found = rates
    return found


def cost_of(rates: Rates, usage: Usage) -> int | None:
    """The cost of a call in picodollars. None: a part that it uses has no price, its parts are more than the whole, or
    it would cost more than `MAX_COST` dollars."""
    tokens, answer, cached, written, reasoning, hourly = usage
    plain, spoken, written = tokens - cached - written, answer - reasoning, written - hourly
    if plain < 0 or spoken < 0 or written < 0:
        return None
    thinking = rates.output if rates.reasoning is None else rates.reasoning
    # A part that is not used may be without a price. Written out: in a loop this takes twice as long.
    if (
        (plain and rates.input is None)
        or (cached and rates.cached is None)
        or (written and rates.cache_write is None)
        or (hourly and rates.cache_write_1h is None)
        or (spoken and rates.output is None)
        or (reasoning and thinking is None)
    ):
        return None
    cost = (
        plain * (rates.input or 0)
        + cached * (rates.cached or 0)
        + written * (rates.cache_write or 0)
        + hourly * (rates.cache_write_1h or 0)
        + spoken * (rates.output or 0)
        + reasoning * (thinking or 0)
    )
    return cost if cost <= _MOST else None
