"""Costs by rates: whole products only, and none where something has no price."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.events.prices.token_rates import Rates, Usage, cost_of, rates_for
from processor.core.money import MAX_COST, PICO

counts = st.integers(0, 2**53 - 1)
rates = st.none() | st.integers(0, 10**9)


def test_each_part_has_its_price() -> None:
    priced = Rates(input=2, cached=3, cache_write=5, output=7, reasoning=11)
    assert cost_of(priced, Usage(100, 50, 10, 20, 30)) == 70 * 2 + 10 * 3 + 20 * 5 + 20 * 7 + 30 * 11


def test_reasoning_costs_what_output_does_unless_it_is_priced_apart() -> None:
    assert cost_of(Rates(input=1, output=7), Usage(0, 50, reasoning=30)) == 50 * 7
    assert cost_of(Rates(input=1, output=7, reasoning=0), Usage(0, 50, reasoning=30)) == 20 * 7


@pytest.mark.parametrize("part", ["input", "cached", "cache_write", "cache_write_1h", "output"])
def test_a_part_that_is_used_needs_a_price(part: str) -> None:
    every = {"input": 1, "cached": 1, "cache_write": 1, "cache_write_1h": 1, "output": 1}
    usage = Usage(10, 10, 2, 3, 0, 1)
    assert cost_of(Rates(**every), usage) == 20
    del every[part]
    assert cost_of(Rates(**every), usage) is None
    unused = {"input": Usage(5, 10, 2, 3), "cached": Usage(10, 10, 0, 3), "cache_write": Usage(10, 10, 2, 0)}
    assert cost_of(Rates(**every), unused.get(part, Usage(10, 0, 2, 3))) is not None


def test_a_price_of_nothing_is_a_price() -> None:
    assert cost_of(Rates(input=0, output=0), Usage(10, 10)) == 0


@pytest.mark.parametrize(
    "usage",
    [
        Usage(10, 10, cached=11),
        Usage(10, 10, 6, 5),
        Usage(10, 10, cache_write=11),
        Usage(10, 10, reasoning=11),
        Usage(10, 10, cache_write=3, cache_write_1h=4),
    ],
)
def test_parts_above_the_whole_have_no_price(usage: Usage) -> None:
    assert cost_of(Rates(input=1, cached=1, cache_write=1, cache_write_1h=1, output=1), usage) is None


def test_the_most_that_a_call_may_cost() -> None:
    most = MAX_COST * PICO
    assert cost_of(Rates(input=1), Usage(most, 0)) == most
    assert cost_of(Rates(input=1), Usage(most + 1, 0)) is None


def test_a_tier_holds_above_its_tokens_and_for_all_of_them() -> None:
    tiers = (Rates(input=1), Rates(200_000, input=2), Rates(400_000, input=3))
    found = [rates_for(tiers, tokens).input for tokens in (0, 200_000, 200_001, 400_000, 400_001, 2**53)]
    assert found == [1, 1, 2, 2, 3, 3]


@given(st.tuples(*[rates] * 6), st.tuples(*[counts] * 6))
def test_a_cost_is_the_sum_of_its_parts(prices: tuple[int | None, ...], sent: tuple[int, ...]) -> None:
    priced = Rates(-1, *prices)
    usage = Usage(*sent)
    cost = cost_of(priced, usage)
    plain = usage.input - usage.cached - usage.cache_write
    written = usage.cache_write - usage.cache_write_1h
    parts = plain, usage.cached, written, usage.cache_write_1h, usage.output - usage.reasoning, usage.reasoning
    thinking = priced.output if priced.reasoning is None else priced.reasoning
    each = priced.input, priced.cached, priced.cache_write, priced.cache_write_1h, priced.output, thinking
    lacks = any(count and rate is None for count, rate in zip(parts, each, strict=True))
    total = sum(count * (rate or 0) for count, rate in zip(parts, each, strict=True))
    assert cost == (None if min(parts) < 0 or lacks or total > MAX_COST * PICO else total)


def test_all_of_few_tokens() -> None:
    """Every usage of up to three tokens a part, with and without each price."""
    for plain, cached, written, hourly, spoken, reasoning in product(range(3), repeat=6):
        kept = written + hourly
        usage = Usage(plain + cached + kept, spoken + reasoning, cached, kept, reasoning, hourly)
        expected = plain * 2 + cached * 3 + written * 5 + hourly * 7 + spoken * 11 + reasoning * 13
        assert cost_of(Rates(-1, 2, 3, 5, 7, 11, 13), usage) == expected
