"""Events for the event store: traces with all that can be in one, and what sums of them have to say."""

import random
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from tests.support.events import ABSENT, make_event

Sent = dict[str, Any]

DAY_OF_ALL: Final = datetime(2026, 4, 20, tzinfo=UTC)
MODELS: Final = (("openai", "gpt-4o"), ("anthropic", "claude-sonnet-4-6"), ("custom", "' OR 1=1 --"))
USERS: Final = ("alice", "bob", "u/1 ä%", None)

TRACE: Final = "trace-abc"
"""The trace and session that the examples of the reference ask for."""
SESSION: Final = "session-1"
EVENT: Final = "550e8400-e29b-41d4-a716-446655440000"


def written(at: datetime) -> str:
    """An RFC 3339 time with milliseconds."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def calls(rng: random.Random, count: int) -> list[Sent]:
    """Calls to models over three days of April, in small traces."""
    found = []
    for number in range(count):
        provider, model = rng.choice(MODELS)
        at = DAY_OF_ALL + timedelta(milliseconds=rng.randrange(3 * 86_400_000))
        session = rng.choice(("s1", "s2", "../s3"))
        found.append(
            make_event(
                event_id=str(UUID(int=rng.getrandbits(128), version=4)),
                trace_id=f"trace-{number // 5}",
                span_id=f"span-{number}",
                timestamp=written(at),
                provider=provider,
                model=model,
                operation=rng.choice(("chat", "embed")),
                latency_ms=rng.choice((0, 120.5, 843, 5000)),
                ttft_ms=rng.choice((ABSENT, 20.25)),
                input_tokens=rng.randrange(2000),
                output_tokens=rng.randrange(500),
                cached_tokens=rng.choice((ABSENT, 0, 7)),
                cost_usd=Decimal(rng.randrange(10**12)).scaleb(-12),
                status=rng.choice(("success", "success", "error", "timeout", "cancelled")),
                environment=rng.choice(("production", "staging")),
                user_id=rng.choice(USERS) or ABSENT,
                session_id=rng.choice((ABSENT, session)),
                tags=rng.choice((ABSENT, {"team": "search"}, {"team": "ads", "a:b\\": "x"})),
                tools_used=rng.choice((ABSENT, ["web"], ["web", "sql"])),
                eval_scores=rng.choice((ABSENT, {"helpful": 0.5})),
                prompt_hash=rng.choice((ABSENT, "v1", "v2")),
                **rng.choice(({}, {"request": {"n": [1, 2.50, None]}})),
            )
        )
    return found


def one_trace() -> list[Sent]:
    """A trace of two spans and three calls, one of them with an error, one an orphan."""
    at = DAY_OF_ALL + timedelta(hours=10)
    shared = {"trace_id": TRACE, "session_id": SESSION, "user_id": "alice"}

    def step(span_id: str, parent: str | None, seconds: float, **more: Any) -> Sent:
        return make_event(
            **shared,
            span_id=span_id,
            parent_span_id=parent or ABSENT,
            timestamp=written(at + timedelta(seconds=seconds)),
            **more,
        )

    def span(span_id: str, parent: str | None, seconds: float, name: str, latency: int) -> Sent:
        left = dict.fromkeys(("provider", "model", "operation", "stream", "input_tokens", "output_tokens"), ABSENT)
        return step(
            span_id, parent, seconds, kind="span", name=name, latency_ms=latency, **{**left, "cost_usd": ABSENT}
        )

    return [
        span("a", None, 0, "answer a question", 3400),
        step("b", "a", 0.05, event_id=EVENT, latency_ms=820, name="plan", prompt={"text": "…"}),
        span("c", "a", 0.9, "search the web", 1400),
        step("d", "c", 1.1, model="gpt-4o-mini", latency_ms=430, status="rate_limited", error_code="429"),
        step("e", "gone", 2.3, latency_ms=1050, cost_usd=Decimal("0.0128")),
    ]


def sums(events: Iterable[Sent], key: Callable[[Sent], Any]) -> dict[Any, dict[str, Any]]:
    """Requests, errors, tokens and cost of the calls among events, by `key`."""
    found: dict[Any, dict[str, Any]] = {}
    for event in events:
        if event.get("kind") == "span":
            continue
        row = found.setdefault(
            key(event),
            dict.fromkeys(("requests", "errors", "input_tokens", "output_tokens", "cached_tokens"), 0)
            | {"cost_usd": Decimal(0)},
        )
        row["requests"] += 1
        row["errors"] += event["status"] in {"error", "timeout", "rate_limited"}
        for name in ("input_tokens", "output_tokens", "cached_tokens"):
            row[name] += event.get(name, 0)
        row["cost_usd"] += event["cost_usd"]
    return found


def batches(events: Sequence[Sent], size: int = 50) -> list[list[Sent]]:
    """Events in requests."""
    return [list(events[start : start + size]) for start in range(0, len(events), size)]
