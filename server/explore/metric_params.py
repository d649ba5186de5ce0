"""What the parameters of metrics may ask for: measures, groups, intervals, time zones."""

import re
import zoneinfo
from functools import cache
from typing import Final, cast, get_args

from server.explore.filter_params import parse_tag_key
from server.explore.measures import QUANTILES
from server.explore.param_list import ParamList, bad
from server.explore.questions import Interval

MAX_GROUP_BY: Final = 3
"""Fields that one question may group by."""
MAX_MEASURES: Final = 32
"""Measures of one question."""
GROUPS: Final = (
    "provider",
    "model",
    "operation",
    "status",
    "environment",
    "user_id",
    "session_id",
    "prompt_hash",
    "error_code",
    "name",
    "kind",
    "tool",
)
"""Fields to group by, besides `tag:KEY`."""
PLAIN_MEASURES: Final = (
    "requests",
    "errors",
    "error_rate",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_usd",
    "unpriced",
    "users",
    "traces",
    "sessions",
    "first_seen",
    "last_seen",
    "tokens_per_second",
)
"""Measures without a part behind a colon."""
_OF_TIMES: Final = ("avg", "sd", *QUANTILES)
STATISTICS: Final[dict[str, tuple[str, ...]]] = {
    "latency_ms": _OF_TIMES,
    "ttft_ms": _OF_TIMES,
    "cost_usd": ("avg", "sd"),
}
"""Field -> what of it can be asked for, as `field:statistic`."""
SCORES: Final = ("avg", "sd", "p50", "p95", "count")
"""What of a score can be asked for, as `score:NAME:statistic`; the name may contain colons."""
DEFAULT_MEASURES: Final = ("requests", "cost_usd")
INTERVALS: Final[tuple[Interval, ...]] = get_args(Interval)

_SCORE: Final = re.compile(rf"score:.*:({'|'.join(SCORES)})", re.DOTALL).fullmatch


def measures_of(params: ParamList) -> tuple[str, ...]:
    """Return the measures, each once. Raises `Refused`."""
    found = tuple(dict.fromkeys(params.all("measures")))
    for name in found:
        if not is_measure(name):
            bad(f"measures: {name[:300]!r} is no measure; {described()}")
    if len(found) > MAX_MEASURES:
        bad(f"measures may be given {MAX_MEASURES} times")
    return found or DEFAULT_MEASURES


def is_measure(name: str) -> bool:
    """Return whether there is such a measure."""
    field, _, statistic = name.partition(":")
    return name in PLAIN_MEASURES or statistic in STATISTICS.get(field, ()) or _SCORE(name) is not None


def described() -> str:
    """Return all measures in words."""
    fields = (f"{field}:{'|'.join(words)}" for field, words in STATISTICS.items())
    return f"measures are {', '.join((*PLAIN_MEASURES, *fields))}, score:NAME:{'|'.join(SCORES)}"


def groups_of(params: ParamList) -> tuple[str, ...]:
    """Return what is grouped by, each once, the keys of tags unescaped. Raises `Refused`."""
    found = []
    for name in params.all("group_by"):
        if name.startswith("tag:"):
            found.append("tag:" + parse_tag_key("group_by", name.removeprefix("tag:")))
        elif name in GROUPS:
            found.append(name)
        else:
            bad(f"group_by must be one of {', '.join(GROUPS)}, tag:KEY")
    groups = tuple(dict.fromkeys(found))
    if len(groups) > MAX_GROUP_BY:
        bad(f"group_by may be given {MAX_GROUP_BY} times")
    return groups


def interval_of(params: ParamList) -> Interval:
    """Return the interval of the series. Raises `Refused`."""
    return cast(Interval, params.choice("interval", INTERVALS) or "none")


def zone_of(params: ParamList) -> str:
    """Return the name of a time zone that zoneinfo knows. Raises `Refused`."""
    found = params.one("tz")
    if found is None:
        return "UTC"
    if found not in _zones():
        bad("tz must be the IANA name of a time zone, like Europe/Berlin or UTC")
    return found


@cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())
