"""The filters among the query parameters: which events are meant, and of which time.

A filter that is repeated means any of its values, with `!` after its name none of them; of repeated tags an event must
have all. An empty value means that the event has no such value.
"""

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Final

from processor.core.clock import DAY, parse_timestamp
from processor.core.events.fields import KINDS, MAX_FLOAT, OPERATIONS, PROVIDERS, STATUSES
from processor.core.money import MAX_COST, PICO
from server.errors import Refused
from server.explore.param_list import ParamList, bad
from server.explore.questions import TEXT_FILTERS, Filters, Kinds, Times

MAX_DAYS: Final = 400
"""Days that a question may cover, unless it names a trace, a session or an event."""
DEFAULT_RANGE: Final = DAY
"""Microseconds of the range where `start` is not given."""
IDS: Final = ("trace_id", "session_id", "event_id")
"""Filters that name single things: a question that has one needs no range."""
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "provider": PROVIDERS,
    "operation": OPERATIONS,
    "status": STATUSES,
}
"""Filters whose values are of a closed list."""
ALL_KINDS: Final[tuple[Kinds, ...]] = (*KINDS, "all")

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}").fullmatch
_DECIMAL: Final = re.compile(r"[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,2})?", re.ASCII).fullmatch
_KEY: Final = re.compile(r"(?:[^:\\]|\\[:\\])*").match


def filters_of(params: ParamList, kinds: Kinds) -> Filters:
    """Return the filters; `kinds` is the default of `kind`. Raises `Refused`."""
    return Filters(
        equal={name: found for name in TEXT_FILTERS if (found := _texts(params, name, name))},
        unequal={name: found for name in TEXT_FILTERS if (found := _texts(params, name, f"{name}!"))},
        tools=_or_none(params.all("tool")),
        no_tools=_or_none(params.all("tool!")),
        tags=tuple(parse_tag("tag", text) for text in params.all("tag")),
        no_tags=tuple(parse_tag("tag!", text) for text in params.all("tag!")),
        kinds=_kinds(params, kinds),
        min_cost=_cost(params, "min_cost_usd", math.ceil),
        max_cost=_cost(params, "max_cost_usd", math.floor),
        min_latency=_millis(params, "min_latency_ms"),
        max_latency=_millis(params, "max_latency_ms"),
    )


def given_times(params: ParamList) -> Times:
    """Return `start` and `end` as they were given. Raises `Refused`."""
    return Times(_instant(params, "start"), _instant(params, "end"))


def times_of(given: Times, filters: Filters, now: int) -> Times:
    """Return the range of event time that is meant. Raises `Refused` (range_too_wide)."""
    start, end = given.start, given.end
    if names_ids(filters):
        return given
    if start is None:
        start = (now if end is None else end) - DEFAULT_RANGE
    elif end is None:
        end = now
    if end is not None and end - start > MAX_DAYS * DAY:
        raise Refused(
            "range_too_wide",
            f"start and end are more than {MAX_DAYS} days apart, the most that one question covers; ask for parts of "
            f"the range, or for single ids by {', '.join(IDS)}",
            details={"maxDays": MAX_DAYS},
        )
    return Times(start, end)


def names_ids(filters: Filters) -> bool:
    """Return whether the events of single traces, sessions or ids are asked for."""
    return any(name in filters.equal and None not in filters.equal[name] for name in IDS)


# --- tags ------------------------------------------------------------------------------------------------------------


def parse_tag(name: str, text: str) -> tuple[str, str | None]:
    """Return key and value of `KEY:VALUE`; None: no such tag. Raises `Refused`."""
    key, end = _key(name, text)
    if end == len(text):
        bad(f"{name} must be KEY:VALUE; a : in the key is written \\:, a \\ is written \\\\")
    return key, text[end + 1 :] or None


def parse_tag_key(name: str, text: str) -> str:
    """Return the key that `text` is as a whole, as in `tag:KEY`. Raises `Refused`."""
    key, end = _key(name, text)
    if end != len(text):
        bad(f"{name}: a : in the key of a tag is written \\:")
    return key


def _key(name: str, text: str) -> tuple[str, int]:
    """Return the key at the start of `text`, and where it ends: at a `:`, or at the end of the text."""
    found = _KEY(text)
    end = 0 if found is None else found.end()
    if end < len(text) and text[end] != ":":
        bad(f"{name}: a \\ in the key of a tag is written \\\\, a : is written \\:")
    return re.sub(r"\\([:\\])", r"\1", text[:end]), end


# --- single values ---------------------------------------------------------------------------------------------------


def _texts(params: ParamList, name: str, given: str) -> tuple[str | None, ...]:
    found = params.all(given)
    words = CHOICES.get(name)
    if words is not None and any(text and text not in words for text in found):
        bad(f"{given} must be one of {', '.join(words)}")
    if name == "event_id":
        found = tuple(text.lower() for text in found)
    return _or_none(found)


def _or_none(texts: tuple[str, ...]) -> tuple[str | None, ...]:
    return tuple(dict.fromkeys(text or None for text in texts))


def _kinds(params: ParamList, default: Kinds) -> Kinds:
    given, without = params.all("kind"), params.all("kind!")
    for name, texts in (("kind", given), ("kind!", without)):
        if any(text not in ALL_KINDS for text in texts):
            bad(f"{name} must be one of {', '.join(ALL_KINDS)}")
    if not given and without:
        given = ("all",)
    wanted = _members(given or (default,)) - _members(without)
    if not wanted:
        bad("kind and kind! together leave no event")
    return "all" if len(wanted) == len(KINDS) else wanted.pop()


def _members(words: tuple[str, ...]) -> set[Kinds]:
    return {kind for kind in KINDS if kind in words or "all" in words}


def _cost(params: ParamList, name: str, to_whole: Callable[[Fraction], int]) -> int | None:
    """Return a bound in picodollars, at most just above the highest cost of an event."""
    text = params.one(name)
    if text is None:
        return None
    if _DECIMAL(text) is None:
        bad(f"{name} must be a decimal number of dollars, 0 or more")
    return min(to_whole(Fraction(text) * PICO), MAX_COST * PICO + 1)


def _millis(params: ParamList, name: str) -> float | None:
    text = params.one(name)
    if text is None:
        return None
    if _DECIMAL(text) is None:
        bad(f"{name} must be a number of milliseconds, 0 or more")
    return min(float(text), MAX_FLOAT)


def _instant(params: ParamList, name: str) -> int | None:
    text = params.one(name)
    if text is None:
        return None
    try:
        return parse_timestamp(f"{text}T00:00:00Z" if _DATE(text) else text)
    except ValueError:
        bad(f"{name} must be an RFC 3339 time with Z, or a date (YYYY-MM-DD)")
