"""Own prices: a TOML file of models with what their tokens cost, which goes before the built-in list.

    [[price]]
    model = "llama-*"            # a name or a glob, or a list of them
    provider = "groq"            # openai, anthropic, google, custom, or what the sender calls it; left out: any
    from = 2026-01-01            # a date (UTC) or a time; left out: always
    until = 2027-01-01           # the first moment at which it no longer holds; left out: for ever
    input = 0.59                 # dollars for a million tokens
    output = "0.79"              # a number, or one in a string
    cached = 0.1                 # a part that is left out has no price; reasoning costs what output does
    cache_write = 0.7
    cache_write_1h = 1.18        # those of them that are kept for an hour, where a span says so
    reasoning = 0.79
    tiers = [{ above = 200_000, input = 1.18, output = 1.58 }]  # and every other part that has a price below it

Of the prices that match an event those of its model's very name go before those of a glob, then the later `from` goes
first, then the one that stands earlier in the file.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, NamedTuple

from processor.core.events.prices.name_rules import Test, test_of
from processor.core.events.prices.price_list import DatedRates, FoundModel, ListedModel, Model
from processor.core.events.prices.token_rates import PARTS, Rates

MAX_PRICE: Final = Decimal(1_000_000)
"""Dollars for a million tokens."""

_KEYS: Final = frozenset({"model", "provider", "from", "until", "tiers", *PARTS})
_is_stem = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_GLOB = re.compile(r"[*?\[]").search


class PricesError(ValueError):
    """A file of prices cannot be used; the text says which entry and which key is wrong, and what to do."""


class _Entry(NamedTuple):
    provider: str | None
    test: Test
    is_exact: bool
    start: int
    model: Model


class OwnPrices:
    """The prices of a file (`Prices`)."""

    def __init__(self, title: str, version: str, entries: Sequence[_Entry]) -> None:
        """`title`: the stem of the file's name; `version`: of its content."""
        self.title = title
        self.version = version
        self.name = f"list:{title}@{version}"
        self._entries = sorted(entries, key=lambda entry: (not entry.is_exact, -entry.start))

    def find(self, provider: str, raw: str | None, model: str) -> Sequence[FoundModel]:
        """See `Prices.find`."""
        name, names = model.lower(), {provider, (raw or "").strip().lower()}
        return [
            FoundModel(self.name, entry.provider or provider, entry.model)
            for entry in self._entries
            if (entry.provider is None or entry.provider in names) and entry.test(name)
        ]

    def models(self) -> Iterator[ListedModel]:
        """See `Prices.models`."""
        return (ListedModel(self.name, entry.provider or "", entry.model) for entry in self._entries)


def read(path: Path) -> OwnPrices:
    """Read a file of prices. Raises `PricesError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PricesError(f"cannot read {path}: {error.strerror or error}") from None
    return parse(path.stem, data)


def parse(stem: str, data: bytes) -> OwnPrices:
    """The prices of a file of this name and content. Raises `PricesError`."""
    if not _is_stem(stem):
        raise PricesError(f"the file's name must be letters, digits, dots, dashes and underscores, not {stem!r}")
    try:
        document = tomllib.loads(data.decode(), parse_float=Decimal)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, InvalidOperation) as error:
        raise PricesError(f"not TOML: {error}") from None
    entries = document.pop("price", [])
    if document:
        raise PricesError(f"unknown key {next(iter(document))!r}: a file of prices has tables [[price]] only")
    if not isinstance(entries, list) or not entries or not all(isinstance(each, dict) for each in entries):
        raise PricesError("a file of prices needs tables [[price]], at least one")
    found: list[_Entry] = []
    for number, entry in enumerate(entries, start=1):
        where = f"price {number} ({entry.get('model')!r})" if "model" in entry else f"price {number}"
        found += _entries(where, entry)
    return OwnPrices(stem, hashlib.sha256(data).hexdigest()[:12], found)


def _entries(where: str, entry: Mapping[str, Any]) -> list[_Entry]:
    unknown = entry.keys() - _KEYS
    if unknown:
        raise PricesError(f"{where}: unknown key {min(unknown)!r}; known are {', '.join(sorted(_KEYS))}")
    provider = entry.get("provider")
    if provider is not None and (not isinstance(provider, str) or not provider.strip()):
        raise PricesError(f"{where}: provider must be a name")
    start, end = _moment(where, "from", entry), _moment(where, "until", entry)
    if start is not None and end is not None and end <= start:
        raise PricesError(f"{where}: until must be later than from")
    tiers, rounded = _tiers(where, entry)
    rates = (DatedRates(tiers, start, end),)
    found = []
    for name in _names(where, entry):
        rule = f"?{name}" if _GLOB(name) else f"={name}"
        model = Model(name, rule, rates, rounded)
        who = None if provider is None else provider.strip().lower()
        found.append(_Entry(who, test_of(rule), not _GLOB(name), start or 0, model))
    return found


def _names(where: str, entry: Mapping[str, Any]) -> list[str]:
    sent = entry.get("model")
    names = [sent] if isinstance(sent, str) else sent
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise PricesError(f"{where}: model must be a name or a glob, or a list of them")
    return [name.lower() for name in names]


def _moment(where: str, key: str, entry: Mapping[str, Any]) -> int | None:
    """Microseconds since the epoch; None: not given."""
    sent = entry.get(key)
    if sent is None:
        return None
    if isinstance(sent, datetime):
        moment = sent if sent.tzinfo is not None else sent.replace(tzinfo=UTC)
    elif isinstance(sent, date):
        moment = datetime.combine(sent, time(), UTC)
    else:
        raise PricesError(f"{where}: {key} must be a date or a time without quotes, like {key} = 2026-01-31")
    passed = moment - datetime.fromtimestamp(0, UTC)
    return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds


def _tiers(where: str, entry: Mapping[str, Any]) -> tuple[tuple[Rates, ...], tuple[str, ...]]:
    """The rates by tier, and the parts of which a price was rounded."""
    base, rounded = _rates(where, entry)
    if not base:
        raise PricesError(f"{where}: no price; give at least one of {', '.join(PARTS)}")
    found = [Rates(**base)]
    tiers = entry.get("tiers", [])
    if not isinstance(tiers, list) or not all(isinstance(each, dict) for each in tiers):
        raise PricesError(f"{where}: tiers must be a list of tables, like [{{ above = 200_000, input = 2.5 }}]")
    for number, tier in enumerate(tiers, start=1):
        place = f"{where}, tier {number}"
        unknown = tier.keys() - {"above", *PARTS}
        if unknown:
            raise PricesError(f"{place}: unknown key {min(unknown)!r}; known are above, {', '.join(PARTS)}")
        above = tier.get("above")
        if type(above) is not int or above <= found[-1].above or above < 0:
            raise PricesError(f"{place}: above must be a number of input tokens, more than in the tier before")
        prices, more = _rates(place, tier)
        missing = base.keys() - prices.keys()
        if missing:
            raise PricesError(f"{place}: no price for {min(missing)}, which has one below the tier")
        found.append(Rates(above, **prices))
        rounded |= more
    return tuple(found), tuple(sorted(rounded))


def _rates(where: str, entry: Mapping[str, Any]) -> tuple[dict[str, int], set[str]]:
    found: dict[str, int] = {}
    rounded: set[str] = set()
    for part in PARTS:
        if part in entry:
            price = _price(where, part, entry[part])
            found[part] = int((price * 10**6).quantize(Decimal(1), ROUND_HALF_EVEN))
            if found[part] != price * 10**6:
                rounded.add(part)
    return found, rounded


def _price(where: str, part: str, sent: object) -> Decimal:
    try:
        price = Decimal(sent) if type(sent) in {int, str, Decimal} else Decimal("nan")  # type: ignore[arg-type]
    except InvalidOperation:
        price = Decimal("nan")
    if not price.is_finite() or not 0 <= price <= MAX_PRICE:
        raise PricesError(
            f"{where}: {part} must be dollars for a million tokens, from 0 to {MAX_PRICE:,}, like {part} = 2.5"
        )
    return price
