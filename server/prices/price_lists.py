"""The price lists of a process, in the order in which they are asked."""

from pathlib import Path

from processor.core.events.prices.pricing import Pricer
from server.prices import own_prices
from server.prices.builtin import builtin_list
from server.prices.prices_setting import BUILTIN, OFF


def open_pricer(setting: str) -> Pricer:
    """Load the lists. Raises `own_prices.PricesError`."""
    if setting == OFF:
        return Pricer([])
    if setting == BUILTIN:
        return Pricer([builtin_list()])
    return Pricer([own_prices.read(Path(setting)), builtin_list()])
