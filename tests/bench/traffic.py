"""The traffic of every row: 10,000 users x 8 models, 1 % of the events sent twice, and what the tables must say of it.

Made before any clock starts, from a seed: the same events on every machine and for every row.
"""

import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, field

from processor.core.events.codec import PayloadFormat
from protos.spendstream.v1 import ingest_pb2 as pb

BATCH: Final = 100
"""Events in one request."""
USERS: Final = 10_000
DUPLICATES: Final = 0.01
ERRORS: Final = 0.02
GZIP_LEVEL: Final = 6
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


class Usage(Struct, array_like=True):
    """What one event adds to the tables; `cost` in picodollars."""

    user: str
    at: str
    """Its timestamp, of a form in which the earlier one is the lesser one."""
    errors: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: int


class Event(Struct):
    """One event on its wires, and what it counts for: nothing if it was sent before."""

    json: bytes
    proto: bytes
    usage: Usage
    is_copy: bool


class Truth(Struct):
    """The tables after all of a corpus: user -> requests, errors, input, output and cached tokens, picodollars."""

    users: dict[str, list[int]]
    seen: dict[str, tuple[str, str]] = field(default_factory=dict)
    """user -> timestamps of the first and the last event."""

    @property
    def unique(self) -> int:
        return sum(row[0] for row in self.users.values())

    def __add__(self, other: "Truth") -> "Truth":
        """The tables after both, of which no event is in the other."""
        found = Truth({user: list(row) for user, row in self.users.items()}, dict(self.seen))
        for user, row in other.users.items():
            found.users[user] = [sum(pair) for pair in zip(found.users.get(user, [0] * 6), row, strict=True)]
            first, last = other.seen[user]
            earlier, later = found.seen.get(user, (first, last))
            found.seen[user] = min(first, earlier), max(last, later)
        return found

    def add(self, usage: Usage, times: int = 1) -> None:
        """An event, or so many that are alike."""
        row = self.users.setdefault(usage.user, [0] * 6)
        values = (1, usage.errors, usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.cost)
        for column, value in enumerate(values):
            row[column] += times * value
        first, last = self.seen.get(usage.user, (usage.at, usage.at))
        self.seen[usage.user] = min(first, usage.at), max(last, usage.at)


def events(count: int, seed: int = 1) -> Iterator[Event]:
    """`count` events, duplicates included; a duplicate repeats an event of the last 10,000 byte by byte."""
    rng = random.Random(seed)
    recent: list[Event] = []
    for number in range(count):
        if recent and rng.random() < DUPLICATES:
            first = rng.choice(recent)
            yield Event(first.json, first.proto, first.usage, True)
            continue
        event = make(rng, number)
        if len(recent) < 10_000:
            recent.append(event)
        else:
            recent[number % 10_000] = event
        yield event


def user_name(number: int) -> str:
    """What a user is called."""
    return f"user-{number:05d}"


def make(rng: random.Random, number: int, owner: str | None = None, named: tuple[str, str] | None = None) -> Event:
    """One event, of a user and a model (provider and name) that are given or drawn."""
    bits = rng.getrandbits
    event_id = f"{bits(32):08x}-{bits(16):04x}-4{bits(12):03x}-{8 + bits(2):x}{bits(12):03x}-{bits(48):012x}"
    user = owner or user_name(rng.randrange(USERS))
    provider, model = named or rng.choice(MODELS)
    inputs, outputs = rng.randrange(20, 4000), rng.randrange(1, 1200)
    cached = inputs // 4 if number % 3 == 0 else 0
    cost = inputs * 2_500_000 + outputs * 10_000_000
    failed = rng.random() < ERRORS
    at = f"2026-04-20T10:{number // 1000 % 60:02d}:{number // 17 % 60:02d}.{number % 1000:03d}Z"
    text = {
        "event_id": event_id,
        "trace_id": f"{bits(128):032x}",
        "span_id": f"{bits(64):016x}",
        "timestamp": at,
        "provider": provider,
        "model": model,
        "operation": "chat",
        "cost_usd": f"0.{cost:012d}".rstrip("0"),
        "status": "error" if failed else "success",
        "finish_reason": "length" if failed else "stop",
        "environment": "production",
        "user_id": user,
        "session_id": f"session-{bits(32):08x}",
        "prompt_hash": f"{bits(64):016x}",
        "sdk_version": "1.4.2",
    }
    numbers = {
        "latency_ms": rng.randrange(80, 9000),
        "ttft_ms": rng.randrange(20, 800),
        "input_tokens": inputs,
        "output_tokens": outputs,
        "cached_tokens": cached,
    }
    tags = {"feature": "summarizer", "team": f"team-{bits(4)}"}
    line = {**text, **numbers, "cost_usd": msgspec.Raw(text["cost_usd"].encode()), "stream": True, "tags": tags}
    proto = pb.Event(stream=True, tags=tags)
    for name, value in {**text, **numbers}.items():
        setattr(proto, name, value)
    return Event(
        msgspec.json.encode(line),
        proto.SerializeToString(),
        Usage(user, at, int(failed), inputs, outputs, cached, cost),
        False,
    )


class Corpus:
    """The events of one run of `python -m tests.bench`, as request bodies in files that loaders read."""

    def __init__(self, directory: Path, count: int) -> None:
        """`count` is rounded up to whole requests."""
        self._directory = directory
        self.count = -(-count // BATCH) * BATCH
        self.truth = Truth({})
        self.lines: list[list[bytes]] = []
        """The events' JSON, by request."""
        self.protos: list[list[bytes]] = []
        batch: list[Event] = []
        for event in events(self.count):
            if not event.is_copy:
                self.truth.add(event.usage)
            batch.append(event)
            if len(batch) == BATCH:
                self.lines.append([made.json for made in batch])
                self.protos.append([made.proto for made in batch])
                batch = []

    def bodies(self, payload: PayloadFormat, limit: int | None = None) -> Path:
        """A file with the bodies of the first `limit` requests (None: all): gzip over HTTP, serialised over gRPC."""
        path = self._directory / f"{payload}-{limit or 'all'}.bodies"
        if not path.exists():
            if payload == "json":
                made = [gzip(b"\n".join(lines)) for lines in self.lines[:limit]]
            else:
                made = [_request(number, raws) for number, raws in enumerate(self.protos[:limit], start=1)]
            path.write_bytes(msgspec.msgpack.encode(made))
        return path


def gzip(body: bytes) -> bytes:
    """As a client's library does it."""
    packer = zlib.compressobj(GZIP_LEVEL, wbits=31)
    return packer.compress(body) + packer.flush()


def _request(number: int, raws: list[bytes]) -> bytes:
    request = pb.IngestRequest(sequence=number)
    for raw in raws:
        request.events.add().MergeFromString(raw)
    return request.SerializeToString()


def read_bodies(path: Path) -> list[bytes]:
    """What `Corpus.bodies` wrote."""
    return msgspec.msgpack.decode(path.read_bytes(), type=list[bytes])
