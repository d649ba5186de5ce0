"""A price list: models by provider and name, and the rates of each at any time."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple, Protocol

from msgspec import Struct

from processor.core.clock import DAY
from processor.core.events.prices.name_rules import Rule, Test, split, test_of
from processor.core.events.prices.token_rates import Rates

MINUTE: Final = 60_000_000


class DatedRates(Struct, frozen=True, omit_defaults=True):
    """Rates from a time on, or for some hours of each day (UTC)."""

    tiers: tuple[Rates, ...]
    """By `Rates.above`, ascending; at least one."""
    start: int | None = None
    """Microseconds since the epoch; None: always."""
    end: int | None = None
    """The first moment at which they no longer hold; None: they hold for ever."""
    hours: tuple[int, int] | None = None
    """From this minute of the day until before that one; over midnight where the second is less."""

    def hold_at(self, at: int) -> bool:
        """Whether they are in force at a time."""
        if (self.start is not None and at < self.start) or (self.end is not None and at >= self.end):
            return False
        if self.hours is None:
            return True
        begin, end = self.hours
        minute = at % DAY // MINUTE
        return begin <= minute < end if begin <= end else minute >= begin or minute < end


class Model(Struct, frozen=True, omit_defaults=True):
    """A model of a list."""

    name: str
    match: Rule
    """Of the names by which it is called."""
    rates: tuple[DatedRates, ...] = ()
    """Of those in force the last one counts. Empty: the list does not price it by tokens, or not at all."""
    rounded: tuple[str, ...] = ()
    """Parts of which some price had more than 6 decimals, and is rounded half-even."""

    def tiers_at(self, at: int) -> tuple[Rates, ...] | None:
        """The rates in force at a time."""
        for dated in reversed(self.rates):
            if dated.hold_at(at):
                return dated.tiers
        return None


class FoundModel(Struct, frozen=True):
    """The model of a list that an event has called."""

    list_name: str
    """For `cost_source`: list:NAME@VERSION."""
    provider: str
    """As the list calls it."""
    model: Model


class ListedModel(NamedTuple):
    """A model of a list, as it stands there."""

    list_name: str
    provider: str
    """Empty: any."""
    model: Model


class Prices(Protocol):
    """What finds the prices of a model."""

    @property
    def name(self) -> str:
        """For `cost_source`: list:NAME@VERSION."""
        ...

    def find(self, provider: str, raw: str | None, model: str) -> Sequence[FoundModel]:
        """The models that an event may have called, none for a name that is not known: the first that has rates at its
        time says what it costs, and if a part of it is without a price, no other is asked.

        `provider` is one of `fields.PROVIDERS`; `raw`: what the sender calls a provider that is `custom`.
        """
        ...

    def models(self) -> Iterator[ListedModel]:
        """All models of the list, in its order."""
        ...


class Provider(Struct, dict=True):
    """A provider of the built-in list, with its models in the order in which they are tried."""

    id: str
    models: tuple[Model, ...]
    by_model: Rule | None = None
    """Of names of models that are this provider's if nothing says whose they are."""
    by_name: Rule | None = None
    """Of other names of the provider."""
    fallback: tuple[str, ...] = ()
    """Ids of providers of the list whose models it offers, too, at their prices: Azure those of OpenAI."""

    def model_of(self, name: str) -> Model | None:
        """The first model that a name, in lower case, is of."""
        place = self._by_name.get(name, len(self.models))
        for number, test in self._tests:
            if number >= place:
                break
            if test(name):
                place = number
                break
        return self.models[place] if place < len(self.models) else None

    @cached_property
    def _by_name(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for number, model in enumerate(self.models):
            for name in split(model.match)[0]:
                found.setdefault(name, number)
        return found

    @cached_property
    def _tests(self) -> list[tuple[int, Test]]:
        rules = [(number, rule) for number, model in enumerate(self.models) for rule in split(model.match)[1]]
        return [(number, test_of(rule)) for number, rule in rules]

    @cached_property
    def is_of_model(self) -> Test:
        """Whether a model is this provider's by its name alone."""
        return test_of(self.by_model or ["|"])

    @cached_property
    def is_named(self) -> Test:
        """Whether a name is one of the provider's other names."""
        return test_of(self.by_name or ["|"])


_OTHER_NAMES: Final = {
    "azure.ai.inference": "azure",
    "azure-ai-inference": "azure",
    "togetherai": "together",
    "x_ai": "x-ai",
}
"""Names in the OpenTelemetry conventions and the Vercel AI SDK of providers that the list does not know by them."""

_COMPACT_DATE = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=[-:]|$)")
"""`-20251211`, as some gateways write the date of a model that its provider calls `-2025-12-11`."""


class PriceList(Struct, dict=True):
    """A list as it is stored: the prices of many providers."""

    title: str
    version: str
    date: str
    """When it was made from its source."""
    providers: tuple[Provider, ...]
    about: dict[str, Any] = {}
    """Where it is from, and the notice of its license."""

    @property
    def name(self) -> str:
        """See `Prices.name`."""
        return f"list:{self.title}@{self.version}"

    def find(self, provider: str, raw: str | None, model: str) -> Sequence[FoundModel]:
        """See `Prices.find`. Where several providers could be meant, there is no price."""
        known = self.provider_of(provider, raw, model)
        if known is None:
            return ()
        name = model.lower()
        for each in dict.fromkeys((name, _COMPACT_DATE.sub(r"-\1-\2-\3", name))):
            for owner in (known, *(self._by_id[other] for other in known.fallback if other in self._by_id)):
                found = owner.model_of(each)
                if found is not None:
                    return (FoundModel(self.name, owner.id, found),)
        return ()

    def provider_of(self, provider: str, raw: str | None, model: str) -> Provider | None:
        """The one provider that is meant; None: the list knows none, or several."""
        name = (provider if provider != "custom" else raw or "").strip().lower()
        if not name:
            return _only([each for each in self.providers if each.is_of_model(model.lower())])
        name = _OTHER_NAMES.get(name, name)
        exact = self._by_id.get(name)
        return exact if exact is not None else _only([each for each in self.providers if each.is_named(name)])

    def models(self) -> Iterator[ListedModel]:
        """See `Prices.models`."""
        return (ListedModel(self.name, owner.id, model) for owner in self.providers for model in owner.models)

    @cached_property
    def _by_id(self) -> dict[str, Provider]:
        return {each.id: each for each in self.providers}


def _only(found: Sequence[Provider]) -> Provider | None:
    return found[0] if len(found) == 1 else None
