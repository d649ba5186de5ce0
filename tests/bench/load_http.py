"""Load over HTTP: ready-made requests on raw sockets, and of the answers no more than status, length and position."""

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, cast

from tests.bench.loading import Order, Outcome, main, now

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE).search
_POSITION = re.compile(rb"\r\nx-ingest-position: *(\S+)", re.IGNORECASE).search
RETRY: Final = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE).search
ACCEPTED_COUNT: Final = re.compile(rb'"accepted": ?(\d+)').search
ACCEPTED: Final = b"HTTP/1.1 202"
OK: Final = b"HTTP/1.1 200"
BUSY: Final = b"HTTP/1.1 503"

Sent = tuple[float, int]
"""When a request was due, and its number."""

Answered = Callable[["Connection", Sent, bytes, bytes], None]
"""connection, the request, head and body of the answer."""


class Connection(asyncio.Protocol):
    """One connection: answers come in the order of the requests."""

    def __init__(self, answered: Answered, lost: Callable[[str], None]) -> None:
        self._answered = answered
        self._lost = lost
        self._buffer = b""
        self._due: deque[Sent] = deque()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._due:
            self._lost(f"connection lost with {len(self._due)} requests unanswered ({error})")

    def send(self, request: bytes, sent: Sent) -> None:
        assert self._transport is not None
        self._due.append(sent)
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[:end]
            length = _LENGTH(head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(buffer) < whole:
                break
            body = buffer[end + 4 : whole]
            buffer = buffer[whole:]
            self._answered(self, self._due.popleft(), head, body)
        self._buffer = buffer


class Load:
    """All requests of an order, over its connections."""

    def __init__(self, order: Order, bodies: list[bytes]) -> None:
        self._order = order
        head = (
            f"POST /v1/ingest HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\nx-api-key: {order.key}\r\n"
            f"Content-Type: application/x-ndjson\r\nContent-Encoding: {order.encoding}\r\nContent-Length: "
        ).encode()
        self._requests = [b"%b%d\r\n\r\n%b" % (head, len(body), body) for body in bodies]
        self._get = (
            f"GET /v1/users?limit=1&after=%b HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\nx-api-key: {order.key}\r\n\r\n"
        ).encode()
        self._next = 0
        self._free: deque[Connection] = deque()
        self._overdue: deque[float] = deque()
        self._watchers: deque[Connection] = deque()
        self._outcome = Outcome()
        self._failed: str | None = None
        self._over = asyncio.Event()
        self._last_head = b""

    async def run(self) -> Outcome:
        """Send everything; returns when all is answered."""
        loop = asyncio.get_running_loop()

        async def connect(answered: Answered) -> Connection:
            make = lambda: Connection(answered, self._fail)  # noqa: E731
            return (await loop.create_connection(make, "127.0.0.1", self._order.port))[1]

        lanes = [await connect(self._acknowledged) for _ in range(self._order.lanes)]
        self._watchers.extend([await connect(self._seen) for _ in range(self._order.watchers)])
        watchers = list(self._watchers)
        self._outcome.began = now()
        if self._order.rate is None:
            for _ in range(self._order.depth):
                for lane in lanes:
                    self._send(lane, now())
        else:
            self._free.extend(lanes * self._order.depth)
            await self._pace(self._order.rate)
        await self._over.wait()
        for connection in (*lanes, *watchers):
            connection.close()
        if self._failed is not None:
            raise SystemExit(self._failed)
        position = _POSITION(self._last_head)
        self._outcome.position = position[1].decode() if position else ""
        return self._outcome

    async def _pace(self, rate: float) -> None:
        """Requests at even distances; one for which no connection is free is late, and its latency says so."""
        began = self._outcome.began
        for number in range(len(self._requests)):
            wait = began + number / rate - now()
            if wait > 0:
                await asyncio.sleep(wait)
            if self._failed is not None:
                return
            if self._free:
                self._send(self._free.popleft(), now())
            else:
                self._overdue.append(now())

    def _send(self, lane: Connection, due: float) -> None:
        if self._next < len(self._requests):
            self._next += 1
            lane.send(self._requests[self._next - 1], (due, self._next - 1))

    def _acknowledged(self, lane: Connection, sent: Sent, head: bytes, body: bytes) -> None:
        at = now()
        due, number = sent
        outcome = self._outcome
        outcome.requests += 1
        outcome.latencies.append(at - due)
        count = ACCEPTED_COUNT(body)
        if head.startswith(ACCEPTED) and count:
            outcome.accepted += int(count[1])
            self._last_head = head
            if self._order.remember:
                outcome.taken.append(number)
            if self._watchers:
                position = _POSITION(head)
                assert position is not None
                self._watchers.popleft().send(self._get % position[1], (at, number))
        else:
            outcome.refused += 1
            outcome.busy += head.startswith(BUSY) and RETRY(head) is not None
        if outcome.requests == len(self._requests):
            outcome.ended = at
            self._over.set()
        elif self._order.rate is None:
            self._send(lane, at)
        elif self._overdue:
            self._send(lane, self._overdue.popleft())
        else:
            self._free.append(lane)

    def _seen(self, watcher: Connection, sent: Sent, head: bytes, body: bytes) -> None:
        if not head.startswith(OK):
            self._fail(f"a read after an acknowledgement was answered {head[:40]!r} {body[:200]!r}")
        self._outcome.visible.append(now() - sent[0])
        self._watchers.append(watcher)

    def _fail(self, why: str) -> None:
        self._failed = why
        self._over.set()


def load(order: Order, bodies: list[bytes]) -> Callable[[], Awaitable[Outcome]]:
    """Make the requests; what is returned sends them."""
    made = Load(order, bodies)
    return made.run


if __name__ == "__main__":
    main(load)
