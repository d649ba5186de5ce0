"""A month of an agent's events as the event store answers them: traces, sessions, prompt versions, scores."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

Event = dict[str, Any]

MODELS: Final = (("openai", "gpt-5", 4), ("anthropic", "claude-sonnet-4", 3), ("google", "gemini-2.5-pro", 2))
TOOLS: Final = ("web_search", "read_file", "run_tests", "sql_query")
PROMPTS: Final = ("9f2c1ab0", "c41d77e2", "e0b35f91")
USERS: Final = ("ada", "grace", "alan", "edsger", "barbara", "linus", "margaret")


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
    chance = random.Random(seed)
    number = 0
    found: list[Event] = []
    for index in range(traces):
        age = timedelta(days=30) * chance.random() ** 1.2
        for made in trace(chance, number, now - age, index):
            found.append(made)
            number += 1
    return [each for each in found if each["timestamp"] <= stamp(now)]


def trace(chance: random.Random, number: int, at: datetime, index: int) -> Iterator[Event]:
    """One agent run: a plan, some tools with calls below them, an answer."""
    user = chance.choices(USERS, weights=range(len(USERS), 0, -1))[0]
    own = {
        "trace_id": f"{0xABCD0000 + index:x}",
        "user_id": user,
        "session_id": f"chat-{user}-{at:%m%d}",
        "environment": chance.choices(("production", "staging"), weights=(9, 1))[0],
        "tags": {"team": chance.choice(("search", "support", "billing"))},
    }
    steps: list[Event] = []
    clock = at

    def step(name: str, length: float, parent: str | None, **fields: Any) -> str:
        nonlocal clock
        span = f"{number + len(steps):016x}"
        steps.append(
            event(
                number + len(steps),
                clock,
                span_id=span,
                parent_span_id=parent,
                name=name,
                latency_ms=round(length, 3),
                **own,
                **fields,
            )
        )
        return span

    def call(name: str, parent: str, prompt: str | None = None) -> None:
        nonlocal clock
        provider, model, _ = chance.choices(MODELS, weights=[weight for *_, weight in MODELS])[0]
        tokens = chance.randrange(300, 9000), chance.randrange(20, 1200)
        failed = chance.random() < 0.03
        length = 200 + tokens[1] * chance.uniform(4, 9)
        price = (Decimal(tokens[0]) * 5 + Decimal(tokens[1]) * 20) / 10**6
        step(
            name,
            length,
            parent,
            provider=provider,
            model=model,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cached_tokens=tokens[0] // 3,
            ttft_ms=round(length / 5, 3),
            stream=True,
            cost_usd=None if chance.random() < 0.01 else price,
            status=chance.choice(("error", "timeout", "rate_limited")) if failed else "success",
            error_code="upstream_503" if failed else None,
            error_message="The model is overloaded" if failed else None,
            prompt_hash=prompt,
            eval_scores={"helpful": round(min(1.0, chance.gauss(0.8, 0.1)), 3)} if prompt else None,
            extra={"prompt": f"Summarise document {number}", "temperature": 0.2},
        )
        clock += timedelta(milliseconds=length)

    span: dict[str, Any] = {
        "kind": "span",
        "provider": "custom",
        "model": "agent run",
        "operation": "custom",
        "cost_usd": None,
    }
    span |= {"input_tokens": 0, "output_tokens": 0}
    root = step("agent run", 0, None, **span)
    call("plan", root, PROMPTS[min(2, int(chance.random() * 3))])
    for _ in range(chance.randrange(1, 5)):
        tool = chance.choice(TOOLS)
        began = clock
        parent = step(tool, 0, root, **{**span, "model": tool, "tools_used": [tool]})
        at_tool = len(steps) - 1
        clock += timedelta(milliseconds=chance.uniform(20, 900))
        if chance.random() < 0.6:
            call("read result", parent)
        steps[at_tool]["latency_ms"] = round((clock - began) / timedelta(milliseconds=1), 3)
    call("answer", root, chance.choice(PROMPTS))
    steps[0]["latency_ms"] = round((clock - at) / timedelta(milliseconds=1), 3)
    yield from steps
