"""A month of an agent's events as the event store answers them: traces, sessions, prompt versions, scores."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from server.cli import demo_traffic

Event = dict[str, Any]

UNKNOWN: Final = ("prompt", "temperature")
"""Fields of the demo that are none of an event's own."""
UNPRICED: Final = 97
"""Every so many calls one has no price."""


def stamp(at: datetime) -> str:
    """A time as the server writes it."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def event(number: int, at: datetime, **fields: Any) -> Event:
    """A call with an id of its own."""
    made = {
        "event_id": str(UUID(int=(number << 64) | 0x8000_0000_0000_0000 | number, version=4)),
        "trace_id": f"trace-{number:06}",
        "span_id": f"span-{number:06}",
        "timestamp": stamp(at),
        "provider": "openai",
        "model": "gpt-5",
        "operation": "chat",
        "latency_ms": 843,
        "input_tokens": 512,
        "output_tokens": 128,
        "cached_tokens": 0,
        "cost_usd": Decimal("0.0034"),
        "status": "success",
        "stream": False,
        "environment": "production",
        "sdk_version": "1.0.0",
        "kind": "call",
        "received_at": stamp(at + timedelta(seconds=1)),
        "cost_source": "client",
        **fields,
    }
    return {name: value for name, value in made.items() if value is not None or name == "cost_usd"}


def month(traces: int, now: datetime, seed: int = 7) -> list[Event]:
    """The events of so many traces over the 30 days before `now`."""
    return [_answered(number, sent) for number, sent in enumerate(demo_traffic.month(traces, now, seed))]


def _answered(number: int, sent: Event) -> Event:
    """An event that was sent, as it is answered."""
    at = datetime.fromisoformat(sent["timestamp"])
    made = {**sent, "received_at": stamp(at + timedelta(seconds=1)), "kind": sent.get("kind", "call")}
    if made["kind"] == "span":
        given = {"provider": "custom", "model": made["name"], "operation": "custom", "stream": False}
        return {**made, **given, "input_tokens": 0, "output_tokens": 0, "cost_usd": None}
    cost = None if number % UNPRICED == 0 else Decimal(str(sent["cost_usd"]))
    extra = {name: made.pop(name) for name in UNKNOWN}
    return {**made, "cost_usd": cost, "cost_source": "client", "extra": extra}
