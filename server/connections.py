"""What keeps many, slow and idle connections of the HTTP door from being a burden."""

import asyncio
import logging
import resource
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp import web

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

_BUSY: Final = b'{"error":"Too many connections; try again"}'
_ANSWER: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BUSY), _BUSY)
)


class Runner(web.AppRunner):
    """Runs an application; beyond `connections` at once, a new one gets a 503 and its end."""

    __slots__ = ("_limit",)

    def __init__(
        self,
        app: web.Application,
        logger: logging.Logger,
        *,
        connections: int = MAX_CONNECTIONS,
        keepalive: float = KEEPALIVE,
    ) -> None:
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,  # bodies come as they were sent, for we inflate them ourselves, with a bound
            shutdown_timeout=SHUTDOWN_TIMEOUT,
            logger=logger,
            keepalive_timeout=keepalive,
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            max_headers=MAX_HEADERS,
        )
        self._limit = connections

    @property
    def server(self) -> Any:
        """The factory of a connection's protocol, as a site wants it."""
        server = super().server
        return None if server is None else self._bounded(server)

    def _bounded(self, server: web.Server) -> Callable[[], asyncio.Protocol]:
        def make() -> asyncio.Protocol:
            return server() if len(server.connections) < self._limit else _Refusal()

        return make


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
