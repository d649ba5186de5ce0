"""What keeps many, slow and idle connections of the HTTP door from being a burden."""

import asyncio
import logging
import resource
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp import web

from server import gate
from server.errors import Refused
from server.gate import Gate
from server.status import http_response

KEEPALIVE: Final = 75.0
"""Seconds in which a connection has to bring the head of its first or next request, however it trickles in."""
MAX_CONNECTIONS: Final = 8192
SPARE_FILES: Final = 256
"""Open files that are kept for everything but connections."""
MAX_LINE: Final = 8190
MAX_FIELD: Final = 8190
MAX_HEADERS: Final = 64
"""Bytes of the request line and of one header, and how many of those; beyond them the answer is 400."""
SHUTDOWN_TIMEOUT: Final = 3.0
"""Seconds that requests get to end when the server stops."""

_ANSWER: Final = http_response(Refused("unavailable", "Too many connections; try again", retry_after=1), close=True)


class Runner(web.AppRunner):
    """Runs an application; beyond `connections` at once, a new one gets a 503 and its end."""

    __slots__ = ("_bounds", "_gate", "_limit")

    def __init__(
        self,
        app: web.Application,
        logger: logging.Logger,
        gate: Gate,
        *,
        connections: int = MAX_CONNECTIONS,
        keepalive: float = KEEPALIVE,
    ) -> None:
        self._bounds: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,  # bodies come as they were sent, for we inflate them ourselves, with a bound
            "logger": logger,
            "keepalive_timeout": keepalive,
            "max_line_size": MAX_LINE,
            "max_field_size": MAX_FIELD,
            "max_headers": MAX_HEADERS,
        }
        super().__init__(app, shutdown_timeout=SHUTDOWN_TIMEOUT, **self._bounds)
        self._gate = gate
        self._limit = connections

    @property
    def server(self) -> Any:
        """The factory of a connection's protocol, as a site wants it."""
        server = super().server
        return None if server is None else self._bounded(server)

    def _bounded(self, server: web.Server) -> Callable[[], asyncio.Protocol]:
        loop = asyncio.get_running_loop()

        def make() -> asyncio.Protocol:
            if len(server.connections) >= self._limit:
                return _Refusal()
            return Connection(self._gate, server, loop=loop, **self._bounds)

        return make


class Connection(web.RequestHandler):
    """A connection that holds the first bytes of a batch back until the gate lets it in.

    Only where a request can begin: nothing is under way, all before it was answered, and no part of a head is with the
    parser. So no answer of the gate can be taken for one to another request.
    """

    __slots__ = ("_gate", "_has_part", "held", "is_refused")

    def __init__(self, gate: Gate, server: web.Server, **bounds: Any) -> None:
        super().__init__(server, **bounds)
        self.held: bytes | None = None
        """What has arrived of a batch that waits."""
        self.is_refused = False
        """Whether what is under way is refused: the request that was held, and any that came behind it."""
        self._gate = gate
        self._has_part = False
        """Whether the parser has the beginning of a head."""

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        if self.held is not None:
            self._pause_transport_reading()  # this is enough; read on only so as to see when the client leaves
            self._gate.hold(len(data))
            self.held += data
        elif not self._is_idle():
            super().data_received(data)
        elif self._has_part or not data.startswith(gate.START) or self._gate.lets_in():
            self._begin(data)
        else:
            self._next_keepalive_close_time = self._loop.time() + self.keepalive_timeout  # to aiohttp it is idle
            self._gate.hold(len(data))
            self.held = data
            self._gate.wait(self)

    def let_in(self) -> None:
        """Go on with the request that was held."""
        self._begin(self._take())

    def refuse(self) -> None:
        """Answer the request that was held."""
        data = self._take()
        refused = self._gate.on_refused
        if refused is None or self.transport is None or self.writing_paused or not gate.is_whole(data):
            self._begin(data, is_refused=True)
            return
        refused(gate.full())
        self.transport.write(gate.ANSWER)

    def close(self) -> None:
        """The server stops: who is held is told so first."""
        if self.held is not None:
            self.refuse()
        super().close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone, or was sent away."""
        if self.held is not None:
            self._take()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        waiter = self._waiter
        if waiter is None:
            return self._request_count == 0  # it has not even started
        return not waiter.done()

    def _take(self) -> bytes:
        data, self.held = self.held or b"", None
        self._gate.hold(-len(data))
        self._resume_transport_reading()
        return data

    def _begin(self, data: bytes, *, is_refused: bool = False) -> None:
        self.is_refused = is_refused
        super().data_received(data)
        self._has_part = self._is_idle()


class _Refusal(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writer = cast(asyncio.Transport, transport)
        writer.write(_ANSWER)
        writer.close()


def room_for_files() -> int:
    """Raise this process's limit of open files as far as it may go; returns how many connections that leaves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(min(MAX_CONNECTIONS, soft - SPARE_FILES), 16)
