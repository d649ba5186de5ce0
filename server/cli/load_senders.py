"""Send generated traffic over HTTP or gRPC, and measure how long each acknowledgement takes."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import aiohttp
import grpc
import msgspec
import numpy as np
from google.protobuf.message import Message

from protos.spendstream.v1 import ingest_pb2 as pb
from server.cli.load_traffic import Generator
from server.cli.remote import Unanswered, grpc_refusal, refusal

PATIENCE: Final = 30.0
"""Seconds after which a request counts as lost."""
MAX_WAIT: Final = 5.0
"""Most seconds to wait before a retry, whatever the server asks for."""
TRIES: Final = 20
_AGAIN: Final = {
    grpc.StatusCode.UNAVAILABLE: "UNAVAILABLE",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
    grpc.StatusCode.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
}


class Failed(Exception):
    """A retry would not help; the text says why."""


class Again(Exception):
    """The same request may succeed in `seconds`; `why` is the server's answer, in a word."""

    def __init__(self, why: str, seconds: float) -> None:
        self.why = why
        self.seconds = seconds
        super().__init__(why)


class RequestResult(NamedTuple):
    """The result of a request."""

    accepted: int
    rejected: int


class LoadSender(Protocol):
    """Sends requests over one API."""

    def make(self, events: int, now: int) -> Any:
        """Return an encoded request; `now` is in microseconds."""
        ...

    async def send(self, request: Any) -> RequestResult:
        """Send a request. Raises `Again` or `Failed`."""
        ...


class Accepted(msgspec.Struct):
    """The body of a 202."""

    accepted: int
    rejected: list[msgspec.Raw] = []


@dataclass
class HttpSender:
    """`POST /v1/ingest`."""

    session: aiohttp.ClientSession
    url: str
    generator: Generator

    def make(self, events: int, now: int) -> bytes:
        return self.generator.json(events, now)

    async def send(self, request: bytes) -> RequestResult:
        try:
            async with self.session.post(f"{self.url}/v1/ingest", data=request) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Again(type(error).__name__, 0.2) from None
        if response.status == 202:
            answer = msgspec.json.decode(body, type=Accepted)
            return RequestResult(answer.accepted, len(answer.rejected))
        if response.status in {429, 503, 502, 504}:
            wait = response.headers.get("Retry-After", "1")
            raise Again(str(response.status), float(wait) if wait.isdecimal() else 1.0)
        try:
            raise Failed(refusal(self.url, response.status, body).message)
        except Unanswered as error:
            raise Failed(str(error)) from None


@dataclass
class GrpcSender:
    """`IngestService.Ingest`."""

    call: Any
    url: str
    key: str
    generator: Generator

    def make(self, events: int, now: int) -> Message:
        return self.generator.proto(events, now)

    async def send(self, request: Message) -> RequestResult:
        try:
            answer = await self.call(request, metadata=(("x-api-key", self.key),), timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            if error.code() in _AGAIN:
                raise Again(_AGAIN[error.code()], 0.5) from None
            raise Failed(grpc_refusal(self.url, error.code().name, error.details())) from None
        return RequestResult(answer.accepted, len(answer.rejected))


@asynccontextmanager
async def connected(target: str, key: str, generator: Generator, connections: int) -> AsyncIterator[LoadSender]:
    """Yield a sender for an address like http://host:port or grpc://host:port, https or grpcs with TLS."""
    parts = urlsplit(target)
    if parts.scheme in {"http", "https"}:
        headers = {"x-api-key": key, "Content-Type": "application/x-ndjson"}
        connector = aiohttp.TCPConnector(limit=connections)
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
            yield HttpSender(session, target.rstrip("/"), generator)
        return
    options = [("grpc.max_send_message_length", -1)]
    if parts.scheme == "grpcs":
        channel = grpc.aio.secure_channel(parts.netloc, grpc.ssl_channel_credentials(), options)
    else:
        channel = grpc.aio.insecure_channel(parts.netloc, options)
    async with channel:
        call = channel.unary_unary(
            "/spendstream.v1.IngestService/Ingest",
            request_serializer=pb.IngestRequest.SerializeToString,
            response_deserializer=pb.IngestResponse.FromString,
        )
        yield GrpcSender(call, target, key, generator)


@dataclass
class LoadResult:
    """The result of a run."""

    accepted: int = 0
    rejected: int = 0
    lost: int = 0
    """Events given up after `TRIES`."""
    seconds: float = 0.0
    again: Counter[str] = field(default_factory=Counter)
    """Why requests were retried, and how often."""
    latencies: list[float] = field(default_factory=list)
    """For each request the seconds from when it was due until it was acknowledged."""

    @property
    def rate(self) -> float:
        """Return the accepted events a second."""
        return self.accepted / self.seconds if self.seconds else 0.0

    def percentiles(self) -> dict[str, float]:
        """Return percentiles of the latencies, in milliseconds."""
        names = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
        if not self.latencies:
            return dict.fromkeys(names, 0.0)
        found = np.percentile(np.array(self.latencies) * 1000, list(names.values())).tolist()
        return {name: round(value, 2) for name, value in zip(names, found, strict=True)}


async def run(
    sender: LoadSender,
    events: int,
    *,
    batch: int,
    connections: int,
    rate: float | None,
    clock: Callable[[], int],
    show: Callable[[int, int], None],
) -> LoadResult:
    """Send `events`; with a `rate` (events a second) each request has a due time from which its latency counts.

    Raises `Failed`.
    """
    outcome = LoadResult()
    sizes = iter([*[batch] * (events // batch), *([events % batch] if events % batch else [])])
    began = time.perf_counter()
    sent = 0

    async def connection() -> None:
        nonlocal sent
        for size in sizes:
            due = began + sent / rate if rate else 0.0
            sent += size
            request = sender.make(size, clock())
            if due:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await _until_taken(sender, request, size, outcome, due or time.perf_counter())
            show(outcome.accepted + outcome.rejected + outcome.lost, events)

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(connection())
    outcome.seconds = time.perf_counter() - began
    return outcome


async def _until_taken(sender: LoadSender, request: Any, size: int, outcome: LoadResult, due: float) -> None:
    for _ in range(TRIES):
        try:
            answer = await sender.send(request)
        except Again as again:
            outcome.again[again.why] += 1
            await asyncio.sleep(min(again.seconds, MAX_WAIT))
            continue
        outcome.latencies.append(time.perf_counter() - due)
        outcome.accepted += answer.accepted
        outcome.rejected += answer.rejected
        return
    outcome.lost += size
