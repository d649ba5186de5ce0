"""A month of an agent's traffic, made up: traces, sessions, prompt versions, scores. The seed determines everything."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

Event = dict[str, Any]
"""An event as it is sent; unknown fields stand beside the known ones."""

MODELS: Final = (("openai", "gpt-5", 4), ("anthropic", "claude-sonnet-4", 3), ("google", "gemini-2.5-pro", 2))
"""Provider, model, weight."""
TOOLS: Final = ("web_search", "read_file", "run_tests", "sql_query")
PROMPTS: Final = ("9f2c1ab0", "c41d77e2", "e0b35f91")
USERS: Final = ("ada", "grace", "alan", "edsger", "barbara", "linus", "margaret")
DAYS: Final = 30


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def month(traces: int, now: datetime, seed: int = 7) -> Iterator[Event]:
    """Yield the events of so many traces over the 30 days before `now`; more of them lately than long ago."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    for index in range(traces):
        at = now - timedelta(days=DAYS) * chance.random() ** 1.2
        for event in _Run(chance, at, index).events():
            if event["timestamp"] <= _stamp(now):
                yield event


class _Run:
    """One run of an agent: a plan, some tools with calls below them, an answer."""

    def __init__(self, chance: random.Random, at: datetime, index: int) -> None:
        self._chance = chance
        self._began = self._clock = at
        user = chance.choices(USERS, weights=range(len(USERS), 0, -1))[0]
        self._own: Event = {
            "trace_id": f"{chance.getrandbits(64):016x}",
            "user_id": user,
            "session_id": f"chat-{user}-{at:%m%d}",
            "environment": chance.choices(("production", "staging"), weights=(9, 1))[0],
            "sdk_version": "1.4.2",
            "tags": {"team": chance.choice(("search", "support", "billing"))},
        }
        self._index = index
        self._steps: list[Event] = []

    def events(self) -> list[Event]:
        """Return its steps, parents before children."""
        root = self._span("agent run", None)
        # Versions of the prompt follow each other over the month; the newest one is a little better.
        age = DAYS - min(DAYS, self._index % (DAYS + 1))
        self._call("plan", root, PROMPTS[min(2, age * 3 // DAYS)])
        for _ in range(self._chance.randrange(1, 5)):
            began = self._clock
            tool = self._span(self._chance.choice(TOOLS), root)
            self._clock += timedelta(milliseconds=self._chance.uniform(20, 900))
            if self._chance.random() < 0.6:
                self._call("read result", tool)
            tool["latency_ms"] = _millis(self._clock - began)
        self._call("answer", root, self._chance.choice(PROMPTS))
        root["latency_ms"] = _millis(self._clock - self._began)
        return self._steps

    def _step(self, name: str, parent: Event | None, **fields: Any) -> Event:
        made: Event = {
            "event_id": str(UUID(int=self._chance.getrandbits(128), version=4)),
            "span_id": f"{self._chance.getrandbits(64):016x}",
            "timestamp": _stamp(self._clock),
            "name": name,
            **self._own,
            **fields,
        }
        if parent is not None:
            made["parent_span_id"] = parent["span_id"]
        self._steps.append(made)
        return made

    def _span(self, name: str, parent: Event | None) -> Event:
        tools = {"tools_used": [name]} if name in TOOLS else {}
        return self._step(name, parent, kind="span", latency_ms=0, status="success", **tools)

    def _call(self, name: str, parent: Event, prompt: str | None = None) -> None:
        chance = self._chance
        provider, model, _ = chance.choices(MODELS, weights=[weight for *_, weight in MODELS])[0]
        given, made = chance.randrange(300, 9000), chance.randrange(20, 1200)
        length = 200 + made * chance.uniform(4, 9)
        failed = chance.random() < 0.03
        fields: Event = {
            "provider": provider,
            "model": model,
            "operation": "chat",
            "input_tokens": given,
            "output_tokens": made,
            "cached_tokens": given // 3,
            "latency_ms": round(length, 3),
            "ttft_ms": round(length / 5, 3),
            "stream": True,
            "cost_usd": float((Decimal(given) * 5 + Decimal(made) * 20) / 10**6),
            "status": chance.choice(("error", "timeout", "rate_limited")) if failed else "success",
            "prompt": f"{name.capitalize()} for document {self._index}",
            "temperature": 0.2,
        }
        if failed:
            fields |= {"error_code": "upstream_503", "error_message": "The model is overloaded"}
        if prompt is not None:
            better = 0.05 * PROMPTS.index(prompt)
            fields |= {
                "prompt_hash": prompt,
                "eval_scores": {"helpful": round(min(1.0, chance.gauss(0.75 + better, 0.1)), 3)},
            }
        self._step(name, parent, **fields)
        self._clock += timedelta(milliseconds=length)


def _millis(span: timedelta) -> float:
    return round(span / timedelta(milliseconds=1), 3)
