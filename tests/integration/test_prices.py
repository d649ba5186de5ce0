"""Prices on a real server: over both APIs, in every read, through exports, replays and newer lists."""

from typing import Any, Final

from server.prices.builtin import builtin_list
from tests.support.events import ABSENT, make_event

LENIENT: Final = {"Prefer": "handling=lenient"}
BUILTIN: Final = builtin_list().name
RANGE: Final = "start=2026-04-01&end=2026-05-01"


def a_call(model: str = "gpt-4o", **changes: Any) -> dict[str, Any]:
    return make_event(
        **{"model": model, "user_id": model, "input_tokens": 1_000, "output_tokens": 200, "cost_usd": ABSENT, **changes}
    )


def costs_of(events: list[dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    return {event["event_id"]: (event["cost_usd"], event["cost_source"]) for event in events}
