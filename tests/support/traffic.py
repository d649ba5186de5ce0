"""The one generator of events, with their ground truth. Everything follows from the seed.

There are profiles, each of which makes one event after the other, and what the tables must count for it:

- `Plain`: what the benchmark's rows are measured with: 10,000 users x 8 models within an hour.
- `Wide`: 10,000 users over three days of hours and two environments, so that nearly every event makes a row; tags,
  scores and hashes. What a row of the benchmark must hold up to, too.
- `Odd`: values that are hard to read, names that are hard to write, events of nobody: what chaos runs and integration
  tests send.
- `Month`: a month that looks like a product's, for screenshots.

`stream` sends some of a profile's events twice; `make_traffic` spreads them over both APIs, and has copies that say the
same in other words, and some that do not.

Apart from it stay: `server/cli/load_traffic.py`, which is shipped; `tests/fuzz/inputs.py`, whose bodies are no events;
`tests.bench.passes`, which writes new ids into the bytes of `Plain` as fast as they are sent; and tests that name each
event they send (`make_event`).
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final, Protocol
from uuid import UUID

from tests.support.events import ABSENT, Num, make_event
from tests.support.truth import DAY, EPOCH, EXACT, PICO, Fact, GroundTruth

BATCH: Final = 100
"""Events in one request."""
USERS: Final = 10_000
DUPLICATES: Final = 0.01
RECENT: Final = 10_000
"""The second copy of an event comes among so many after it."""

Sent = dict[str, Any]
"""An event as `make_event` gives it."""

Made = tuple[Sent, Fact]

_ERRORS: Final = {"error", "timeout", "rate_limited"}


class Profile(Protocol):
    """Makes events of a kind."""

    def make(self, number: int) -> Made:
        """The next event; `number` counts those of a stream, copies included."""
        ...


@dataclass(frozen=True, slots=True)
class Streamed:
    """One event of a stream."""

    event: Sent
    fact: Fact
    is_copy: bool
    """Whether it was sent before, with the same bytes: then it counts for nothing."""


def stream(profile: Profile, rng: random.Random, count: int, duplicates: float = DUPLICATES) -> Iterator[Streamed]:
    """`count` events, `duplicates` of them copies of one of the last `RECENT`; `rng` is the profile's own."""
    recent: list[Made] = []
    for number in range(count):
        if duplicates and recent and rng.random() < duplicates:
            yield Streamed(*rng.choice(recent), True)
            continue
        made = profile.make(number)
        if len(recent) < RECENT:
            recent.append(made)
        else:
            recent[number % RECENT] = made
        yield Streamed(*made, False)


def user_name(number: int) -> str:
    """What a user of `Plain` is called."""
    return f"user-{number:05d}"


def micros(at: datetime) -> int:
    """Microseconds since the epoch."""
    return (at - EPOCH) // timedelta(microseconds=1)


def bulk_line(event_id: str, user: str, at: str, inputs: int = 512, outputs: int = 128, pico: int = 0) -> bytes:
    """A small event's line at once: logs are filled with millions of them, and a dict for each costs ten times that."""
    return (
        f'{{"event_id":"{event_id}","timestamp":"{at}","trace_id":"t","span_id":"s","provider":"openai",'
        f'"model":"gpt-4o","operation":"chat","user_id":"{user}","latency_ms":{inputs},"input_tokens":{inputs},'
        f'"stream":true,"environment":"e","output_tokens":{outputs},"cost_usd":{pico // 10**12}.{pico % 10**12:012d},'
        f'"status":"success","sdk_version":"1.4.2"}}'
    ).encode()


# --- what the benchmark is measured with -----------------------------------------------------------------------------


class Plain:
    """Workload A. Its bytes decide what every figure in docs/performance.md means: they do not change."""

    MODELS: Final = (
        ("openai", "gpt-4o"),
        ("openai", "gpt-4o-mini"),
        ("openai", "text-embedding-3-small"),
        ("anthropic", "claude-sonnet-4-6"),
        ("anthropic", "claude-haiku-4-5"),
        ("google", "gemini-2.5-flash"),
        ("google", "gemini-2.5-pro"),
        ("custom", "llama-3.3-70b"),
    )
    ERRORS: Final = 0.02
    BEGAN: Final = micros(datetime(2026, 4, 20, 10, tzinfo=UTC))

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def make(self, number: int, user: str | None = None, named: tuple[str, str] | None = None) -> Made:
        """One event, of a user and a model (provider and name) that are given or drawn."""
        rng, bits = self._rng, self._rng.getrandbits
        event_id = f"{bits(32):08x}-{bits(16):04x}-4{bits(12):03x}-{8 + bits(2):x}{bits(12):03x}-{bits(48):012x}"
        user = user or user_name(rng.randrange(USERS))
        provider, model = named or rng.choice(self.MODELS)
        inputs, outputs = rng.randrange(20, 4000), rng.randrange(1, 1200)
        cached = inputs // 4 if number % 3 == 0 else 0
        cost = inputs * 2_500_000 + outputs * 10_000_000
        failed = rng.random() < self.ERRORS
        minute, second, milli = number // 1000 % 60, number // 17 % 60, number % 1000
        at = self.BEGAN + ((minute * 60 + second) * 1000 + milli) * 1000
        event: Sent = {
            "event_id": event_id,
            "trace_id": f"{bits(128):032x}",
            "span_id": f"{bits(64):016x}",
            "timestamp": f"2026-04-20T10:{minute:02d}:{second:02d}.{milli:03d}Z",
            "provider": provider,
            "model": model,
            "operation": "chat",
            "cost_usd": Num(f"0.{cost:012d}".rstrip("0")),
            "status": "error" if failed else "success",
            "finish_reason": "length" if failed else "stop",
            "environment": "production",
            "user_id": user,
            "session_id": f"session-{bits(32):08x}",
            "prompt_hash": f"{bits(64):016x}",
            "sdk_version": "1.4.2",
            "latency_ms": rng.randrange(80, 9000),
            "ttft_ms": rng.randrange(20, 800),
            "input_tokens": inputs,
            "output_tokens": outputs,
            "cached_tokens": cached,
            "stream": True,
            "tags": {"feature": "summarizer", "team": f"team-{bits(4)}"},
        }
        return event, Fact(user, at, provider, model, (1, int(failed), inputs, outputs, cached, cost, 0))


class Wide:
    """Workload B: few users send most, events of the three days before an instant, and what else an event may say."""

    MODELS: Final = (
        ("openai", "gpt-4o", "chat"),
        ("openai", "gpt-4o-mini", "chat"),
        ("anthropic", "claude-sonnet-4-6", "chat"),
        ("google", "gemini-2.5-flash", "chat"),
        ("openai", "text-embedding-3-small", "embed"),
        ("custom", "llama-3-70b", "custom"),
        ("openai", "gpt-image-1", "image"),
        ("openai", "tts-1", "tts"),
    )
    STATUSES: Final = (*["success"] * 94, *["error"] * 3, "timeout", "rate_limited", "cancelled")
    COSTS: Final = ((1, 99), (100, 9999), (10_000, 900_000))
    """Least and most of a cost's digits."""
    PLACES: Final = (6, 7, 9)
    """Decimal places of them."""
    SECONDS: Final = 3 * 86_400
    NOW: Final = datetime(2026, 4, 20, 12, tzinfo=UTC)

    def __init__(self, rng: random.Random, users: int = USERS, now: datetime = NOW) -> None:
        self._rng = rng
        self._users = users
        self._now = micros(now.replace(microsecond=0))

    def make(self, number: int) -> Made:
        """One event; `number` decides nothing."""
        rng, bits = self._rng, self._rng.getrandbits
        provider, model, operation = rng.choice(self.MODELS)
        user = f"user_{int(self._users * rng.random() ** 2.5)}" if rng.random() < 0.95 else None
        digits, places = rng.randint(*rng.choice(self.COSTS)), rng.choice(self.PLACES)
        at = self._now - rng.randint(0, self.SECONDS) * 1_000_000 + rng.randrange(1000) * 1000 - 1_000_000
        inputs, outputs, cached = rng.randint(0, 8000), rng.randint(0, 2000), 0
        status = rng.choice(self.STATUSES)
        event: Sent = {
            "event_id": str(UUID(int=bits(128), version=4)),
            "trace_id": f"trace-{bits(48):x}",
            "span_id": f"span-{bits(48):x}",
            "timestamp": f"{EPOCH + timedelta(microseconds=at):%Y-%m-%dT%H:%M:%S}.{at // 1000 % 1000:03d}Z",
            "provider": provider,
            "model": model,
            "operation": operation,
            "latency_ms": rng.randint(30, 9000),
            "input_tokens": inputs,
            "output_tokens": outputs,
            # As Python's json writes it, small ones with an exponent; so few digits are exact in a float.
            "cost_usd": Num(repr(digits / 10**places)),
            "status": status,
            "stream": rng.random() < 0.5,
            "environment": rng.choice(("production", "staging")),
            "sdk_version": "1.4.2",
        }
        if user is not None:
            event["user_id"] = user
        if rng.random() < 0.6:
            cached = event["cached_tokens"] = rng.randint(0, inputs)
            event |= {
                "ttft_ms": rng.randint(10, 900),
                "session_id": f"sess-{bits(24):x}",
                "tags": {
                    "feature": rng.choice(("summarizer", "search", "chat")),
                    "team": rng.choice(("growth", "core")),
                },
                "prompt_hash": f"{bits(256):064x}",
                "finish_reason": "stop",
            }
        if rng.random() < 0.2:
            event |= {
                "parent_span_id": f"span-{bits(48):x}",
                "tools_used": ["search", "sql"],
                "eval_scores": {"faithfulness": round(rng.random(), 3)},
            }
        numbers = (1, int(status in _ERRORS), inputs, outputs, cached, digits * 10 ** (12 - places), 0)
        return event, Fact(user, at, provider, model, numbers)


# --- what is hard to read ---------------------------------------------------------------------------------------------


class Odd:
    """Numbers written in every way, times of every zone, users of every name and none."""

    FIRST_DAY: Final = micros(datetime(2025, 2, 20, tzinfo=UTC)) // DAY
    PROVIDERS: Final = ("openai", "anthropic", "google", "custom")
    STATUSES: Final = ("success", "success", "success", "success", "error", "timeout", "rate_limited", "cancelled")
    ENVIRONMENTS: Final = ("production", "production", "staging", "development")
    OPERATIONS: Final = ("chat", "chat", "chat", "embed", "image", "tts", "custom")
    NAMES: Final = ("ünï/çødé 7", "a b", "100%", "x?y#z&u=1", '"quoted"', "null", "USER-1", "+", "é" * 128, "日本")

    def __init__(self, rng: random.Random, users: int, models: int, days: int) -> None:
        self._rng = rng
        self._users = [*self.NAMES, *(f"user-{number}" for number in range(users))][:users]
        self._models = [(self.PROVIDERS[number % 4], f"model-{number // 2}") for number in range(models)]
        self._days = days

    def make(self, number: int) -> Made:
        """One event; `number` decides nothing."""
        rng = self._rng
        user = None if rng.random() < 0.06 else rng.choice(self._users)
        provider, model = rng.choice(self._models)
        at = (self.FIRST_DAY + rng.randrange(self._days)) * DAY + rng.randrange(DAY)
        status = rng.choice(self.STATUSES)
        tokens = (rng.randrange(4000), rng.randrange(1500), rng.choice((0, rng.randrange(2000))))
        cost, pico = self._cost()
        event = make_event(
            event_id=str(UUID(int=rng.getrandbits(128), version=4)),
            timestamp=self._timestamp(at),
            provider=provider,
            model=model,
            operation=rng.choice(self.OPERATIONS),
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cached_tokens=tokens[2] or rng.choice((0, None, ABSENT)),
            cost_usd=Num(cost),
            status=status,
            environment=rng.choice(self.ENVIRONMENTS),
            user_id=user if user is not None else rng.choice((ABSENT, None, "")),
        )
        return event, Fact(user, at, provider, model, (1, int(status in _ERRORS), *tokens, pico, 0))

    def _cost(self) -> tuple[str, int]:
        """A decimal as somebody might write it, and what it comes to in picodollars."""
        rng = self._rng
        places = rng.randrange(16)
        digits = rng.randrange(10 ** rng.randrange(1, 7)) if places else rng.randrange(3)
        if rng.random() < 0.02:
            digits += 10**places * rng.randrange(1000, 900_000)
        value = Decimal(digits).scaleb(-places, EXACT)
        text = f"{value:f}"
        if rng.random() < 0.05:
            text = f"{digits}e-{places}"
        return text, int(value.quantize(PICO, ROUND_HALF_EVEN, EXACT).scaleb(12, EXACT))

    def _timestamp(self, at: int) -> str:
        rng = self._rng
        zone = UTC if rng.random() < 0.8 else timezone(timedelta(minutes=rng.choice((-570, -60, 120, 345))))
        text = (EPOCH + timedelta(microseconds=at)).astimezone(zone).isoformat(timespec="microseconds")
        moment, offset = text[:26], text[26:]
        if rng.random() < 0.1:
            moment += f"{rng.randrange(1000):03d}"  # nanoseconds: cut
        return moment + ("Z" if zone is UTC else offset)

    def rewritten(self, event: Sent) -> Sent:
        """The same event in other words."""
        rng = self._rng
        changes: Sent = {"trace_id": f"again-{rng.randrange(1000)}"}  # nothing that a copy is compared by
        if rng.random() < 0.3:
            changes["event_id"] = event["event_id"].upper()
        if rng.random() < 0.3:
            changes["input_tokens"] = Num(f"{event['input_tokens']}.0")
        if rng.random() < 0.3:
            cost: str = event["cost_usd"]
            changes["cost_usd"] = Num(cost if "e" in cost else f"{cost}0" if "." in cost else f"{cost}.0")
        return {**event, **changes}

    def differing(self, event: Sent) -> Sent:
        """A copy that says something else."""
        field, value = self._rng.choice(
            [
                ("timestamp", "2025-06-01T00:00:00Z"),
                ("provider", "google" if event["provider"] != "google" else "openai"),
                ("model", "another-model"),
                ("operation", "tts" if event["operation"] != "tts" else "chat"),
                ("user_id", "somebody-else"),
                ("environment", "another-environment"),
                ("status", "cancelled" if event["status"] != "cancelled" else "success"),
                ("input_tokens", event["input_tokens"] + 1),
                ("output_tokens", event["output_tokens"] + 1),
                ("cached_tokens", 2001),
                ("cost_usd", Num("999999.999999999999")),
            ]
        )
        return {**event, field: value}


@dataclass
class Traffic:
    """Batches of both APIs, in the order in which to send them."""

    seed: int
    http: list[list[Sent]]
    grpc: list[list[Sent]]
    late: list[list[Sent]]
    """Copies that differ from the first one: to be sent only after everything else has been acknowledged."""
    truth: GroundTruth

    @property
    def events(self) -> int:
        """All that `http` and `grpc` have, copies included."""
        return sum(map(len, self.http)) + sum(map(len, self.grpc))

    def by_id(self) -> dict[str, Sent]:
        """Each event by its id in small letters; of several copies any, which say the same."""
        return {event["event_id"].lower(): event for batch in (*self.http, *self.grpc) for event in batch}


def make_traffic(
    seed: int,
    events: int,
    *,
    users: int = 400,
    models: int = 12,
    days: int = 12,
    duplicates: float = 0.05,
    conflicts: int = 0,
    padding: int = 0,
) -> Traffic:
    """`events` events of `Odd`, half of them for each API, `duplicates` of them copies that come through either.

    The copies say the same in another way (`5.0` for 5, an id in capitals), but none of them differs; `conflicts`
    copies that do differ are added apart, as `late`. With `padding` each event has an unknown field of so many
    characters, which take half as many bytes at least however they are packed.
    """
    rng = random.Random(seed)
    odd = Odd(rng, users, models, days)
    truth = GroundTruth()
    copies = int(events * duplicates)
    made = [odd.make(number) for number in range(events - copies)]
    for event, _ in made if padding else ():
        event["padding"] = rng.randbytes(padding // 2).hex()
    truth.count(fact for _, fact in made)
    sent = [event for event, _ in made]
    again = rng.choices(sent, k=copies)
    differing = [odd.differing(event) for event in rng.sample(sent, conflicts)]
    truth.duplicates = copies + conflicts
    truth.conflicts = conflicts
    sent += [odd.rewritten(event) for event in again]
    rng.shuffle(sent)
    half = len(sent) // 2
    return Traffic(seed, batches(sent[:half]), batches(sent[half:]), batches(differing), truth)


def batches(events: Sequence[Sent], size: int = BATCH) -> list[list[Sent]]:
    """The events by the request."""
    return [list(events[start : start + size]) for start in range(0, len(events), size)]


# --- what looks like a product's --------------------------------------------------------------------------------------


class Month:
    """The `days` before an instant: more on weekdays, a little more every day, few users who send most."""

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

    def __init__(self, rng: random.Random, now: datetime, days: int = 30) -> None:
        self._rng = rng
        self._now = now
        self._days = days
        self._users = [f"{team}-{person}" for team in self.TEAMS for person in self.PEOPLE]
        rng.shuffle(self._users)

    def make(self, number: int) -> Made:
        """One event; `number` decides nothing."""
        rng = self._rng
        at = self._instant()
        while at.weekday() > 4 and rng.random() < 0.6:
            at = self._instant()
        provider, model, _, dear, cached_price, out = rng.choices(self.MODELS, [row[2] for row in self.MODELS])[0]
        given = int(rng.lognormvariate(7.6, 1.1))
        cached = int(given * rng.betavariate(1.2, 2)) if rng.random() < 0.7 else 0
        made = 0 if out == "0" else int(rng.lognormvariate(5.8, 0.9))
        cost = (Decimal(dear) * (given - cached) + Decimal(cached_price) * cached + Decimal(out) * made) / 1_000_000
        failed = rng.random() < (0.06 if provider == "google" else 0.015)
        event: Sent = {
            "event_id": str(UUID(int=rng.getrandbits(128), version=4)),
            "trace_id": f"{rng.getrandbits(64):016x}",
            "span_id": f"{rng.getrandbits(32):08x}",
            "timestamp": at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "provider": provider,
            "model": model,
            "operation": "embed" if out == "0" else "chat",
            "latency_ms": int(rng.lognormvariate(6.8, 0.6)),
            "input_tokens": given,
            "output_tokens": made,
            "cached_tokens": cached,
            "cost_usd": cost,
            "status": rng.choice(("error", "timeout", "rate_limited")) if failed else "success",
            "stream": True,
            "environment": "production",
            "sdk_version": "1.4.2",
            "user_id": self._users[min(int(rng.paretovariate(0.9)) - 1, len(self._users) - 1)],
        }
        numbers = (1, int(failed), given, made, cached, int(cost.scaleb(12)), 0)
        return event, Fact(event["user_id"], micros(at) // 1000 * 1000, provider, model, numbers)

    def _instant(self) -> datetime:
        return self._now - timedelta(seconds=self._days * 86_400 * (1 - self._rng.random() ** 0.8))


def month(count: int, now: datetime, seed: int = 7) -> Iterable[Sent]:
    """`count` events of the month before `now`, each once."""
    rng = random.Random(seed)
    return (streamed.event for streamed in stream(Month(rng, now), rng, count, duplicates=0.0))
