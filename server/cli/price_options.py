"""What the commands of `spendstream prices` have in common: the lists, times, providers, and prices as text."""

from typing import Any, Final

from processor.core.clock import parse_timestamp
from processor.core.events.fields import PROVIDERS
from processor.core.events.prices.price_list import Prices
from processor.core.events.prices.pricing import Pricer
from processor.core.events.prices.token_rates import PARTS, Rates
from processor.core.money import format_cost
from processor.wall_clock import now
from server.cli.common import fail, load_or_exit
from server.cli.sheet import Column
from server.prices.price_lists import open_pricer
from server.settings import ServerSettings

PRICE_COLUMNS: Final = tuple(Column(part, "number") for part in PARTS)


def pricer_of(flags: dict[str, Any]) -> Pricer:
    """The lists that the settings name; ends the command where they name none that can be used."""
    return open_pricer(load_or_exit(ServerSettings, {name: flags.pop(name) for name in ("prices", "config")}).prices)


def moment(text: str | None) -> int:
    """The time of `--at` in microseconds since the epoch; None: now."""
    if text is None:
        return now()
    try:
        return parse_timestamp(text if "T" in text.upper() else f"{text}T00:00:00Z")
    except ValueError as error:
        fail(f"--at {error}")


def provider_of(name: str | None) -> tuple[str, str | None]:
    """A provider as an event has it, and what its sender calls it."""
    return (name or "custom", None) if name is None or name in PROVIDERS else ("custom", name)


def short(list_name: str) -> str:
    """NAME@VERSION."""
    return list_name.removeprefix("list:")


def described(prices: Prices) -> str:
    """A list's name and version, and when it was made."""
    date = getattr(prices, "date", None)
    return f"{short(prices.name)}, made on {date}" if date else short(prices.name)


def dollars(rate: int) -> str:
    """A rate as dollars for a million tokens."""
    return format_cost(rate * 10**6)


def cells_of(rates: Rates) -> list[str]:
    """A cell for each part, empty where it has no price."""
    return ["" if (rate := getattr(rates, part)) is None else dollars(rate) for part in PARTS]
