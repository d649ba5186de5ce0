"""What commands share that talk to a running server: its address, the key, and reading server-sent events."""

import os
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NamedTuple, TypeVar

import click
import msgspec
from msgspec import Raw, Struct

F = TypeVar("F", bound=Callable[..., Any])

MAX_EVENT: Final = 64 << 20
"""Bytes of one event at most."""


def _http() -> str:
    return f"http://{os.environ.get('SPENDSTREAM_HTTP_BIND', '127.0.0.1:8080')}"


def key_option(command: F) -> F:
    """`--key`, or the variable: a key on the command line is seen by everybody on the machine."""
    return click.option(
        "--key",
        envvar=["SPENDSTREAM_KEY", "SPENDSTREAM_BOOTSTRAP_KEY"],
        required=True,
        metavar="lqt_...",
        help="API key; better given as the variable SPENDSTREAM_KEY  [required]",
    )(command)


def url_option(name: str, text: str) -> Callable[[F], F]:
    """The server's address; without it, where a server with the same settings listens for HTTP."""
    return click.option(name, "url", envvar="SPENDSTREAM_URL", default=_http, metavar="URL", help=text)


class ServerSent(NamedTuple):
    """One server-sent event; `id` is the last one that was set."""

    kind: str
    id: str
    data: bytes


class Message(Struct):
    """The data of an event."""

    users: list[Raw] = []
    as_of: str = msgspec.field(default="", name="asOf")
    error: str | None = None
    budget: Raw | None = None
    """All of the event, if it is one of a budget."""


class Parser:
    """Sans-I/O: server-sent events out of bytes as they come (WHATWG HTML, section 9.2.6). Raises `ValueError` for an
    event of more than `MAX_EVENT` bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._kind = ""
        self._id = ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[ServerSent]:
        """The events that this chunk completes."""
        searched = len(self._buffer)
        self._buffer += chunk
        if len(self._buffer) > MAX_EVENT:
            raise ValueError("an event without an end")
        found = []
        start = 0
        while (end := self._buffer.find(b"\n", max(start, searched))) >= 0:
            event = self._line(bytes(self._buffer[start:end]).removesuffix(b"\r"))
            if event is not None:
                found.append(event)
            start = end + 1
        del self._buffer[:start]
        return found

    def _line(self, line: bytes) -> ServerSent | None:
        if not line:
            event = ServerSent(self._kind or "message", self._id, b"\n".join(self._data)) if self._data else None
            self._kind, self._data = "", []
            return event
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._kind = value.decode()
        elif name == b"data":
            self._data.append(value)
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode()
        return None


async def events_of(chunks: AsyncIterator[bytes]) -> AsyncIterator[ServerSent]:
    """The events of a body."""
    parser = Parser()
    async for chunk in chunks:
        for event in parser.feed(chunk):
            yield event
