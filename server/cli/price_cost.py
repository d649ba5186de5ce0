"""`spendstream prices cost`: what a call costs by the price lists, part by part."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import click
import msgspec
from msgspec import Raw

from processor.core.events.fields import MAX_INT, OPERATIONS
from processor.core.events.prices.pricing import Quote, Why
from processor.core.events.prices.token_rates import PARTS, Rates, Usage
from processor.core.money import MAX_COST, format_cost
from server.cli.common import UNICODE
from server.cli.grouped_help import Command
from server.cli.output import print_encoded, say
from server.cli.price_options import dollars, moment, pricer_of, provider_of, short
from server.cli.settings_flags import settings_options
from server.cli.sheet import Column, Sheet
from server.settings import ServerSettings

EXIT_UNPRICED: Final = 1
"""Exit code for a call without a price."""

_WHY: Final[Mapping[Why, str]] = {
    "unknown_model": "no list knows the model of that provider",
    "operation": "its operation is not priced by tokens alone",
    "no_price": "the list has no price by tokens for it at that time",
}
_TOKENS: Final = click.IntRange(0, MAX_INT)


@click.command(cls=Command)
@click.option("--model", type=UNICODE, required=True, help="The model, as events name it")
@click.option("--provider", type=UNICODE, help="openai, anthropic, google, or what the sender calls another one")
@click.option("--input", "tokens", type=_TOKENS, required=True, help="All tokens of the prompt")
@click.option("--output", type=_TOKENS, required=True, help="All tokens of the answer")
@click.option("--cached", type=_TOKENS, default=0, help="Input tokens that came from a cache")
@click.option("--cache-write", type=_TOKENS, default=0, help="Input tokens that were written to a cache")
@click.option("--cache-write-1h", type=_TOKENS, default=0, help="Those of --cache-write that are kept for an hour")
@click.option("--reasoning", type=_TOKENS, default=0, help="Output tokens of reasoning")
@click.option("--operation", type=click.Choice(OPERATIONS), default="chat", show_default=True, help="What it was for")
@click.option("--at", metavar="TIME", help="When: an RFC 3339 time or date  [default: now]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@settings_options(ServerSettings, "prices")
def cost(
    model: str,
    provider: str | None,
    tokens: int,
    output: int,
    cached: int,
    cache_write: int,
    cache_write_1h: int,
    reasoning: int,
    operation: str,
    at: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Say what a call costs, as intake would.

    The exit code is 1 if it would be unpriced.

    \b
    Example:
      spendstream prices cost --provider openai --model gpt-4o --input 1000 --cached 400 --output 200
    """
    usage = Usage(tokens, output, cached, cache_write, reasoning, cache_write_1h)
    quote = pricer_of(flags).quote(*provider_of(provider), model, operation, moment(at), usage)
    if as_json:
        print_encoded([msgspec.json.encode(_encoded(quote, usage))])
    else:
        _print(quote, usage, model)
    if quote.cost is None:
        raise SystemExit(EXIT_UNPRICED)


def _print(quote: Quote, usage: Usage, model: str) -> None:
    too_many = _too_many(usage)
    if quote.cost is None:
        why = quote.why or "no_price"
        say(f"{model} is unpriced: {_WHY[why] if why in _WHY else too_many or _lacks(quote, usage)}", err=True)
    if quote.rates is None or too_many:
        return
    numbers = (Column(title, "number") for title in ("tokens", "per_million", "cost_usd"))
    table = Sheet(Column("part", "whole"), *numbers)
    for part, count, rate in _parts(quote.rates, usage):
        price, spent = ("", "") if rate is None else (dollars(rate), format_cost(count * rate))
        table.add(part, count, price, spent)
    if quote.cost is not None and quote.found is not None:
        table.set_sums("total", "", "", format_cost(quote.cost))
        table.notes.append(f"by {short(quote.found.list_name)}: {quote.found.provider} {quote.found.model.name}")
    table.print()


def _too_many(usage: Usage) -> str:
    """Which parts are more than the whole that they are of; empty: none."""
    kept = usage.cached + usage.cache_write
    for names, count, whole, of in (
        ("--cached and --cache-write are", kept, usage.input, "--input"),
        ("--reasoning is", usage.reasoning, usage.output, "--output"),
        ("--cache-write-1h is", usage.cache_write_1h, usage.cache_write, "--cache-write"),
    ):
        if count > whole:
            return f"{names} {count:,} tokens, more than the {whole:,} of {of}"
    return ""


def _lacks(quote: Quote, usage: Usage) -> str:
    """What a list has no price for; where it has all, the cost is more than an event may have."""
    found = [] if quote.rates is None else _parts(quote.rates, usage)
    lacking = [part for part, count, rate in found if count and rate is None]
    if lacking:
        return f"the list has no price for {' and '.join(lacking)}"
    return f"it would cost more than {MAX_COST:,} dollars"


def _parts(rates: Rates, usage: Usage) -> Iterator[tuple[str, int, int | None]]:
    """The tokens of a call, each in one part, and the rates."""
    plain, spoken = usage.input - usage.cached - usage.cache_write, usage.output - usage.reasoning
    written = usage.cache_write - usage.cache_write_1h
    counts = plain, usage.cached, written, usage.cache_write_1h, spoken, usage.reasoning
    for part, count in zip(PARTS, counts, strict=True):
        rate = getattr(rates, part)
        yield part, count, rates.output if rate is None and part == "reasoning" else rate


def _encoded(quote: Quote, usage: Usage) -> dict[str, Any]:
    found = quote.found
    return {
        "cost_usd": None if quote.cost is None else Raw(format_cost(quote.cost).encode()),
        "cost_source": quote.source,
        "reason": quote.why,
        "provider": None if found is None else found.provider,
        "model": None if found is None else found.model.name,
        "parts": [
            {"part": part, "tokens": count, "per_million": None if rate is None else Raw(dollars(rate).encode())}
            for part, count, rate in ([] if quote.rates is None or _too_many(usage) else _parts(quote.rates, usage))
        ],
    }
