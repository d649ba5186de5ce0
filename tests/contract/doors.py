"""Both doors, really listening, in front of one intake with a log in memory."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, Literal

import aiohttp
import grpc
import msgspec
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from yarl import URL

from processor.core.events import message
from processor.core.events.event import Event, Handling
from processor.core.events.prices.pricing import Pricer
from processor.core.events.source import Request
from protos.spendstream.v1 import ingest_pb2 as pb
from server.alerts.shelf import BudgetShelf, NotificationShelf
from server.grpc_api.servicers import make_server
from server.http_api import docs_page, static_files
from server.http_api.routes import create_app, make_runner
from server.ingest.intake import Intake
from server.live.event_feed import EventFeed
from server.otlp.span_export import SpanExport
from server.services import Services
from server.tenancy.admin_service import AdminService
from server.tenancy.directory import Directory, key_record
from server.tenancy.directory_follower import DirectoryFreshness
from server.tenancy.keys import DEFAULT_SCOPES, Key, Scope, make_key
from tests.contract.fakes import NOW, FakeHealth, FakeQuotas, FakeReads
from tests.support.connections import Connections, connections
from tests.support.events import to_proto
from tests.support.explorer import FakeExplorer
from tests.support.live import Live
from tests.support.publisher import FakePublisher

Api = Literal["http", "grpc"]

SECRET = "lqt_" + "1" * 64
READ_ONLY = "lqt_" + "2" * 64
INGEST_ONLY = "lqt_" + "3" * 64


UNCHANGED: Final = [
    (module, name, cache(getattr(module, name)))
    for module, name in ((static_files, "load"), (docs_page, "load"), (docs_page, "document"))
]
"""What every application reads or makes anew as it starts: once is enough for the thousands of the tests."""


@dataclass
class Doors:
    """What a test talks to, and what it can change behind the doors."""

    publisher: FakePublisher
    quotas: FakeQuotas = field(default_factory=FakeQuotas)
    reads: FakeReads = field(default_factory=FakeReads)
    health: FakeHealth = field(default_factory=FakeHealth)
    directory: Directory = field(default_factory=lambda: Directory(BudgetShelf(), NotificationShelf()))
    live: Live = field(default_factory=Live)
    explorer: FakeExplorer = field(default_factory=FakeExplorer)
    url: str = ""
    address: str = ""
    session: aiohttp.ClientSession = field(init=False)
    channel: grpc.aio.Channel = field(init=False)
    services: Services = field(init=False)
    connections: Connections = field(init=False)
    """Those that the test opens by hand."""

    def add_key(self, secret: str, scopes: tuple[Scope, ...] = DEFAULT_SCOPES, **changes: Any) -> Key:
        key = msgspec.structs.replace(make_key(secret, at=0, scopes=scopes), **changes)
        self.directory.apply(*key_record(key))
        return key

    async def post(self, body: Any, **headers: str | None) -> "Answer":
        """POST /v1/ingest; header names with `_` for `-`, None leaves one out."""
        sent: dict[str, str | None] = {"x-api-key": SECRET, "Content-Type": "application/x-ndjson"}
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        kept = {name: value for name, value in sent.items() if value is not None}
        skip = ("Content-Type",)
        if isinstance(body, bytes):
            body = io.BytesIO(body)  # aiohttp warns of large bytes
        async with self.session.post(
            f"{self.url}/v1/ingest", data=body, headers=kept, skip_auto_headers=skip
        ) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def get(self, path: str, **headers: str) -> "Answer":
        """GET, with the path as it is."""
        url = URL(self.url + path, encoded=True)
        sent = {"x-api-key": SECRET} | {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(url, headers=sent) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the HTTP API, which is closed before the API is."""
        url = URL(self.url)
        return await self.connections.open(str(url.host), int(url.port or 0), **options)

    def unary(self, method: str, kind: Any) -> Any:
        """`await doors.unary(name, response class)(raw bytes, metadata=...)`."""
        return self.channel.unary_unary(f"/spendstream.v1.{method}", response_deserializer=kind.FromString)

    def stream(self, metadata: Iterable[tuple[str, str]] = (), secret: str | None = SECRET) -> Any:
        """An `IngestStream` call that takes raw bytes."""
        stream: Any = self.channel.stream_stream(
            "/spendstream.v1.IngestService/IngestStream", response_deserializer=pb.IngestResponse.FromString
        )
        return stream(metadata=(*key_metadata(secret), *metadata))

    def stored(self) -> list[tuple[Request, list[Event]]]:
        """All that reached the log, decoded again."""
        values = [value for values in self.publisher.messages.values() for value in values]
        return [part for value in values for part in message.events(message.decode(value))]


@dataclass
class Answer:
    """An HTTP answer that has been read."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def key_metadata(secret: str | None = SECRET) -> tuple[tuple[str, str], ...]:
    return () if secret is None else (("x-api-key", secret),)


def to_request(events: Sequence[dict[str, Any]], sequence: int = 0) -> bytes:
    return pb.IngestRequest(sequence=sequence, events=map(to_proto, events)).SerializeToString()


@asynccontextmanager
async def open_doors(
    publisher: FakePublisher | None = None,
    *,
    apis: Collection[Api] = ("http", "grpc"),
    handling: Handling = "partial",
    tls: grpc.ServerCredentials | None = None,
    desk: Callable[[Directory], AdminService] | None = None,
    trust: DirectoryFreshness | None = None,
    watched: bool = False,
    registry: CollectorRegistry | None = None,
    pricer: Pricer | None = None,
    otlp: Callable[[Intake], SpanExport] = SpanExport,
    **bounds: Any,
) -> AsyncIterator[Doors]:
    """Servers on free ports, a client for each, three keys.

    `apis`: which of the two; `watched`: each request is logged; `registry`: what /metrics shows; `pricer`: prices what
    comes without a cost, by default nothing; `otlp`: what takes spans.
    """
    doors = Doors(publisher or FakePublisher(3))
    doors.add_key(SECRET)
    doors.add_key(READ_ONLY, ("read",))
    doors.add_key(INGEST_ONLY, ("ingest",))
    intake = Intake(doors.publisher, doors.quotas, lambda: NOW, pricer=pricer)
    doors.services = Services(
        intake,
        otlp(intake),
        doors.directory,
        doors.reads,
        doors.health,
        lambda: NOW,
        handling,
        doors.live.feed,
        explorer=doors.explorer,
        event_feed=EventFeed(doors.explorer, doors.publisher.identity),
        identity=doors.publisher.identity,
    )
    if watched:
        doors.services = replace(doors.services, access_log=True)
    if trust is not None:
        doors.services = replace(doors.services, trust=trust)
    async with AsyncExitStack() as stack:
        if "http" in apis:
            with pytest.MonkeyPatch.context() as patch:
                for module, name, once in UNCHANGED:
                    patch.setattr(module, name, once)
                app = create_app(doors.services, None if desk is None else desk(doors.directory), registry)
            runner = make_runner(app, **bounds)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            doors.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        if "grpc" in apis:
            server, port = await make_server(doors.services, bind="127.0.0.1:0", tls=tls)
            await server.start()
            stack.push_async_callback(server.stop, 0)
            doors.address = f"127.0.0.1:{port}"
            options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
            doors.channel = grpc.aio.insecure_channel(doors.address, options)
            stack.push_async_callback(doors.channel.close)
        if "http" in apis:
            doors.session = aiohttp.ClientSession()
            stack.push_async_callback(doors.session.close)
        doors.connections = await stack.enter_async_context(connections())
        yield doors
