"""What tokens cost: picodollars for one token of each part of a call, and the cost of a call by them.

A price of D dollars a million tokens is D * 10^6 picodollars a token: whole where D has at most 6 decimals. So a cost
is a sum of whole products, and nothing is rounded.
"""

from typing import Final, NamedTuple

from msgspec import Struct

from processor.core.money import MAX_COST, PICO

PARTS: Final = ("input", "cached", "cache_write", "output", "reasoning")
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


class Rates(Struct, frozen=True, omit_defaults=True):
    """Picodollars a token. None: the part has no price, and a call that uses it has no cost; reasoning costs what
    output does then."""

    above: int = -1
    """They hold for calls of more input tokens than this, for all of their tokens."""
    input: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    output: int | None = None
    reasoning: int | None = None


def rates_for(tiers: tuple[Rates, ...], tokens: int) -> Rates:
    """The rates of a call of so many input tokens; `tiers` by `above`, ascending."""
    found = tiers[0]
    for rates in tiers:
        if tokens > rates.above:
            found = rates
    return found


def cost_of(rates: Rates, usage: Usage) -> int | None:
    """The cost of a call in picodollars. None: a part that it uses has no price, its parts are more than the whole, or
    it would cost more than `MAX_COST` dollars."""
    tokens, answer, cached, written, reasoning = usage
    plain, spoken = tokens - cached - written, answer - reasoning
    if plain < 0 or spoken < 0 or min(usage) < 0:
        return None
    thinking = rates.output if rates.reasoning is None else rates.reasoning
    cost = 0
    for count, rate in (
        (plain, rates.input),
        (cached, rates.cached),
        (written, rates.cache_write),
        (spoken, rates.output),
        (reasoning, thinking),
    ):
        if count:
            if rate is None:
                return None
            cost += count * rate
    return cost if cost <= _MOST else None
