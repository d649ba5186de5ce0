"""Load over HTTP that does not end: requests with fresh ids (`passes.py`), made as they are sent, a stretch at a time.

Each line on standard input is a `Stretch`, answered with its `Outcome`; one that is to be prepared is answered with a
ready line first, and starts at the line after. A refused request (503) is kept and sent again unchanged before new ones
are made, as a good client does; it counts each time.
"""

import asyncio
import gc
import sys
from collections import deque
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from msgspec import Struct

from tests.bench.load_http import ACCEPTED, ACCEPTED_COUNT, BUSY, RETRY, Connection, Sent
from tests.bench.loading import Outcome, cpu_seconds, now, say
from tests.bench.passes import Bodies, Pass
from tests.bench.traffic import BATCH

PATIENCE: Final = 120.0
"""Seconds that a server may go on to refuse after the stretch was to be over."""
TICK: Final = 0.005
"""Seconds between two looks at what is due."""
NEVER: Final = 1 << 62
HELLO: Final = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

Request = tuple[int, bytes]
"""Its number and all of its bytes."""


class Fresh(Struct):
    """What a generator is to send, and where to."""

    port: int
    key: str
    made: str
    """File of the `Pass`."""
    seed: int


class Stretch(Struct):
    """How it is to send for a while."""

    requests: int = NEVER
    """New ones at most."""
    seconds: float = float(NEVER)
    """For which new ones are sent."""
    at: float = 0.0
    """When to start, by `now`; connections are made before."""
    lanes: int = 16
    """Connections, each with one request at a time."""
    rate: float | None = None
    """Requests a second, evenly, refused ones included; None: as fast as they are answered."""
    again: bool = True
    """Whether the refused ones are sent until they are taken, or are left where they are at the end."""
    prepared: bool = False
    """Whether all of `requests` are made before the clock starts."""
    remember: bool = False
    """Whether to tell which requests were taken."""


class Odd(Exception):
    """A server answered what none should, or left, or refused for too long."""


class Lane:
    """A connection with one request under way."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[tuple[bytes, bytes]] | None = None
        self._connection = Connection(self._answered, self._lost)

    async def connect(self, port: int) -> None:
        """Connect and be answered once: what the system has connected may wait long for the server to take it up."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._connection, "127.0.0.1", port)
        await self.ask(HELLO)

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Head and body of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._connection.send(request, (0.0, 0))
        return await self._answer

    def close(self) -> None:
        self._connection.close()

    def _answered(self, connection: Connection, sent: Sent, head: bytes, body: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((head, body))

    def _lost(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Odd(why))


class Generator:
    """Makes and sends requests; what it has sent it does not make again."""

    def __init__(self, order: Fresh) -> None:
        self._bodies = Bodies(Pass.read(Path(order.made)), order.seed)
        self._port = order.port
        self._head = (
            f"POST /v1/ingest HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\nx-api-key: {order.key}\r\n"
            "Content-Type: application/x-ndjson\r\nContent-Encoding: gzip\r\nContent-Length: "
        ).encode()
        self._made = 0
        self._ready: deque[Request] = deque()
        """Made, and not under way."""
        self._stretch = Stretch()
        self._last = 0
        """The number before which new ones end in this stretch."""
        self._until = 0.0
        self._due: asyncio.Queue[float | None] = asyncio.Queue()
        self._outcome = Outcome()

    def prepare(self, requests: int) -> None:
        """Make the next so many."""
        self._ready.extend([self._make() for _ in range(requests)])

    async def run(self, stretch: Stretch) -> Outcome:
        """Send a stretch; returns when all of it is answered. Raises a group of `Odd`."""
        self._stretch = stretch
        self._outcome = outcome = Outcome()
        self._due = asyncio.Queue()
        self._last = self._made + (0 if stretch.prepared else stretch.requests)
        lanes = [Lane() for _ in range(stretch.lanes)]
        for lane in lanes:
            await lane.connect(self._port)
        await asyncio.sleep(max(0.0, stretch.at - now()))
        before = cpu_seconds()
        outcome.began = now()
        self._until = outcome.began + stretch.seconds
        try:
            async with asyncio.TaskGroup() as group:
                if stretch.rate is not None:
                    group.create_task(self._pace(stretch.rate))
                for lane in lanes:
                    group.create_task(self._keep_busy(lane))
        finally:
            for lane in lanes:
                lane.close()
        outcome.cpu = cpu_seconds() - before
        if not stretch.again:
            self._ready.clear()
        return outcome

    async def _pace(self, rate: float) -> None:
        """Say when requests are due; one for which no lane is free is late, and its latency says so."""
        number = 0
        while now() < self._until and self._has_more():
            while (due := self._outcome.began + number / rate) <= now():
                self._due.put_nowait(due)
                number += 1
            await asyncio.sleep(TICK)
        self._due.put_nowait(None)

    def _has_more(self) -> bool:
        return bool(self._ready) or self._made < self._last

    async def _keep_busy(self, lane: Lane) -> None:
        while (due := await self._turn()) is not None:
            if not self._has_more():
                continue
            request = self._ready.popleft() if self._ready else self._make()
            self._outcome.last_sent = now()
            if self._stretch.rate is not None:
                self._outcome.late.append(self._outcome.last_sent - due)
            head, body = await lane.ask(request[1])
            retry = self._note(request, due, head, body)
            if retry is not None and (self._stretch.rate is None or now() >= self._until):
                await asyncio.sleep(retry)

    async def _turn(self) -> float | None:
        """When the next request of a lane is due; None: there is none any more."""
        if self._stretch.rate is None:
            if now() < self._until and self._has_more():
                return now()
        else:
            due = await self._due.get()
            if due is not None and now() < self._until:
                return due
            self._due.put_nowait(None)  # for the next lane
        if not self._stretch.again or not self._ready:
            return None
        if now() > self._until + PATIENCE:
            raise Odd(f"requests are refused {PATIENCE:.0f} s after the end")
        return now()

    def _note(self, request: Request, due: float, head: bytes, body: bytes) -> float | None:
        """Count an answer; of one that refuses for now, the seconds to wait."""
        outcome = self._outcome
        outcome.ended = now()
        outcome.requests += 1
        count = ACCEPTED_COUNT(body)
        if head.startswith(ACCEPTED) and count and int(count[1]) == BATCH:
            outcome.accepted += BATCH
            outcome.latencies.append(outcome.ended - due)
            if self._stretch.remember:
                outcome.taken.append(request[0])
            return None
        retry = RETRY(head)
        if not head.startswith(BUSY) or retry is None:
            raise Odd(f"a request was answered {head[:40]!r} {body[:300]!r}")
        outcome.refused += 1
        outcome.busy += 1
        outcome.refusals.append(outcome.ended - due)
        self._ready.append(request)
        return float(retry[1])

    def _make(self) -> Request:
        number = self._made
        self._made += 1
        body = self._bodies.body(number)
        return number, b"%b%d\r\n\r\n%b" % (self._head, len(body), body)


def main() -> None:
    """The program: the order as its argument, a ready line, then stretch after stretch."""
    generator = Generator(msgspec.json.decode(sys.argv[1], type=Fresh))
    gc.freeze()
    gc.disable()
    say(b'{"event":"ready"}')
    for line in sys.stdin:
        stretch = msgspec.json.decode(line, type=Stretch)
        if stretch.prepared:
            generator.prepare(stretch.requests)
            say(b'{"event":"prepared"}')
            sys.stdin.readline()
        try:
            outcome = uvloop.run(generator.run(stretch))
        except ExceptionGroup as group:
            sys.exit("; ".join(dict.fromkeys(map(str, group.exceptions))))
        say(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()
