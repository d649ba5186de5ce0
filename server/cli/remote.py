"""Helpers of commands that talk to a running server: its address, the key, requests, and server-sent events."""

import asyncio
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final, NamedTuple, TypeVar, cast, get_args
from urllib.parse import unquote_to_bytes, urlencode, urlsplit

import click
import msgspec
from msgspec import Raw, Struct

from server.cli.grouped_help import GroupedOption
from server.cli.settings_flags import SEEN_BY_ALL
from server.errors import Reason, Refused

F = TypeVar("F", bound=Callable[..., Any])

MAX_EVENT: Final = 64 << 20
"""Most bytes of one event."""
PATIENCE: Final = 30.0
"""Seconds that a server may be silent while it answers."""
CONNECT_PATIENCE: Final = 5.0
"""Seconds within which it has to take the connection."""
SERVER: Final = "Server"
"""The heading of the options with the server and the key."""


def local_url() -> str:
    """Return the address of a server with the settings of this environment."""
    return f"http://{os.environ.get('SPENDSTREAM_HTTP_BIND', '127.0.0.1:8080')}"


def key_option(*, required: bool = True) -> Callable[[F], F]:
    """Add `--key`, whose help prefers the variable: all users of the machine can see command lines."""
    return click.option(
        "--key",
        cls=GroupedOption,
        group=SERVER,
        envvar=["SPENDSTREAM_KEY", "SPENDSTREAM_BOOTSTRAP_KEY"],
        show_envvar=True,
        required=required,
        metavar="lqt_...",
        help=f"API key. {SEEN_BY_ALL}",
    )


def url_option(name: str, text: str, *, default: Callable[[], str] | None = local_url) -> Callable[[F], F]:
    """Add the option of the server's address; by default that of a server with the same settings, for HTTP."""
    return click.option(
        name,
        "url",
        cls=GroupedOption,
        group=SERVER,
        envvar="SPENDSTREAM_URL",
        show_envvar=True,
        default=default,
        metavar="URL",
        help=text,
    )


# --- questions -------------------------------------------------------------------------------------------------------


class Question(NamedTuple):
    """A request of the HTTP API."""

    path: str
    params: Mapping[str, str] | Sequence[tuple[str, str]] = {}
    """By name, or as pairs where a name may be repeated."""
    method: str = "GET"
    body: bytes | None = None


class Unanswered(Exception):
    """The server cannot be reached, or is not a spendstream server; the text says which, and why."""


async def ask(url: str, key: str, question: Question) -> bytes:
    """Return the JSON of a server's answer. Raises `Unanswered`, and `Refused` with the server's reason."""
    try:
        status, body = await asyncio.to_thread(_exchange, url, key, question)
    except (HTTPException, OSError, ValueError) as error:
        raise Unanswered(f"no answer from {url}: {str(error) or type(error).__name__}") from None
    if status // 100 == 2:
        return body
    raise refusal(url, status, body)


def _exchange(url: str, key: str, question: Question) -> tuple[int, bytes]:
    """Send one request; return the answer's status and body. Blocks.

    By the standard library: loading aiohttp is a third of the start of a command that asks only this.
    """
    scheme, place, path, *_ = urlsplit(url.rstrip("/"))
    user, _, address = place.rpartition("@")
    if scheme not in ("http", "https") or not address:
        raise ValueError("not an address like http://127.0.0.1:8080")
    headers = {"x-api-key": key, "Content-Type": "application/json"}
    if user:  # of a proxy before the server
        headers["Authorization"] = f"Basic {b64encode(unquote_to_bytes(user)).decode()}"
    target = f"{path}{question.path}?{urlencode(question.params)}".removesuffix("?")
    with closing((HTTPSConnection if scheme == "https" else HTTPConnection)(address, timeout=CONNECT_PATIENCE)) as made:
        made.connect()
        made.sock.settimeout(PATIENCE)
        made.request(question.method, target, question.body, headers)
        with made.getresponse() as response:
            return response.status, response.read()


async def read_lines(url: str, key: str, question: Question, take: Callable[[bytes], None]) -> None:
    """Call `take` with each line of an answer as it arrives, however long that takes. Raises as `ask` does, also for an
    answer that breaks off."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=PATIENCE)
    address = f"{url.rstrip('/')}{question.path}"
    rest = b""
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers={"x-api-key": key}) as session,
            session.get(address, params=question.params) as response,
        ):
            if response.status != 200:
                raise refusal(url, response.status, await response.read())
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    take(line)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Unanswered(f"no whole answer from {url}: {str(error) or type(error).__name__}") from None


class _ErrorBody(Struct):
    error: str
    reason: str = ""


_ADVICE: Final[dict[str, str]] = {
    "unauthenticated": "give a valid key as SPENDSTREAM_KEY; `spendstream keys create` makes one",
    "forbidden": "use a key of that project with that scope; `spendstream keys list` shows all",
}


def refusal(url: str, status: int, body: bytes) -> Refused:
    """Return an error answer, with what to do next. Raises `Unanswered` if it is not of a spendstream server."""
    try:
        said = msgspec.json.decode(body, type=_ErrorBody)
    except msgspec.MsgspecError:
        text = body[:200].decode(errors="replace")
        raise Unanswered(f"{url} answers {status}, not as a spendstream server does: {text}") from None
    reason = said.reason if said.reason in get_args(Reason) else "bad_request"
    advice = f"; {_ADVICE[reason]}" if reason in _ADVICE else ""
    return Refused(cast(Reason, reason), f"{url} answers {status} {reason}: {said.error}{advice}")


def grpc_refusal(url: str, code: str, details: str | None) -> str:
    """Return the text of a gRPC status, with what to do next."""
    advice = _ADVICE.get({"UNAUTHENTICATED": "unauthenticated", "PERMISSION_DENIED": "forbidden"}.get(code, ""))
    return f"{url} answers {code}: {details}{'' if advice is None else f'; {advice}'}"


# --- server-sent events ----------------------------------------------------------------------------------------------


class ServerSent(NamedTuple):
    """One server-sent event; `id` is the last one that was set."""

    kind: str
    id: str
    data: bytes


class StreamMessage(Struct):
    """The data of an event."""

    users: list[Raw] = []
    as_of: str = msgspec.field(default="", name="asOf")
    error: str | None = None
    budget: Raw | None = None
    """The whole data of the event, if it is one of a budget."""


class Parser:
    """Sans-I/O: parses server-sent events from chunks of bytes (WHATWG HTML, section 9.2.6). Raises `ValueError` for an
    event of more than `MAX_EVENT` bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._kind = ""
        self._id = ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[ServerSent]:
        """Return the events that this chunk completes."""
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
    """Yield the events of a body."""
    parser = Parser()
    async for chunk in chunks:
        for event in parser.feed(chunk):
            yield event
