"""What only gRPC has: statuses with details, metadata, health, reflection, gzip, TLS. Streams have their own file."""

import asyncio
import contextlib
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from structlog.testing import capture_logs

from protos.spendstream.v1 import ingest_pb2 as pb
from protos.spendstream.v1 import ingest_pb2_grpc, usage_pb2
from server.errors import Refused
from server.grpc_api.servicers import make_server
from server.limits.connection_watch import ConnectionWatch, Open, connections_to
from tests.contract.doors import INGEST_ONLY, READ_ONLY, SECRET, Api, Doors, key_metadata, open_doors, to_request
from tests.contract.fakes import FakeHealth
from tests.support.events import make_event, to_proto
from tests.support.patience import PATIENCE

APIS: Final[tuple[Api, ...]] = ("grpc",)
"""Those that these tests need (the fixture `doors`)."""

CODE = grpc.StatusCode
MIB = 1024 * 1024


def ingest(doors: Doors, events: int = 1, *metadata: tuple[str, str], secret: str | None = SECRET) -> Any:
    call = doors.unary("IngestService/Ingest", pb.IngestResponse)
    return call(to_request([make_event() for _ in range(events)], 7), metadata=(*key_metadata(secret), *metadata))


async def status_of(call: Any) -> status_pb2.Status:
    """The rich status of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error: Any = caught.value
    status: status_pb2.Status | None = rpc_status.from_call(error)
    assert status is not None
    assert (status.code, status.message) == (error.code().value[0], error.details())
    return status


def detail(status: status_pb2.Status, kind: Any) -> Any:
    found = kind()
    assert any(each.Unpack(found) for each in status.details)
    return found


# --- ingest ----------------------------------------------------------------------------------------------------------


async def test_accepted(doors: Doors) -> None:
    call = ingest(doors, 2)
    answer = await call
    assert (answer.sequence, answer.accepted, list(answer.rejected), answer.HasField("status")) == (7, 2, [], False)
    assert answer.position
    assert dict(await call.trailing_metadata())["x-ingest-position"] == answer.position


async def test_the_generated_stub_works(doors: Doors) -> None:
    stub: Any = ingest_pb2_grpc.IngestServiceStub(doors.channel)
    request = pb.IngestRequest(sequence=3, events=[to_proto(make_event())])
    answer = await stub.Ingest(request, metadata=key_metadata())
    assert (answer.sequence, answer.accepted) == (3, 1)


@pytest.mark.parametrize("secret", [None, "", "lqt_" + "9" * 64])
async def test_no_valid_key(doors: Doors, secret: str | None) -> None:
    status = await status_of(ingest(doors, secret=secret))
    assert (status.code, status.message) == (CODE.UNAUTHENTICATED.value[0], "Invalid API key")


async def test_ingest_takes_no_bearer(doors: Doors) -> None:
    status = await status_of(ingest(doors, 1, ("authorization", f"Bearer {SECRET}"), secret=None))
    assert status.code == CODE.UNAUTHENTICATED.value[0]


async def test_scopes(doors: Doors) -> None:
    assert (await status_of(ingest(doors, secret=READ_ONLY))).code == CODE.PERMISSION_DENIED.value[0]


async def test_a_hundred_faults_fit_into_a_status(doors: Doors) -> None:
    """More would not reach a client at all: it bounds the metadata it takes."""
    call = doors.unary("IngestService/Ingest", pb.IngestResponse)
    request = to_request([make_event(timestamp="x" * 200) for _ in range(100)])
    status = await status_of(call(request, metadata=key_metadata()))
    assert 10 < len(detail(status, error_details_pb2.BadRequest).field_violations) < 100


async def test_a_fault_of_ours_shows_nothing_of_us(doors: Doors) -> None:
    doors.quotas.refuse_request = RuntimeError("secret detail")  # type: ignore[assignment] # what nobody expects
    with capture_logs() as logs:
        status = await status_of(ingest(doors))
    assert (status.code, status.message) == (CODE.INTERNAL.value[0], "Internal server error")
    assert [entry["event"] for entry in logs] == ["grpc_call_failed"]


async def test_prefer(doors: Doors) -> None:
    request = to_request([make_event(), make_event(model=None)])
    call = doors.unary("IngestService/Ingest", pb.IngestResponse)
    assert (await call(request, metadata=key_metadata())).accepted == 1
    lenient = await call(request, metadata=(*key_metadata(), ("prefer", "wait=1"), ("prefer", "handling=lenient")))
    assert lenient.accepted == 2
    status = await status_of(call(request, metadata=(*key_metadata(), ("prefer", "handling=strict"))))
    assert status.code == CODE.INVALID_ARGUMENT.value[0]


async def test_the_servers_default_handling() -> None:
    async with open_doors(handling="lenient", apis=APIS) as doors:
        call = doors.unary("IngestService/Ingest", pb.IngestResponse)
        assert (await call(to_request([make_event(model=None)]), metadata=key_metadata())).accepted == 1


async def test_a_keys_handling_goes_before_the_servers_and_behind_prefer() -> None:
    async with open_doors(handling="lenient", apis=APIS) as doors:
        call = doors.unary("IngestService/Ingest", pb.IngestResponse)
        request = to_request([make_event(), make_event(model=None)])
        for handling, accepted in (("partial", 1), ("lenient", 2), (None, 2)):
            doors.add_key(SECRET, handling=handling)
            assert (await call(request, metadata=key_metadata())).accepted == accepted
        doors.add_key(SECRET, handling="strict")
        status = await status_of(call(request, metadata=key_metadata()))
        assert status.code == CODE.INVALID_ARGUMENT.value[0]
        lenient = await call(request, metadata=(*key_metadata(), ("prefer", "handling=lenient")))
        assert lenient.accepted == 2


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed(doors: Doors, compression: grpc.Compression) -> None:
    call = doors.unary("IngestService/Ingest", pb.IngestResponse)
    request = to_request([make_event() for _ in range(100)])
    assert (await call(request, metadata=key_metadata(), compression=compression)).accepted == 100


@pytest.mark.parametrize(
    ("size", "code"),
    [(20 * MIB, CODE.INVALID_ARGUMENT), (21 * MIB, CODE.INVALID_ARGUMENT), (23 * MIB, CODE.RESOURCE_EXHAUSTED)],
)
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_large_messages(doors: Doors, size: int, code: grpc.StatusCode, compression: grpc.Compression) -> None:
    call = doors.unary("IngestService/Ingest", pb.IngestResponse)
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # up to 21 MiB it is answered, then the transport ends it
        await call(
            pb.IngestRequest(events=[pb.Event(model="m" * size)]).SerializeToString(),
            metadata=key_metadata(),
            compression=compression,
        )
    assert caught.value.code() == code


async def test_no_room_for_the_body(doors: Doors) -> None:
    doors.services.bodies.limit = 100
    assert (await status_of(ingest(doors))).code == CODE.UNAVAILABLE.value[0]
    assert doors.services.bodies.used == 0


# --- reads -----------------------------------------------------------------------------------------------------------


def read(doors: Doors, method: str, kind: Any, request: Any, **metadata: str) -> Any:
    sent = {"x-api-key": READ_ONLY} | {name.replace("_", "-"): value for name, value in metadata.items()}
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    return doors.unary(f"UsageService/{method}", kind)(raw, metadata=tuple(sent.items()))


async def test_list_users(doors: Doors) -> None:
    request = usage_pb2.ListUsersRequest(
        project_id="p",
        start="a",
        end="b",
        model="m",
        environment="",
        sort="requests",
        limit=5,
        cursor="c",
        unattributed=True,
    )
    answer = await read(doors, "ListUsers", usage_pb2.ListUsersResponse, request, x_ingest_position="fa4e_0-1")
    params = {
        "projectId": "p",
        "start": "a",
        "end": "b",
        "model": "m",
        "environment": "",
        "sort": "requests",
        "limit": "5",
        "cursor": "c",
        "unattributed": "true",
    }
    assert doors.reads.asked == [("", params, "fa4e_0-1")]
    first, nobody = answer.users
    sums = usage_pb2.Sums(
        requests=2, errors=1, input_tokens=576, output_tokens=2**63 - 1, cost_usd="0.003413", unpriced=1
    )
    assert (first.user_id, first.sums) == ("u/1 ä%", sums)
    assert (first.first_seen, first.last_seen) == ("2026-04-20T11:00:00.000Z", "2026-04-20T11:00:01.200Z")
    assert (nobody.HasField("user_id"), nobody.sums.cost_usd, nobody.first_seen) == (False, "0", "")
    assert (answer.total, answer.total_users, answer.next_cursor) == (sums, 2, "next")
    assert answer.as_of == "2026-04-20T12:00:00.000Z"


async def test_what_is_not_asked_is_not_passed_on(doors: Doors) -> None:
    request = usage_pb2.ListUsersRequest(unattributed=False)
    await read(doors, "ListUsers", usage_pb2.ListUsersResponse, request)
    assert doors.reads.asked == [("", {}, None)]


async def test_get_user(doors: Doors) -> None:
    request = usage_pb2.GetUserRequest(user_id="a/b", start="2026-04-01")
    answer = await read(doors, "GetUser", usage_pb2.GetUserResponse, request)
    assert doors.reads.asked == [("a/b", {"start": "2026-04-01"}, None)]
    assert answer.user.user_id == "u/1 ä%"
    assert [(row.provider, row.model, row.sums.requests) for row in answer.by_model] == [("openai", "gpt-4o", 2)]
    assert [(row.day, row.sums.cost_usd) for row in answer.by_day] == [("2026-04-20", "0.003413")]


async def test_get_quota(doors: Doors) -> None:
    answer = await read(doors, "GetQuota", usage_pb2.GetQuotaResponse, usage_pb2.GetQuotaRequest())
    assert (answer.organization, answer.period, answer.limit, answer.used) == ("default", "2026-04", 10_000, 1)
    assert (answer.remaining, answer.resets_at) == (9_999, "2026-04-20T13:00:00.000Z")
    assert not answer.windows["minute"].HasField("limit")
    assert (answer.windows["month"].limit, answer.duplicates, answer.conflicts) == (5, 3, 4)


async def test_get_costs(doors: Doors) -> None:
    request = usage_pb2.GetCostsRequest(start="2026-04-01", end="2026-04-02T03:00:00Z")
    answer = await read(doors, "GetCosts", usage_pb2.GetCostsResponse, request)
    assert doors.reads.asked == [("", {"start": "2026-04-01", "end": "2026-04-02T03:00:00Z"}, None)]
    (model,) = answer.by_model
    assert (model.provider, model.model, model.tokens) == ("openai", "gpt-4o", 2**63 - 1)
    assert (model.avg_cost, model.cache_hit_rate, model.sums.errors) == ("0.333333333333", "0.333333333333", 1)
    assert (model.latency.p50_ms, model.latency.p95_ms, model.latency.measured) == (857, 1.25, 2)
    assert [(row.day, row.sums.cost_usd) for row in answer.daily] == [("2026-04-20", "0.003413")]
    assert [(row.day, row.model, row.cost_usd, row.requests, row.errors) for row in answer.daily_by_model] == [
        ("2026-04-20", "gpt-4o", "0.003413", 2, 1)
    ]
    assert (answer.total.cost_usd, answer.month_to_date, answer.cache_hit_rate) == ("1", "1.5", "0.333333333333")
    assert (answer.forecast30d, answer.as_of) == ("10000000000000000000", "2026-04-20T12:00:00.000Z")


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (Refused("bad_request", "limit must be a number"), CODE.INVALID_ARGUMENT),
        (Refused("forbidden", "Another project"), CODE.PERMISSION_DENIED),
        (Refused("not_found", "No such user"), CODE.NOT_FOUND),
        (Refused("not_yet_visible", "Not yet"), CODE.DEADLINE_EXCEEDED),
    ],
)
async def test_refused_reads(doors: Doors, refused: Refused, code: grpc.StatusCode) -> None:
    doors.reads.refuse = refused
    status = await status_of(read(doors, "GetUser", usage_pb2.GetUserResponse, usage_pb2.GetUserRequest()))
    assert (status.code, status.message) == (code.value[0], refused.message)


@pytest.mark.parametrize(
    ("method", "request_"),
    [("ListUsers", usage_pb2.ListUsersRequest()), ("GetUser", b""), ("GetCosts", b""), ("GetQuota", b"")],
)
async def test_reads_need_a_key_that_may_read(doors: Doors, method: str, request_: Any) -> None:
    status = await status_of(read(doors, method, pb.IngestResponse, request_, x_api_key=INGEST_ONLY))
    assert status.code == CODE.PERMISSION_DENIED.value[0]
    status = await status_of(read(doors, method, pb.IngestResponse, request_, x_api_key="no"))
    assert status.code == CODE.UNAUTHENTICATED.value[0]
    status = await status_of(read(doors, method, pb.IngestResponse, b"\xff", x_api_key="no"))
    assert status.code == CODE.UNAUTHENTICATED.value[0]
    status = await status_of(read(doors, method, pb.IngestResponse, b"\xff"))
    assert status.code == CODE.INVALID_ARGUMENT.value[0]


async def test_a_read_takes_a_bearer(doors: Doors) -> None:
    call = doors.unary("UsageService/GetQuota", usage_pb2.GetQuotaResponse)
    assert (await call(b"", metadata=(("authorization", f"Bearer {READ_ONLY}"),))).used == 1


class Noting(ConnectionWatch):
    """Counts how often a peer was told to have a key."""

    known = 0

    def know(self, peer: str) -> None:
        self.known += 1
        super().know(peer)


@pytest.mark.parametrize(
    ("method", "raw", "secret", "code", "known"),
    [
        ("IngestService/Ingest", b"\xff", None, CODE.UNAUTHENTICATED, 0),
        ("UsageService/GetUser", b"\xff", "no", CODE.UNAUTHENTICATED, 0),
        ("UsageService/GetUser", b"", INGEST_ONLY, CODE.PERMISSION_DENIED, 0),
        ("UsageService/WatchUsers", b"\xff", None, CODE.UNAUTHENTICATED, 0),
        ("UsageService/WatchUsers", b"\xff", READ_ONLY, CODE.INVALID_ARGUMENT, 1),
        ("IngestService/Ingest", b"\xff", SECRET, CODE.INVALID_ARGUMENT, 1),
        ("IngestService/IngestStream", b"\xff", None, CODE.UNAUTHENTICATED, 0),
        ("IngestService/IngestStream", b"", SECRET, CODE.OK, 1),
        ("UsageService/GetQuota", b"", READ_ONLY, CODE.OK, 1),
    ],
)
async def test_only_a_valid_key_makes_a_connection_known(
    method: str, raw: bytes, secret: str | None, code: grpc.StatusCode, known: int
) -> None:
    async with open_doors(apis=APIS) as doors:
        watch = Noting("grpc", 100)
        server, port = await make_server(doors.services, bind="127.0.0.1:0", connections=watch)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream: Any = channel.stream_stream(f"/spendstream.v1.{method}")
            call = stream(iter([raw]), metadata=key_metadata(secret))
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert await call.code() is code
        assert watch.known == known
        await server.stop(0)


# --- around them -----------------------------------------------------------------------------------------------------


async def test_unknown_methods(doors: Doors) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await doors.unary("IngestService/Delete", pb.IngestResponse)(b"")
    assert caught.value.code() == CODE.UNIMPLEMENTED


async def test_health(doors: Doors) -> None:
    stub: Any = health_pb2_grpc.HealthStub(doors.channel)
    status = health_pb2.HealthCheckResponse
    for service in ("", "spendstream.v1.IngestService", "spendstream.v1.UsageService"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == status.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() == CODE.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == status.SERVING
    doors.health.reasons = ["the disk is full"]
    assert (await asyncio.wait_for(watch.read(), PATIENCE)).status == status.NOT_SERVING
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == status.NOT_SERVING
    doors.health.reasons = []
    assert (await asyncio.wait_for(watch.read(), PATIENCE)).status == status.SERVING
    watch.cancel()
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="other"))
    assert (await unknown.read()).status == status.SERVICE_UNKNOWN
    unknown.cancel()


async def test_reflection(doors: Doors) -> None:
    channel: Any = doors.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}
    assert names >= {"spendstream.v1.IngestService", "spendstream.v1.UsageService", "grpc.health.v1.Health"}
    symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol="spendstream.v1.IngestService")
    await call.write(symbol)
    assert (await call.read()).file_descriptor_response.file_descriptor_proto
    await call.done_writing()


class WatchedHealth(FakeHealth):
    """Calls `asked` whenever somebody wants to know."""

    def __init__(self, asked: Callable[[], None]) -> None:
        super().__init__()
        self.asked = asked

    def unready(self) -> Sequence[str]:
        self.asked()
        return super().unready()


@pytest.mark.parametrize(
    ("probe", "is_spared"), [("Check", True), ("List", True), ("Watch", False), ("reflection", False)]
)
async def test_a_connection_that_probes_is_not_ended_as_an_idle_one(doors: Doors, probe: str, is_spared: bool) -> None:
    """While a call is under way idle ones go before it. It needs no key: so it is spared only if it ends by itself."""
    watch = ConnectionWatch("grpc", 20)
    crowd = [Open(0, (f"10.0.0.{number}", 1)) for number in range(20)]
    seen: list[tuple[bool, bool]] = []

    def look() -> None:
        [probing] = connections_to(port)
        there = [probing, *crowd]
        watch.surplus(there, 0.0)
        is_among_idle_ones = probing in watch.surplus(there, 2.0)
        with contextlib.ExitStack() as calls:
            for each in crowd:
                calls.enter_context(watch.call(f"ipv4:{each.peer[0]}:1"))
            seen.append((is_among_idle_ones, probing in watch.surplus(there, 2.0)))

    services = replace(doors.services, health=WatchedHealth(look))
    server, port = await make_server(services, bind="127.0.0.1:0", connections=watch)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        if probe == "Check":
            await stub.Check(health_pb2.HealthCheckRequest())
        elif probe == "List":
            ask: Any = channel.unary_unary("/grpc.health.v1.Health/List")
            await ask(b"")
        elif probe == "Watch":
            await stub.Watch(health_pb2.HealthCheckRequest()).read()
        else:
            reflected: Any = reflection_pb2_grpc.ServerReflectionStub(cast("Any", channel))
            call = reflected.ServerReflectionInfo()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            await call.read()
            look()
    await server.stop(0)
    assert seen[0] == (False, not is_spared)


async def test_a_taken_port_is_an_error(doors: Doors) -> None:
    with pytest.raises(RuntimeError):
        await make_server(doors.services, bind=doors.address)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[bytes, bytes]:
    """A key and the certificate of `localhost` for it."""
    key, made = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(made)]
    try:
        subprocess.run([*command, *files], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the command openssl to make a certificate")
    return key.read_bytes(), made.read_bytes()


async def test_tls(certificate: tuple[bytes, bytes]) -> None:
    async with open_doors(tls=grpc.ssl_server_credentials([certificate]), apis=APIS) as doors:
        trusted = grpc.ssl_channel_credentials(certificate[1])
        name = [("grpc.ssl_target_name_override", "localhost")]
        async with grpc.aio.secure_channel(doors.address, trusted, name) as channel:
            call: Any = channel.unary_unary("/spendstream.v1.IngestService/Ingest")
            answer = pb.IngestResponse.FromString(await call(to_request([make_event()]), metadata=key_metadata()))
            assert answer.accepted == 1
