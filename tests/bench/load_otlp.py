"""Load of spans over HTTP: ready-made requests on raw sockets, all of the same number of spans."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from tests.bench.load_http import OK, Connection, Sent
from tests.bench.loading import Order, Outcome, main, now


class Load:
    """All requests of an order, as fast as they are answered; `accepted` counts requests."""

    def __init__(self, order: Order, bodies: list[bytes]) -> None:
        self._order = order
        encoding = f"Content-Encoding: {order.encoding}\r\n" if order.encoding != "identity" else ""
        head = (
            f"POST /v1/traces HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\nx-api-key: {order.key}\r\n"
            f"Content-Type: application/x-protobuf\r\n{encoding}Content-Length: "
        ).encode()
        self._requests = [b"%b%d\r\n\r\n%b" % (head, len(body), body) for body in bodies]
        self._next = 0
        self._outcome = Outcome()
        self._failed = ""
        self._over = asyncio.Event()

    async def run(self) -> Outcome:
        """Send everything; returns when all is answered, or a connection was lost."""
        loop = asyncio.get_running_loop()
        make = partial(Connection, self._acknowledged, self._fail)
        lanes = [
            (await loop.create_connection(make, "127.0.0.1", self._order.port))[1] for _ in range(self._order.lanes)
        ]
        self._outcome.began = now()
        for lane in lanes * self._order.depth:
            self._send(lane)
        await self._over.wait()
        if self._failed:
            raise SystemExit(self._failed)
        for lane in lanes:
            lane.close()
        return self._outcome

    def _send(self, lane: Connection) -> None:
        if self._next < len(self._requests):
            self._next += 1
            lane.send(self._requests[self._next - 1], (now(), self._next - 1))

    def _acknowledged(self, lane: Connection, sent: Sent, head: bytes, body: bytes) -> None:
        outcome = self._outcome
        outcome.requests += 1
        outcome.latencies.append(now() - sent[0])
        if head.startswith(OK):
            outcome.accepted += 1
        else:
            outcome.refused += 1
        if outcome.requests == len(self._requests):
            outcome.ended = now()
            self._over.set()
        else:
            self._send(lane)

    def _fail(self, why: str) -> None:
        self._failed = why
        self._over.set()


def load(order: Order, bodies: list[bytes]) -> Callable[[], Awaitable[Outcome]]:
    """Make the requests; what is returned sends them."""
    return Load(order, bodies).run


if __name__ == "__main__":
    main(load)
