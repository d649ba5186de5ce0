"""The connections of the HTTP API: their number, their timeouts, and how they pass batches through the gate."""

import asyncio
import logging
import re
import resource
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from aiohttp import EMPTY_PAYLOAD, StreamReader, web
from aiohttp.http_exceptions import BadHttpMessage, BadHttpMethod, InvalidHeader, InvalidURLError, LineTooLong
from aiohttp.web_protocol import RequestPayloadError

from server.errors import Refused
from server.http_api import gate
from server.http_api.fast_path import Arrival, FastPath, KnownHead
from server.http_api.gate import MAX_HEAD, Gate
from server.http_api.responses import protocol_error
from server.limits.admission import Admission, network_of, peer_of
from server.limits.connection_watch import MAX_GRPC
from server.status import TABLE, UNKNOWN_EXPECTATION, http_response

PATIENCE: Final = 1.0
"""Seconds in which the body of a usual batch arrives."""
KEEPALIVE: Final = 75.0
"""Seconds that a connection has to send the whole head of its first or next request."""
MAX_HTTP: Final = 8192
"""Most HTTP connections at once, if the process may open as many files."""
PROBE_CONNECTIONS: Final = 256
"""HTTP connections beyond those, on which only probes are answered."""
OWN_FILES: Final = 256
"""Open files of the process besides its connections."""
BACKLOG: Final = 1024
"""Connections that may wait to be accepted. All of them may be accepted within one turn of the event loop, so that many
are open for a moment although they are refused."""
MAX_HEADERS: Final = 128
"""Most headers of a request; `gate.MAX_HEAD` bounds its head in bytes. Beyond either the answer is 400."""
SHUTDOWN_TIMEOUT: Final = 3.0
"""Seconds that requests have to end when the server stops."""


def too_many_connections() -> Refused:
    """Return the refusal of requests on a connection beyond the bounds."""
    return Refused("unavailable", "Too many connections; try again", retry_after=1)


class FileBudget(NamedTuple):
    """How the process's open files are divided."""

    http: int
    """Connections of the HTTP API."""
    handshakes: int
    """Connections that have not finished their TLS handshake; 0 without TLS."""
    grpc: int
    """Connections of the gRPC API."""
    backlog: int
    """Connections that may wait to be accepted by the HTTP API, all of which may be open while they are refused."""

    @property
    def files(self) -> int:
        """Files that are open when every bound is reached, without connections that are refused."""
        return OWN_FILES + PROBE_CONNECTIONS + self.http + self.handshakes + self.grpc


def budget_of(files: int | None, *, tls: bool = False) -> FileBudget:
    """Divide a limit of open files (None: no limit): two thirds of the connections are for HTTP, one third for gRPC.

    With 1,024 `files` or more, all of it, PROBE_CONNECTIONS and OWN_FILES are within the limit.
    """
    backlog = BACKLOG if files is None else max(min(BACKLOG, files // 8), 16)
    if files is None:
        http, grpc = MAX_HTTP, MAX_GRPC
    else:
        connections = files - OWN_FILES - PROBE_CONNECTIONS - backlog
        http, grpc = max(min(MAX_HTTP, connections * 2 // 3), 16), max(min(MAX_GRPC, connections // 3), 8)
    handshakes = http // 4 if tls else 0
    return FileBudget(http - handshakes, handshakes, grpc, backlog)


def budget_of_process(*, tls: bool) -> FileBudget:
    """Raise this process's limit of open files as far as allowed and useful, and divide it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_HTTP + PROBE_CONNECTIONS + MAX_GRPC + BACKLOG + OWN_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return budget_of(None if soft == resource.RLIM_INFINITY else soft, tls=tls)


class Runner(web.AppRunner):
    """Runs an application with at most `connections` at once, and PROBE_CONNECTIONS more for probes.

    `admission` decides on them; connections are closed after `keepalive` seconds without a request.
    """

    __slots__ = ("_bounds", "_fast_path", "_gate", "admission", "on_accepted")

    def __init__(
        self,
        app: web.Application,
        logger: logging.Logger,
        gate: Gate,
        fast_path: FastPath | None = None,
        *,
        connections: int = MAX_HTTP,
        keepalive: float = KEEPALIVE,
    ) -> None:
        self._bounds: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,  # bodies stay as sent: they are inflated here, with a bound
            "logger": logger,
            "keepalive_timeout": keepalive,
            "max_line_size": MAX_HEAD,
            "max_field_size": MAX_HEAD,
            "max_headers": MAX_HEADERS,
        }
        super().__init__(app, shutdown_timeout=SHUTDOWN_TIMEOUT, **self._bounds)
        self._gate = gate
        self._fast_path = fast_path
        self.admission: Admission[Connection] = Admission(connections, PROBE_CONNECTIONS)
        self.on_accepted: Callable[[], None] = _ignore
        """Called for each connection that is accepted; one with TLS is admitted later, after its handshake."""

    @property
    def server(self) -> Any:
        """The factory of a connection's protocol, as a site wants it."""
        server = super().server
        return None if server is None else self._bounded(server)

    def _bounded(self, server: web.Server) -> Callable[[], asyncio.Protocol]:
        loop = asyncio.get_running_loop()

        def make() -> Connection:
            self.on_accepted()
            return Connection(self._gate, self._fast_path, self.admission, server, loop=loop, **self._bounds)

        return make


def _ignore() -> None:
    """Nobody wants to know."""


class Connection(web.RequestHandler):
    """A connection that holds the first bytes of a batch back until the gate lets it in, and has the fast path take it
    if it is a usual one.

    Only where a request can begin: nothing is under way, all before it was answered, and no part of a head is with the
    parser. So no answer of theirs can be taken for one to another request.
    """

    __slots__ = (
        "_admission",
        "_answered",
        "_answers",
        "_arrival",
        "_body",
        "_end",
        "_fast_path",
        "_gate",
        "_has_ended",
        "_head",
        "_taken",
        "held",
        "is_probe_only",
        "is_refused",
        "known_head",
        "network",
        "peer",
    )

    def __init__(
        self,
        gate: Gate,
        fast_path: FastPath | None,
        admission: "Admission[Connection]",
        server: web.Server,
        **bounds: Any,
    ) -> None:
        super().__init__(server, **bounds)
        self.held: bytes | None = None
        """The bytes of a batch that waits at the gate; None: none waits."""
        self.is_refused = False
        """Whether the requests under way are refused: the one that was held, and any pipelined behind it."""
        self.is_probe_only = False
        """Whether there are too many connections, so that only probes are answered on this one."""
        self.peer = ("", 0)
        """Address and port of the client."""
        self.network = ""
        """The network with which it shares a bound: `network_of` the address."""
        self._gate = gate
        self._admission = admission
        self._answers = 0
        self._body: StreamReader = EMPTY_PAYLOAD
        """The body of the request that arrived last."""
        self._head = 0
        """Bytes of an incomplete head that the parser has."""
        self._end = b""
        """The last three bytes of them."""
        self._has_ended = False
        """Whether the client has ended its side: nothing more will come."""
        self._fast_path = fast_path
        self.known_head: KnownHead | None = None
        """The last usual head that came by it."""
        self._arrival: Arrival | None = None
        """The batch that is in the fast path, from its head to its answer."""
        self._taken = 0
        """Batches that the fast path has answered."""
        self._answered: asyncio.Future[None] | None = None
        """Done with the next answer of the fast path, where the end of the server waits for it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection; beyond the bounds only probes are answered on it."""
        super().connection_made(transport)
        address = transport.get_extra_info("peername")
        if isinstance(address, tuple):
            self.peer = peer_of(address)
            self.network = network_of(self.peer[0])
        self.is_probe_only = not self._admission.admit(self, self._loop.time())

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        if self._arrival is not None or self.held is not None or not self._is_idle():
            self._receive_while_busy(data)
        elif self._head or self.is_probe_only or not data.startswith(gate.STARTS) or self._gate.lets_in():
            self._begin(data)
        else:
            self._next_keepalive_close_time = self._loop.time() + self.keepalive_timeout  # to aiohttp it is idle
            self._gate.hold(len(data))
            self.held = data
            self._gate.wait(self)

    def _receive_while_busy(self, data: bytes) -> None:
        """Bytes have arrived while a request is under way, or waits at the gate: a part of it, or what is behind it."""
        if self._arrival is not None:
            self._go_on_arriving(self._arrival, data)
        elif self.held is not None:
            self._pause_transport_reading()  # this is enough; read on only so as to see when the client leaves
            self._gate.hold(len(data))
            self.held += data
        else:
            self._go_on(data)

    def eof_received(self) -> bool:  # type: ignore[override] # aiohttp's own returns None: False
        """The client has closed its side. Return True to answer its requests first; False: nothing is due, so close.

        TLS has no half-closed connections. Once an answer has begun, nothing is due either: the transport has it, or it
        is a stream, which ends with its client.
        """
        if self.transport is None or self.transport.get_extra_info("sslcontext") is not None:
            return False
        self._has_ended = True
        if self._arrival is not None:
            if not self._arrival.missing:
                return True
            self._give_up_waiting(self._arrival)
            return self.transport is not None
        return self.held is not None or self._has_to_answer()

    def let_in(self) -> None:
        """Continue with the request that was held."""
        self._begin(self._take())

    def refuse(self) -> None:
        """Refuse the request that was held."""
        data = self._take()
        refused = self._gate.on_refused
        if refused is None or self.transport is None or self.writing_paused or not gate.is_whole(data):
            self._parse(data, is_refused=True)
            return
        refused(gate.full())
        self.transport.write(gate.ANSWER)
        if self._has_ended:
            self.force_close()

    def close(self) -> None:
        """Close, as the server stops; a request that is held is refused first."""
        if self.held is not None:
            self.refuse()
        if self._arrival is not None and self._arrival.missing:
            self._give_up_waiting(self._arrival)
        super().close()

    async def shutdown(self, timeout: float | None = SHUTDOWN_TIMEOUT) -> None:  # noqa: ASYNC109 - as in aiohttp
        """End the connection, at most `timeout` seconds after what is under way could be answered."""
        if self._arrival is not None and self.transport is not None:
            self._answered = self._loop.create_future()
            await asyncio.wait((self._answered,), timeout=timeout)
        await super().shutdown(timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone, or was sent away."""
        arrival = self._arrival
        if arrival is not None and arrival.missing:
            arrival.hold.close()
            self._end_arrival(arrival)
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)
        if self.held is not None:
            self._take()
        self._admission.forget(self)
        task = self._task_handler
        is_beginning = self._waiter is not None and self._waiter.done()
        super().connection_lost(exc)
        if is_beginning and task is not None:
            task.cancel()  # a request came in the same moment: aiohttp would begin it without what it takes for that

    def idle_since(self) -> float | None:
        """Return the loop's time since when no request is under way; None: one is."""
        if self._arrival is not None or self.held is not None or not self._is_idle():
            return None
        return self._next_keepalive_close_time - self.keepalive_timeout

    @property
    def requests(self) -> int:
        """How many requests it has made so far."""
        return self._request_count + self._taken

    # --- the fast path ----------------------------------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether the client has closed its side: it may have left, or only wait for its answers."""
        return self._has_ended

    @property
    def is_there(self) -> bool:
        """False once the client has gone, or was sent away."""
        return self.transport is not None

    def _enters_fast_path(self, data: bytes) -> bool:
        """Have a batch that begins with `data` taken without a request; False: it is not usual."""
        if self._fast_path is None or self._close or self._force_close or self.writing_paused:
            return False
        arrival = self._fast_path.open(self, data)
        if arrival is None:
            return False
        if self._has_ended and len(data) < arrival.end:
            arrival.hold.close()
            return False
        self._arrival, missing = arrival, arrival.end - len(data)
        if missing > 0:
            arrival.missing = missing
            arrival.parts.append(data)
            arrival.patience = self._loop.call_later(PATIENCE, self._give_up_waiting, arrival)
        else:
            self._have_taken(arrival, data)
        return True

    def _go_on_arriving(self, arrival: Arrival, data: bytes) -> None:
        if not arrival.missing:
            self._pause_transport_reading()  # this is enough; read on only so as to see when the client leaves
            arrival.behind += data
            return
        arrival.parts.append(data)
        try:
            arrival.hold.reserve(len(data))
        except Refused:  # which is for aiohttp to say
            self._give_up_waiting(arrival)
            return
        arrival.missing = max(arrival.missing - len(data), 0)
        if not arrival.missing:
            whole = b"".join(arrival.parts)
            arrival.parts.clear()
            arrival.stop_waiting()
            self._have_taken(arrival, whole)

    def _have_taken(self, arrival: Arrival, whole: bytes) -> None:
        """All of a batch is here, and perhaps bytes behind it."""
        if len(whole) > arrival.end:
            self._pause_transport_reading()
            whole, arrival.behind = whole[: arrival.end], whole[arrival.end :]
        assert self._fast_path is not None
        self._fast_path.take(arrival, whole)

    def _give_up_waiting(self, arrival: Arrival) -> None:
        """A body that comes slowly, or whose rest never comes, is aiohttp's."""
        arrival.hold.close()
        self.leave_fast_path(arrival, b"".join(arrival.parts))

    def _end_arrival(self, arrival: Arrival) -> None:
        """The batch is no more in the fast path."""
        arrival.stop_waiting()
        self._arrival = None
        self._next_keepalive_close_time = self._loop.time() + self.keepalive_timeout
        if arrival.behind:
            self._resume_transport_reading()

    def leave_fast_path(self, arrival: Arrival, data: bytes) -> None:
        """Have aiohttp take the batch that is in the fast path, of which `data` has arrived."""
        self._end_arrival(arrival)
        self._parse(data + arrival.behind)
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def answer(self, arrival: Arrival, response: bytes) -> None:
        """Send the answer to the batch that is in the fast path."""
        self._end_arrival(arrival)
        self._taken += 1
        if self.transport is None:
            return
        self.transport.write(response)
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)
        if arrival.behind and not self._close:
            self.data_received(arrival.behind)
        elif self._has_ended:
            self.force_close()

    def _process_keepalive(self) -> None:
        if self._arrival is not None:  # to aiohttp it is idle
            self._next_keepalive_close_time = self._loop.time() + self.keepalive_timeout
        super()._process_keepalive()

    # --- aiohttp ----------------------------------------------------------------------------------------------------

    async def finish_response(self, request: Any, resp: Any, start_time: float | None) -> tuple[Any, bool]:
        """Send an answer; the last one to a client that has closed its side ends the connection."""
        if isinstance(resp, web.HTTPException):  # made by aiohttp itself, before a handler was found
            resp = protocol_error(resp.status, UNKNOWN_EXPECT if resp.status == UNKNOWN_EXPECTATION else resp.reason)
        done = await super().finish_response(request, resp, start_time)
        self._answers += 1
        if self._has_ended and self._answers == self._request_count:
            super().close()
        return done

    def handle_error(
        self,
        request: Any,
        status: int = TABLE["internal"].http,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not an HTTP request, or one whose handler failed; the text repeats nothing that was sent."""
        if request.writer.output_size > 0:
            raise ConnectionError("An answer has begun, so no error can be answered")
        if status == TABLE["bad_request"].http:
            text = head_fault(exc)
        else:
            self.log_exception("Error handling a request", exc_info=exc)
            text = "Internal server error"
        response = protocol_error(status, text)
        response.force_close()
        return response

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

    def _begin(self, data: bytes) -> None:
        """Take bytes that came while no request was under way: a head, or a part of it, is first in them."""
        is_first = not self._head and not self.is_probe_only
        if not (is_first and data.startswith(gate.BATCH) and self._enters_fast_path(data)):
            self._parse(data)

    def _parse(self, data: bytes, *, is_refused: bool = False) -> None:
        """Have aiohttp take such bytes."""
        self.is_refused = is_refused
        if self._head + len(data) > MAX_HEAD and not self._fits(data):
            self._refuse_head()
            return
        # A whole batch by itself: of bytes in one read aiohttp gives up all if any of them is no request. What becomes
        # of a batch must not depend on what happens to be behind it, here as on the fast path.
        end = None if self._head else gate.end_of_first(data)
        first, rest = (data, b"") if end is None else (data[:end], data[end:])
        count = self._request_count
        super().data_received(first)
        if self._request_count != count:
            self._body = self._messages[-1][1]
        if self._is_idle():
            self._head += len(first)
            self._end = (self._end + first)[-3:]
        else:
            self._head, self._end = 0, b""
        if rest:
            self._go_on(rest)
        if self._has_ended and not self._has_to_answer():
            self.force_close()

    def _fits(self, data: bytes) -> bool:
        """Return whether the head that continues with `data` ends within its bound."""
        end = (self._end + data).find(b"\r\n\r\n", 0, MAX_HEAD - self._head + len(self._end))
        return end >= 0

    def _refuse_head(self) -> None:
        if self.transport is not None:
            self.transport.write(_HEAD_TOO_LONG)
        self.force_close()

    def _go_on(self, data: bytes) -> None:
        """Parse bytes that came while a request is under way: of its body or trailers, or of pipelined requests.

        Bytes that complete neither a request nor a part of a body are bounded like a head.
        """
        count, size = self._request_count, self._body.total_bytes
        super().data_received(data)
        if self._request_count != count:
            self._body = self._messages[-1][1]
        elif self._body.total_bytes == size and data:
            self._bound(data)
            return
        self._head, self._end = 0, b""

    def _bound(self, data: bytes) -> None:
        self._head += len(data)
        self._end = (self._end + data)[-3:]
        if self._head > MAX_HEAD:
            self._break_off()
            super().close()  # nothing more is taken; what came before is answered

    def _has_to_answer(self) -> bool:
        """Return whether requests are still to be answered. Nothing more will come: incomplete bodies stay so."""
        if self._answers == self._request_count:
            return False
        if self._reading_paused or self._buffer_paused:
            return True  # the parser has not seen everything; this is checked again when it has
        current = self._current_request
        if not self._messages and current is not None and current.writer.output_size > 0:
            return False
        self._break_off()
        return True

    def _break_off(self) -> None:
        """End the body: reading one that is not complete raises an error."""
        if not self._body.is_eof():
            self._body.set_exception(RequestPayloadError("The body is cut off"))
            self._body.feed_eof()


# --- what is wrong with a head ---------------------------------------------------------------------------------------

_DUPLICATE: Final = re.compile(r"Duplicate '([A-Za-z-]+)' header found\.")
_PARSER: Final = re.compile(r"(?:Bad status line:\n +)?([A-Za-z][^\n]*?):\n\n")


def head_fault(error: BaseException | None) -> str:
    """Return what is wrong with a request that the HTTP parser refuses.

    aiohttp's own texts repeat what was sent, which may contain keys; only llhttp's fixed part of them is used.
    """
    text = error.message if isinstance(error, BadHttpMessage) else ""
    if isinstance(error, LineTooLong):
        return HEAD_TOO_LONG
    if text == "Too many headers received":
        return f"The request has more than {MAX_HEADERS} headers"
    if text == "Missing 'Host' header in request.":
        return "The Host header is missing, which HTTP/1.1 requires"
    if found := _DUPLICATE.fullmatch(text):
        return f"The header {found[1]} occurs more than once"
    if isinstance(error, InvalidHeader):
        return "A header is not allowed, or has a character that is not allowed in headers"
    if isinstance(error, BadHttpMethod) and text.startswith("Received HTTPS traffic"):
        return "This is TLS, on a port without TLS: use http://"
    if isinstance(error, InvalidURLError):
        return "The request target is not a path or an address"
    if "PRI/Upgrade" in text:
        return "This is HTTP/2, on a port for HTTP/1.1: the gRPC API has a port of its own"
    if found := _PARSER.match(text):
        return f"This is not a well-formed HTTP/1.1 request: {found[1]}"
    return "This is not a well-formed HTTP/1.1 request"


UNKNOWN_EXPECT: Final = "Expect must be 100-continue, or absent"
HEAD_TOO_LONG: Final = f"The request line and the headers are longer than {MAX_HEAD} bytes"


_HEAD_TOO_LONG: Final = http_response(Refused("bad_request", HEAD_TOO_LONG), close=True)
