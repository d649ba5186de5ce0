"""`spendstream prices`: the price lists, and what they say of a model."""

from fnmatch import fnmatchcase
from typing import Any

import click
import msgspec
from msgspec import Raw

from processor.core.clock import format_timestamp
from processor.core.events.fields import PROVIDERS
from processor.core.events.prices.price_list import DatedRates, ListedModel
from processor.core.events.prices.pricing import Pricer
from processor.core.events.prices.token_rates import PARTS, Rates
from server.cli.common import UNICODE, fail
from server.cli.grouped_help import HeadedGroup
from server.cli.output import print_encoded
from server.cli.price_audit import audit
from server.cli.price_cost import cost
from server.cli.price_options import PRICE_COLUMNS, cells_of, described, dollars, moment, pricer_of, provider_of, short
from server.cli.settings_flags import settings_options
from server.cli.sheet import Column, Sheet
from server.settings import ServerSettings


@click.group(cls=HeadedGroup)
def prices() -> None:
    """Show the price lists, price a call, and compare what was sent with them.

    Events that come without a cost are priced when they arrive, by the lists that SPENDSTREAM_PRICES names.
    """


@prices.command("list")
@click.option("--model", type=UNICODE, metavar="GLOB", help="Only these models, like `gpt-5*`")
@click.option("--provider", type=UNICODE, help="Only models of this provider, as the list calls it")
@click.option("--at", metavar="TIME", help="The prices of this RFC 3339 time or date  [default: now]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a model a line")
@settings_options(ServerSettings, "prices")
def list_prices(model: str | None, provider: str | None, at: str | None, as_json: bool, **flags: Any) -> None:
    """List the prices in force, in dollars for a million tokens.

    A price with more than 6 decimals is rounded, half-even, and its part is named under `rounded`. `varies` says that
    there are others by tier, date or time of day, which `prices show` lists.

    \b
    Examples:
      spendstream prices list --provider anthropic
      spendstream prices list --model 'gpt-5*' --json
    """
    pricer, time, glob = pricer_of(flags), moment(at), (model or "*").lower()
    found = [
        each
        for prices in pricer.lists
        for each in prices.models()
        if fnmatchcase(each.model.name.lower(), glob) and provider in {None, each.provider}
    ]
    if as_json:
        print_encoded(msgspec.json.encode(_in_force(each, time)) for each in found)
        return
    names = Column("list", "whole"), Column("provider"), Column("model")
    table = Sheet(*names, *PRICE_COLUMNS, Column("varies"), Column("rounded"))
    for each in found:
        tiers = each.model.tiers_at(time)
        cells = [""] * len(PARTS) if tiers is None else cells_of(tiers[0])
        table.add(*_named(each), *cells, ", ".join(_varies(each)), ", ".join(each.model.rounded))
    priced, rounded = sum(bool(each.model.rates) for each in found), sum(bool(each.model.rounded) for each in found)
    table.notes.append(f"{len(found)} models, {priced} priced by tokens, {rounded} with prices rounded to 6 decimals")
    table.notes += map(described, pricer.lists)
    table.print()


@prices.command()
@click.argument("model", type=UNICODE)
@click.option("--provider", type=UNICODE, help="As an event has it, or as the list calls it  [default: every one]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a model a line")
@settings_options(ServerSettings, "prices")
def show(model: str, provider: str | None, as_json: bool, **flags: Any) -> None:
    """Show all prices of a model, by the name that events have.

    With their dates, times of day (UTC) and tiers, in dollars for a million tokens.

    \b
    Examples:
      spendstream prices show claude-sonnet-4-5-20250929
      spendstream prices show deepseek-chat --provider deepseek
    """
    found = _found(pricer_of(flags), model, provider)
    if not found:
        whose = "" if provider is None else f" of {provider}"
        fail(f"no list knows the model {model}{whose}; `spendstream prices list` has all that are known")
    if as_json:
        print_encoded(msgspec.json.encode(_at_all_times(each)) for each in found)
        return
    names = (Column(title, "whole") for title in ("list", "provider", "model", "from", "until", "hours"))
    table = Sheet(*names, Column("above", "number"), *PRICE_COLUMNS)
    for each in found:
        for dated in each.model.rates:
            for rates in dated.tiers:
                table.add(*_named(each), *_when(dated), "" if rates.above < 0 else str(rates.above), *cells_of(rates))
        name = f"{each.provider} {each.model.name}"
        if not each.model.rates:
            table.add(*_named(each), *[""] * (4 + len(PARTS)))
            table.notes.append(f"{name}: not priced by tokens alone, its calls are unpriced")
        if each.model.rounded:
            table.notes.append(f"{name}: rounded to 6 decimals: {', '.join(each.model.rounded)}")
    table.print()


prices.add_command(cost)
prices.add_command(audit)


def _found(pricer: Pricer, model: str, provider: str | None) -> list[ListedModel]:
    """The models that a name may be of, of one provider or of each."""
    names = [provider]
    if provider is None:
        names = [*PROVIDERS, *(each.provider for prices in pricer.lists for each in prices.models() if each.provider)]
    found = [each for name in dict.fromkeys(names) for each in pricer.find(*provider_of(name), model)]
    once = {(each.list_name, each.provider, each.model.name, each.model.rates): each.model for each in found}
    return [ListedModel(list_name, owner, known) for (list_name, owner, _, _), known in once.items()]


def _named(each: ListedModel) -> tuple[str, str, str]:
    return short(each.list_name), each.provider, each.model.name


def _varies(each: ListedModel) -> list[str]:
    rates = each.model.rates
    said = {
        "tier": any(len(dated.tiers) > 1 for dated in rates),
        "date": any(dated.start is not None or dated.end is not None for dated in rates),
        "hour": any(dated.hours is not None for dated in rates),
    }
    return [name for name, holds in said.items() if holds]


def _when(dated: DatedRates) -> tuple[str, str, str]:
    start, end = ("" if at is None else format_timestamp(at) for at in (dated.start, dated.end))
    hours = "" if dated.hours is None else "-".join(f"{minute // 60:02d}:{minute % 60:02d}" for minute in dated.hours)
    return start, end, hours


# --- JSON ------------------------------------------------------------------------------------------------------------


def _listed(each: ListedModel) -> dict[str, Any]:
    return {
        "list": each.list_name,
        "provider": each.provider or None,
        "model": each.model.name,
        "rounded": each.model.rounded,
    }


def _in_force(each: ListedModel, at: int) -> dict[str, Any]:
    tiers = each.model.tiers_at(at)
    return {**_listed(each), "prices": None if tiers is None else _rates(tiers[0]), "varies": _varies(each)}


def _at_all_times(each: ListedModel) -> dict[str, Any]:
    return {**_listed(each), "prices": list(map(_dated, each.model.rates))}


def _dated(dated: DatedRates) -> dict[str, Any]:
    start, end, hours = (text or None for text in _when(dated))
    tiers = [{"above": None if rates.above < 0 else rates.above, **_rates(rates)} for rates in dated.tiers]
    return {"from": start, "until": end, "hours": hours, "tiers": tiers}


def _rates(rates: Rates) -> dict[str, Any]:
    return {part: None if (rate := getattr(rates, part)) is None else Raw(dollars(rate).encode()) for part in PARTS}
