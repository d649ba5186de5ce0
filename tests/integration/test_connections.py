"""Thousands of idle connections to either API of a real server: the other API, other clients and probes go on."""

import asyncio
import contextlib
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc
import pytest
import trustme

from protos.spendstream.v1 import ingest_pb2, ingest_pb2_grpc
from server.limits.admission import MIN_IDLE
from tests.support.events import make_event, to_ndjson, to_proto
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import Server, wait_until

pytestmark = pytest.mark.slow

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of HTTP/2 begins, with empty settings (RFC 9113, section 3.4)."""
ROUNDS: Final = 5
"""How often everybody gets through, where the server does not say how far it is."""
LOOKS: Final = 4
"""Looks at the connections that have to end some of them while a test goes on; there are two a second."""
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"


@pytest.fixture(autouse=True, scope="module")
def _files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 12_000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Crowd:
    """Idle connections to an address, which say `first` and nothing else; closed ones are opened again, for ever."""

    def __init__(self, to: str, count: int, *, first: bytes = b"", source: str = HERE) -> None:
        host, _, port = to.rpartition(":")
        self._to, self._first, self._source = (host, int(port)), first, source
        self._open: list[socket.socket] = []
        self._over = threading.Event()
        for _ in range(count):
            self._connect()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def _connect(self) -> None:
        with contextlib.suppress(OSError):
            made = socket.create_connection(self._to, timeout=5, source_address=(self._source, 0))
            self._open.append(made)
            made.sendall(self._first)

    def _go_on(self) -> None:
        """Open one after the other; a slice at a time those that the server has closed make room for it."""
        while not self._over.wait(0.05):
            for each in self._open[:200]:
                self._open.remove(each)
                each.setblocking(False)
                try:
                    closed = each.recv(65536) == b""
                except BlockingIOError:
                    closed = False
                except OSError:
                    closed = True
                if closed:
                    each.close()
                    self._connect()
                else:
                    self._open.append(each)

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for each in self._open:
            each.close()


@contextlib.contextmanager
def serving(tmp_path: Path, **settings: Any) -> Iterator[Server]:
    server = Server(tmp_path / "data", **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def limited(_files: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is allowed 4,096 files: 1,024 gRPC connections and 2,048 of HTTP."""
    with serving(tmp_path_factory.mktemp("limited"), files=4096) as server:
        yield server


def looks(server: Server) -> int:
    """How many looks at the connections had to end some of them."""
    return len(server.entries("connections.ended"))


async def http(server: Server, path: str, source: str = HERE, trust: ssl.SSLContext | None = None) -> int:
    """The status of a request on a connection of its own; POST for ingest. `trust` makes it one over TLS."""
    connector = aiohttp.TCPConnector(local_addr=(source, 0), force_close=True)
    timeout = aiohttp.ClientTimeout(total=PROCESS_PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        method, body = ("POST", to_ndjson([make_event()])) if path == "/v1/ingest" else ("GET", None)
        headers = {"x-api-key": server.key, "Content-Type": "application/x-ndjson"}
        url = f"{'http' if trust is None else 'https'}://{server.http}{path}"
        async with session.request(method, url, data=body, headers=headers, ssl=trust or True) as response:
            await response.read()
            status = response.status
    await asyncio.sleep(0 if trust is None else 0.1)  # a TLS connection of aiohttp ends a moment after its session
    return status


async def again_when_reset(server: Server, path: str, trust: ssl.SSLContext) -> int:
    """See `http`. At the address of a crowd a client that is new cannot always be told from the crowd, and has
    to connect again, as clients do."""
    for number in range(8):
        with contextlib.suppress(aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError, ConnectionResetError):
            return await http(server, path, trust=trust)
        await asyncio.sleep(0.05 * 2 ** min(number, 4))  # as clients wait
    return await http(server, path, trust=trust)


async def ingest_grpc(server: Server) -> int:
    """What is accepted of one event over a channel of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
    async with grpc.aio.insecure_channel(server.grpc, options) as channel:
        stub: Any = ingest_pb2_grpc.IngestServiceStub(channel)
        request = ingest_pb2.IngestRequest(sequence=1, events=[to_proto(make_event())])
        metadata = (("x-api-key", server.key),)
        answer = await stub.Ingest(request, metadata=metadata, timeout=PROCESS_PATIENCE, wait_for_ready=True)
        return int(answer.accepted)


@pytest.mark.parametrize(
    ("first", "source"),
    [(PREFACE, HERE), (PREFACE, ELSEWHERE), (b"", HERE)],
    ids=["HTTP/2", "from elsewhere", "silent"],
)
def test_idle_grpc_connections_leave_room_for_everybody_else(limited: Server, first: bytes, source: str) -> None:
    before = looks(limited)
    with Crowd(limited.grpc, 4100, first=first, source=source):
        while looks(limited) < before + LOOKS:
            assert asyncio.run(http(limited, "/v1/ingest")) == 202
            assert asyncio.run(http(limited, "/healthz")) == 200
            assert asyncio.run(http(limited, "/readyz")) == 200
            assert asyncio.run(ingest_grpc(limited)) == 1


def test_a_grpc_client_at_work_is_not_ended_for_idle_ones(limited: Server) -> None:
    async def stream(server: Server) -> list[int]:
        before = looks(server)
        stop = asyncio.Event()

        async def requests() -> Any:
            yield ingest_pb2.IngestRequest(sequence=1, events=[to_proto(make_event())])
            await stop.wait()
            yield ingest_pb2.IngestRequest(sequence=2, events=[to_proto(make_event())])

        async with grpc.aio.insecure_channel(server.grpc) as channel:
            stub: Any = ingest_pb2_grpc.IngestServiceStub(channel)
            call = stub.IngestStream(requests(), metadata=(("x-api-key", server.key),))
            accepted = [(await call.read()).accepted]
            with await asyncio.to_thread(Crowd, server.grpc, 3000, first=PREFACE):
                await asyncio.to_thread(wait_until, lambda: looks(server) >= before + LOOKS)
                stop.set()
                accepted.append((await call.read()).accepted)
            return accepted

    assert asyncio.run(stream(limited)) == [1, 1]


@pytest.mark.parametrize(("files", "crowd", "source"), [(4096, 4100, HERE), (None, 8192, ELSEWHERE)])
def test_probes_and_senders_get_through_idle_http_connections(
    tmp_path: Path, request: pytest.FixtureRequest, files: int | None, crowd: int, source: str
) -> None:
    """With files enough the server has 8,192 connections and no more, with 4,096 files 2,048."""
    with contextlib.ExitStack() as stack:
        server = request.getfixturevalue("limited") if files else stack.enter_context(serving(tmp_path))
        stack.enter_context(Crowd(server.http, crowd, source=source))
        time.sleep(MIN_IDLE)
        for _ in range(ROUNDS):
            for path, status in (("/healthz", 200), ("/readyz", 200), ("/v1/ingest", 202)):
                assert asyncio.run(http(server, path)) == status
                assert asyncio.run(http(server, path, ELSEWHERE)) == status
            assert asyncio.run(ingest_grpc(server)) == 1


def test_connections_without_a_tls_handshake_are_bounded_too(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", HERE)
    chain, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    with serving(tmp_path, files=4096, tls_cert=chain, tls_key=key) as server, Crowd(server.http, 4100):
        while looks(server) < LOOKS:
            for path, status in (("/healthz", 200), ("/readyz", 200), ("/v1/ingest", 202)):
                assert asyncio.run(again_when_reset(server, path, trust)) == status
                assert asyncio.run(http(server, path, ELSEWHERE, trust)) == status
