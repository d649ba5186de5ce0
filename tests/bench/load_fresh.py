"""Load over HTTP that does not end: requests with fresh ids (`passes.py`), made as they are sent, a stretch at a time.

Each line on standard input is a `Stretch`, answered with its `Outcome`; one that is to be prepared is answered with a
ready line first, and starts at the line after. A refused request (503) is kept and sent again unchanged before new ones
are made, as a good client does; it counts each time.
"""

import asyncio
import gc
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from msgspec import Struct

from tests.bench.load_http import ACCEPTED, ACCEPTED_COUNT, BUSY, RETRY, Connection, Sent
from tests.bench.loading import Outcome, cpu_seconds, now, say
from tests.bench.passes import Bodies, Pass
from tests.support.traffic import BATCH

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
    """A connection with one request under way; `answered` is told head and body of each answer."""

    def __init__(self, answered: Callable[["Lane", bytes, bytes], None], lost: Callable[[str], None]) -> None:
        self.request: Request = (0, b"")
        self.due = 0.0
        self._answered = answered
        self._greeted = asyncio.Event()
        self._connection = Connection(self._heard, lost)

    async def connect(self, port: int) -> None:
        """Connect and be answered once: what the system has connected may wait long for the server to take it up."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._connection, "127.0.0.1", port)
        self._connection.send(HELLO, (0.0, 0))
        try:
            await asyncio.wait_for(self._greeted.wait(), PATIENCE)
        except TimeoutError:
            raise Odd("a new connection is not answered") from None

    def send(self, request: Request, due: float) -> None:
        self.request, self.due = request, due
        self._connection.send(request[1], (due, request[0]))

    def close(self) -> None:
        self._connection.close()

    def _heard(self, connection: Connection, sent: Sent, head: bytes, body: bytes) -> None:
        if self._greeted.is_set():
            self._answered(self, head, body)
        else:
            self._greeted.set()


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
        self._free: deque[Lane] = deque()
        """At a rate: lanes without a request."""
        self._overdue: deque[float] = deque()
        """Moments at which a request was due and no lane was free."""
        self._paces = False
        """Whether requests become due at a rate."""
        self._at_work = 0
        """Lanes that have not come to their end yet."""
        self._outcome = Outcome()
        self._over: asyncio.Future[None]

    def prepare(self, requests: int) -> None:
        """Make the next so many."""
        self._ready.extend([self._make() for _ in range(requests)])

    async def run(self, stretch: Stretch) -> Outcome:
        """Send a stretch; returns when all of it is answered. Raises `Odd`."""
        self._stretch = stretch
        self._outcome = outcome = Outcome()
        self._over = asyncio.get_running_loop().create_future()
        self._last = self._made + (0 if stretch.prepared else stretch.requests)
        lanes = [Lane(self._answered, self._fail) for _ in range(stretch.lanes)]
        for lane in lanes:
            await lane.connect(self._port)
        await asyncio.sleep(max(0.0, stretch.at - now()))
        before = cpu_seconds()
        outcome.began = now()
        self._until = outcome.began + stretch.seconds
        self._at_work = len(lanes)
        self._free.clear()
        self._overdue.clear()
        self._paces = stretch.rate is not None
        try:
            if stretch.rate is not None:
                self._free.extend(lanes)
                await self._pace(stretch.rate)
            else:
                for lane in lanes:
                    self._go_on(lane)
            await self._over
        finally:
            for lane in lanes:
                lane.close()
        outcome.cpu = cpu_seconds() - before
        if not stretch.again:
            self._ready.clear()
        return outcome

    async def _pace(self, rate: float) -> None:
        """Send what is due; a request for which no lane is free is late, and its latency says so."""
        number = 0
        while now() < self._until and self._has_more() and not self._over.done():
            while (due := self._outcome.began + number / rate) <= now() and self._has_more():
                number += 1
                if self._free:
                    self._send(self._free.popleft(), due)
                else:
                    self._overdue.append(due)
            await asyncio.sleep(TICK)
        self._paces = False
        for lane in self._free:
            self._go_on(lane)

    def _has_more(self) -> bool:
        return bool(self._ready) or self._made < self._last

    def _go_on(self, lane: Lane) -> None:
        """What a lane does that has nothing under way."""
        if self._paces:
            if self._overdue and self._has_more() and now() < self._until:
                self._send(lane, self._overdue.popleft())
            else:
                self._free.append(lane)
        elif self._stretch.rate is None and self._has_more() and now() < self._until:
            self._send(lane, now())
        elif self._stretch.again and self._ready:
            if now() > self._until + PATIENCE:
                self._fail(f"requests are refused {PATIENCE:.0f} s after the end")
            self._send(lane, now())
        else:
            self._at_work -= 1
            if not self._at_work and not self._over.done():
                self._over.set_result(None)

    def _send(self, lane: Lane, due: float) -> None:
        request = self._ready.popleft() if self._ready else self._make()
        self._outcome.last_sent = now()
        if self._stretch.rate is not None:
            self._outcome.late.append(self._outcome.last_sent - due)
        lane.send(request, due)

    def _answered(self, lane: Lane, head: bytes, body: bytes) -> None:
        """Count an answer; one that refuses for now has its lane wait, unless others are due by the clock."""
        outcome = self._outcome
        outcome.ended = now()
        outcome.requests += 1
        count = ACCEPTED_COUNT(body)
        if head.startswith(ACCEPTED) and count and int(count[1]) == BATCH:
            outcome.accepted += BATCH
            outcome.latencies.append(outcome.ended - lane.due)
            if self._stretch.remember:
                outcome.taken.append(lane.request[0])
            self._go_on(lane)
            return
        retry = RETRY(head)
        if not head.startswith(BUSY) or retry is None:
            self._fail(f"a request was answered {head[:40]!r} {body[:300]!r}")
            return
        outcome.refused += 1
        outcome.busy += 1
        outcome.refusals.append(outcome.ended - lane.due)
        self._ready.append(lane.request)
        if self._paces:
            self._go_on(lane)
        else:
            asyncio.get_running_loop().call_later(float(retry[1]), self._go_on, lane)

    def _fail(self, why: str) -> None:
        if not self._over.done():
            self._over.set_exception(Odd(why))

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
        except Odd as odd:
            sys.exit(str(odd))
        say(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()
