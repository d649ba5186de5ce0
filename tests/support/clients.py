"""The one client of tests: `Reader` reads the tables and sends a batch, `unary` sends one over gRPC.

The others here do not give up: what has not been acknowledged is sent again, unchanged, until it has been. Senders of
both APIs share a `Tally`; `Pace` holds them back, so that there is traffic for as long as a test wants it.

Apart from it stay: the loaders of `tests.bench`, whose CPU time is part of the figures; `tests.contract.doors`, which
sends what a client would not; `tests.support.live`, which follows the feed; and `tests.support.browser`, whose thread
has an event loop that is not ours.
"""

import asyncio
import contextlib
import gzip
import io
import json
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote

import aiohttp
import grpc
from yarl import URL

from protos.spendstream.v1 import ingest_pb2 as pb
from protos.spendstream.v1 import ingest_pb2_grpc
from tests.support.events import to_ndjson, to_proto
from tests.support.patience import PROCESS_PATIENCE
from tests.support.traffic import Sent, Traffic
from tests.support.truth import GroundTruth, plain_decimal

CONNECTIONS: Final = 8
STREAMS: Final = 4
WINDOW: Final = 16
"""Requests of a stream that wait for their answer."""
PAUSE: Final = 0.05
"""Seconds before something is sent again."""
TRICKLE: Final = 500
"""Events a second while the rest is held back."""
MAX_WAIT: Final = 2.5
"""Seconds that one request is held back at most: senders that try again and again must not fill the time to come."""
PATIENCE: Final = 60.0
"""Seconds after which a request counts as lost."""

CHANNEL: Final = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]

_RETRYABLE: Final = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}

_BROKE_OFF: Final = "Internal error from Core"
"""With the code INTERNAL: what grpc.aio makes up by itself (`set_internal_error` in its call.pyx.pxi) if it is still
sending when the connection breaks. No server has sent it."""


class Target(Protocol):
    """What clients are pointed at: one server, or several of which any will do (`tests.chaos.cluster`)."""

    @property
    def http(self) -> str: ...
    @property
    def grpc(self) -> str: ...
    @property
    def key(self) -> str: ...
    def cli(self, *arguments: str, timeout: float = 60.0) -> "subprocess.CompletedProcess[str]": ...


class WrongAnswer(Exception):
    """An answer that no retry would mend."""


@dataclass
class Tally:
    """What became of the traffic so far."""

    acknowledged: int = 0
    """Events, each once, whatever it took."""
    retries: int = 0
    """Requests that were sent again."""
    position: str = ""
    """The newest `x-ingest-position`."""
    reasons: Counter[str] = field(default_factory=Counter, compare=False)
    """Why requests were sent again: what the server said, or how the connection ended."""

    def retry(self, reason: str, requests: int = 1) -> None:
        """Count requests that are sent again."""
        self.retries += requests
        self.reasons[reason] += requests


class Pace:
    """At most `rate` events a second; of the last `reserve` of `total` only `TRICKLE`.

    A quarter of the reserve waits for `let_go`, however long that takes: there is something left to send until then.
    So `total` has to be what takes its turn here (`paced`), and what is sent again gives its turn back.
    """

    def __init__(self, total: int = 0, rate: float = float("inf"), reserve: int = 0) -> None:
        self._left = total
        self._rate = rate
        self._reserve = reserve
        self._free_at = time.monotonic()
        self._released = asyncio.Event()
        if rate == float("inf"):
            self._released.set()

    async def take(self, events: int) -> None:
        """Wait until it is time for `events` more."""
        if self._released.is_set():
            return
        self._left -= events
        if self._left < self._reserve // 4:
            await self._released.wait()
            return
        rate = self._rate if self._left > self._reserve else min(TRICKLE, self._rate)
        now = time.monotonic()
        self._free_at = min(max(self._free_at, now - 0.1) + events / rate, now + MAX_WAIT)
        try:
            await asyncio.wait_for(self._released.wait(), max(0.0, self._free_at - now))
        except TimeoutError:
            return
        except asyncio.CancelledError:  # its call broke, and it was not sent
            self._free_at -= events / rate
            raise

    def give_back(self, events: int) -> None:
        """Events whose turn came, or was waited for, will take another one."""
        self._left += events

    def let_go(self) -> None:
        """From now on as fast as it goes."""
        self._released.set()


class Batch(NamedTuple):
    """One request."""

    events: int
    body: bytes
    """NDJSON for HTTP; serialized events for gRPC, without a sequence."""


def http_batches(batches: Iterable[Sequence[Sent]]) -> "deque[Batch]":
    """Bodies for HTTP."""
    return deque(Batch(len(batch), gzip.compress(to_ndjson(list(batch)), 1)) for batch in batches)


def grpc_batches(batches: Iterable[Sequence[Sent]]) -> "deque[Batch]":
    """Requests for gRPC."""
    return deque(
        Batch(len(batch), pb.IngestRequest(events=map(to_proto, batch)).SerializeToString()) for batch in batches
    )


# --- HTTP ------------------------------------------------------------------------------------------------------------


async def send_http(
    server: Target,
    batches: "deque[Batch]",
    tally: Tally,
    *,
    pace: Pace | None = None,
    connections: int = CONNECTIONS,
    key: str | None = None,
) -> None:
    """Send all `batches` from several connections; returns when every event is acknowledged."""

    async def connection() -> None:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1), timeout=aiohttp.ClientTimeout(total=PATIENCE)
        ) as session:
            client = Reader(server, session)
            while batches:
                batch = batches.popleft()
                if pace is not None:
                    await pace.take(batch.events)
                while (refused := await _posted(client, batch, tally, key)) is not None:
                    tally.retry(refused)
                    await asyncio.sleep(PAUSE)

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(connection())


async def _posted(client: "Reader", batch: Batch, tally: Tally, key: str | None) -> str | None:
    """Why it has to be sent again; None: it was acknowledged."""
    try:
        answer = await client.ingest(batch.body, key, is_packed=True)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return repr(error)
    if answer.status == 503:
        if not 1 <= int(answer.headers.get("Retry-After", "0")) <= 60:
            raise WrongAnswer(f"503 without a sound Retry-After: {answer.headers}")
        return str(answer.json)
    if answer.status != 202 or answer.json != {"accepted": batch.events}:
        raise WrongAnswer(f"{answer.status} {str(answer.json)[:500]}")
    tally.acknowledged += batch.events
    tally.position = answer.headers["x-ingest-position"]
    return None


# --- gRPC ------------------------------------------------------------------------------------------------------------


async def unary(channel: grpc.aio.Channel, key: str, events: Sequence[Sent]) -> pb.IngestResponse:
    """Send one batch, once. Raises `grpc.aio.AioRpcError`."""
    stub: Any = ingest_pb2_grpc.IngestServiceStub(channel)
    request = pb.IngestRequest(events=map(to_proto, events))
    answer: pb.IngestResponse = await stub.Ingest(request, metadata=[("x-api-key", key)], timeout=PATIENCE)
    return answer


async def send_streams(
    server: Target,
    batches: "deque[Batch]",
    tally: Tally,
    *,
    pace: Pace | None = None,
    streams: int = STREAMS,
    key: str | None = None,
) -> None:
    """Send all `batches` over several `IngestStream` calls; returns when every event is acknowledged."""
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(_stream(server, batches, tally, pace or Pace(), key or server.key))


async def _stream(server: Target, batches: "deque[Batch]", tally: Tally, pace: Pace, key: str) -> None:
    while batches:
        async with grpc.aio.insecure_channel(server.grpc, CHANNEL) as channel:
            flight: deque[Batch] = deque()
            broken = "the stream ended"
            try:
                await _one_call(channel, batches, flight, tally, pace, key)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _RETRYABLE and error.details() != _BROKE_OFF:
                    raise WrongAnswer(f"{error.code()} {error.details()}") from error
                broken = f"{error.code()} {error.details()}"
            if flight:
                tally.retry(broken, len(flight))
                pace.give_back(sum(batch.events for batch in flight))
                batches.extendleft(reversed(flight))
                await asyncio.sleep(PAUSE)


async def _one_call(
    channel: grpc.aio.Channel,
    batches: "deque[Batch]",
    flight: "deque[Batch]",
    tally: Tally,
    pace: Pace,
    key: str,
) -> None:
    """One stream, until everything is sent or the stream breaks; `flight` is what is not acknowledged then."""
    open_call: Any = channel.stream_stream(
        "/spendstream.v1.IngestService/IngestStream", response_deserializer=pb.IngestResponse.FromString
    )
    call = open_call(metadata=(("x-api-key", key),))
    room = asyncio.Semaphore(WINDOW)

    async def write() -> None:
        sequence = 0
        while batches:
            await room.acquire()
            if not batches:
                break
            batch = batches.popleft()
            flight.append(batch)
            await pace.take(batch.events)
            sequence += 1
            await call.write(batch.body + pb.IngestRequest(sequence=sequence).SerializeToString())
        await call.done_writing()

    writer = asyncio.create_task(write())
    expected = 0
    try:
        while (response := await _read(call)) is not grpc.aio.EOF:
            expected += 1
            batch = flight[0]
            if response.sequence != expected:
                raise WrongAnswer(f"answer {response.sequence} instead of {expected}: {response}")
            if response.HasField("status"):
                if response.status.code != grpc.StatusCode.UNAVAILABLE.value[0]:
                    raise WrongAnswer(str(response))
                batches.append(batch)
                pace.give_back(batch.events)
                tally.retry(response.status.message)
            elif response.accepted != batch.events or response.rejected:
                raise WrongAnswer(str(response))
            else:
                tally.acknowledged += batch.events
                tally.position = response.position
            flight.popleft()
            room.release()
    finally:
        call.cancel()
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)


async def _read(call: Any) -> Any:
    """The next answer; a server that was stopped says nothing for ever, so patience has an end here too."""
    answer = await call.read()
    if answer is grpc.aio.EOF and (code := await call.code()) is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), await call.details())
    return answer


def send_unary(
    server: Target, batches: "deque[Batch]", tally: Tally, is_over: Callable[[], bool] = lambda: False
) -> None:
    """Send all `batches` one by one with plain, synchronous grpcio. Blocks: to be called in a thread.

    Returns early when `is_over()`: nobody can cancel a thread.
    """
    with grpc.insecure_channel(server.grpc, CHANNEL) as channel:
        stub = ingest_pb2_grpc.IngestServiceStub(channel)
        while batches and not is_over():
            batch = batches.popleft()
            while not is_over():
                try:
                    answer = stub.Ingest(
                        pb.IngestRequest.FromString(batch.body),
                        metadata=(("x-api-key", server.key),),
                        timeout=PATIENCE,
                        compression=grpc.Compression.Gzip,
                    )
                except grpc.RpcError as error:
                    found: Any = error
                    if found.code() not in _RETRYABLE:
                        raise WrongAnswer(f"{found.code()} {found.details()}") from error
                    tally.retry(f"{found.code()} {found.details()}")
                    time.sleep(PAUSE)
                    continue
                if answer.accepted != batch.events:
                    raise WrongAnswer(str(answer))
                tally.acknowledged += batch.events
                tally.position = answer.position
                break


# --- everything together ---------------------------------------------------------------------------------------------


UNARY: Final = 10
"""One of so many requests over gRPC is a unary call."""


def paced(traffic: Traffic) -> int:
    """How many events of a traffic wait for their turn when it is sent: unary calls do not."""
    return traffic.events - sum(map(len, traffic.grpc[: len(traffic.grpc) // UNARY]))


async def send(server: Target, traffic: Traffic, tally: Tally, pace: Pace | None = None) -> None:
    """Send a whole `Traffic`: both APIs at once, then what must come late. Some of gRPC goes as unary calls."""
    pace = pace or Pace()
    cut = len(traffic.grpc) // UNARY
    unary, streamed = grpc_batches(traffic.grpc[:cut]), grpc_batches(traffic.grpc[cut:])
    over = threading.Event()

    async def send_others() -> None:
        try:
            async with asyncio.TaskGroup() as others:
                others.create_task(send_http(server, http_batches(traffic.http), tally, pace=pace))
                others.create_task(send_streams(server, streamed, tally, pace=pace))
        except BaseException:
            over.set()
            raise

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(send_others())
            group.create_task(asyncio.to_thread(send_unary, server, unary, tally, over.is_set))
    finally:
        over.set()
    if traffic.late:
        await send_http(server, http_batches(traffic.late), Tally())


# --- reading ---------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """An HTTP answer that has been read, its numbers with all their digits."""

    status: int
    headers: dict[str, str]
    json: Any


@dataclass
class Reader:
    """Reads the tables over HTTP, and sends a batch, over the connections that `session` keeps."""

    server: Target
    session: aiohttp.ClientSession
    page: int = 97
    """Users a page: small enough that there are several."""
    number: Callable[[str], Any] = plain_decimal
    """Makes something of a number with a point or an exponent."""
    asked: int = field(default=0)

    async def request(self, method: str, path: str, key: str | None = None, **options: Any) -> Answer:
        """One request, path and query as they are. Raises `aiohttp.ClientError`."""
        url = URL(f"http://{self.server.http}{path}", encoded=True)
        headers = {"x-api-key": key or self.server.key, **options.pop("headers", {})}
        self.asked += 1
        async with self.session.request(method, url, headers=headers, **options) as response:
            body = await response.read()
            parsed = json.loads(body, parse_float=self.number) if body else None
            return Answer(response.status, dict(response.headers), parsed)

    async def ingest(
        self,
        events: Sequence[Sent] | bytes,
        key: str | None = None,
        *,
        is_packed: bool = False,
        patience: float = 0.0,
        **fields: str,
    ) -> Answer:
        """Send one batch: events, or a body as it is (`is_packed`: gzip). Raises `aiohttp.ClientError`.

        For `patience` seconds what is refused for now (429, 503) is sent again unchanged, when `Retry-After` says so.
        """
        body = events if isinstance(events, bytes) else to_ndjson(list(events))
        headers = {"Content-Type": "application/x-ndjson", **fields}
        if is_packed:
            headers["Content-Encoding"] = "gzip"
        deadline = time.monotonic() + patience
        while True:
            # A file, for aiohttp warns of large bytes.
            answer = await self.request("POST", "/v1/ingest", key, data=io.BytesIO(body), headers=headers)
            if answer.status not in {429, 503} or time.monotonic() >= deadline:
                return answer
            await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))

    async def get(self, path: str) -> Any:
        """The body of a read that must succeed, if not at once: what starts says 503, what is behind 504."""
        deadline = time.monotonic() + PROCESS_PATIENCE
        while True:
            answer = await self.request("GET", path)
            if answer.status not in {503, 504} or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        if answer.status != 200:
            raise WrongAnswer(f"GET {path}: {answer.status} {answer.json}")
        return answer.json

    async def users(self, sort: str = "cost_usd") -> tuple[list[Any], Any]:
        """All pages of `GET /v1/users`, and the total, which every page must give alike."""
        rows: list[Any] = []
        totals: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            after = f"&cursor={cursor}" if cursor else ""
            answer = await self.get(f"/v1/users?sort={sort}&limit={self.page}{after}")
            rows += answer["users"]
            totals.append(answer["total"])
            cursor = answer["nextCursor"]
        if any(total != totals[0] for total in totals):
            raise WrongAnswer(f"pages with different totals: {totals}")
        return rows, totals[0]

    async def caught_up(self, unique: int, duplicates: int = 0, patience: float = PROCESS_PATIENCE) -> Any:
        """Wait until the quota says `unique` events, and so many duplicates or more, or for a while; return its answer.

        The duplicates may come after the last new event, in a flush of their own.
        """
        deadline = time.monotonic() + patience
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                quota = await self.get("/v1/quota")
                if quota["used"] == unique and quota["duplicates"] >= duplicates:
                    await asyncio.sleep(0.5)  # long enough for a flush: more than `unique` must show
                    return await self.get("/v1/quota")
            if time.monotonic() > deadline:
                return await self.get("/v1/quota")
            await asyncio.sleep(0.1)

    async def differences(self, truth: GroundTruth, *, exact_duplicates: bool, details: int = 10**9) -> list[str]:
        """Everything the reads say that is not the truth. Senders that had to retry make further duplicates."""
        quota = await self.caught_up(truth.unique, truth.duplicates)
        found = []
        if quota["used"] != truth.unique:
            found.append(f"quota: used is {quota['used']}, not {truth.unique}")
        if quota["windows"]["month"]["used"] != quota["used"]:
            found.append(f"quota: the month's window is {quota['windows']['month']}")
        duplicates = quota["duplicates"]
        if duplicates < truth.duplicates or (exact_duplicates and duplicates != truth.duplicates):
            found.append(f"quota: {duplicates} duplicates, not {truth.duplicates}")
        if quota["conflicts"] != truth.conflicts:
            found.append(f"quota: {quota['conflicts']} conflicts, not {truth.conflicts}")
        rows, total = await self.users()
        found += truth.list_differences(rows, total)
        for user in [user for user in truth.users if user is not None][:details]:
            answer = await self.request("GET", f"/v1/users/{quote(user, safe='')}")
            if answer.status == 200:
                found += truth.detail_differences(user, answer.json)
            else:
                found.append(f"detail of {user!r}: {answer.status} {answer.json}")
        return found


@asynccontextmanager
async def reader(server: Target) -> AsyncIterator[Reader]:
    """A `Reader` for the length of the block."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield Reader(server, session)


def verify(server: Target, timeout: float = 300.0) -> list[str]:
    """`spendstream verify` beside the server; returns the differences it prints, or what went wrong. Blocks."""
    done = server.cli("verify", "--json", timeout=timeout)
    if done.returncode not in {0, 1}:
        return [f"verify ended with {done.returncode}: {done.stderr[-1000:]}"]
    said = json.loads(done.stdout)
    differences = [str(difference) for difference in [*said["differences"], *said["problems"]]]
    if (done.returncode == 1) is not bool(differences):
        differences.append(f"verify ended with {done.returncode} for {len(differences)} differences")
    return differences
