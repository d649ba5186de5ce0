"""A month of made-up traffic for screenshots and trials: every number follows from the seed."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

# provider, model, share of requests, dollars for a million input, cached and output tokens
MODELS: Final = (
    ("anthropic", "claude-sonnet-4-5", 34, "3", "0.3", "15"),
    ("openai", "gpt-5", 24, "1.25", "0.125", "10"),
    ("google", "gemini-2.5-pro", 12, "1.25", "0.31", "10"),
    ("anthropic", "claude-haiku-4-5", 16, "1", "0.1", "5"),
    ("openai", "gpt-5-mini", 10, "0.25", "0.025", "2"),
    ("openai", "text-embedding-3-large", 4, "0.13", "0.13", "0"),
)
TEAMS: Final = ("search", "support", "billing", "research", "growth", "docs", "mobile", "ops")
PEOPLE: Final = ("ada", "barbara", "edsger", "grace", "katherine", "linus", "margaret", "niklaus", "radia", "tony")


def events(count: int, now: datetime, days: int = 30, seed: int = 7) -> Iterator[dict[str, Any]]:
    """`count` events of the `days` before `now`: more on weekdays, a little more every day, few users who send most."""
    chance = random.Random(seed)  # noqa: S311 - figures to look at
    users = [f"{team}-{person}" for team in TEAMS for person in PEOPLE]
    chance.shuffle(users)
    for _ in range(count):
        at = now - timedelta(seconds=days * 86_400 * (1 - chance.random() ** 0.8))
        while at.weekday() > 4 and chance.random() < 0.6:
            at = now - timedelta(seconds=days * 86_400 * (1 - chance.random() ** 0.8))
        provider, model, _, dear, cached_price, out = chance.choices(MODELS, [row[2] for row in MODELS])[0]
        given = int(chance.lognormvariate(7.6, 1.1))
        cached = int(given * chance.betavariate(1.2, 2)) if chance.random() < 0.7 else 0
        made = 0 if out == "0" else int(chance.lognormvariate(5.8, 0.9))
        cost = (Decimal(dear) * (given - cached) + Decimal(cached_price) * cached + Decimal(out) * made) / 1_000_000
        failed = chance.random() < (0.06 if provider == "google" else 0.015)
        yield {
            "event_id": str(UUID(int=chance.getrandbits(128), version=4)),
            "trace_id": f"{chance.getrandbits(64):016x}",
            "span_id": f"{chance.getrandbits(32):08x}",
            "timestamp": at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "provider": provider,
            "model": model,
            "operation": "embed" if out == "0" else "chat",
            "latency_ms": int(chance.lognormvariate(6.8, 0.6)),
            "input_tokens": given,
            "output_tokens": made,
            "cached_tokens": cached,
            "cost_usd": cost,
            "status": chance.choice(("error", "timeout", "rate_limited")) if failed else "success",
            "stream": True,
            "environment": "production",
            "sdk_version": "1.4.2",
            "user_id": users[min(int(chance.paretovariate(0.9)) - 1, len(users) - 1)],
        }
