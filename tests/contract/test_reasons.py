"""Every refusal has a machine-readable reason: the same word in an HTTP body and in a gRPC `ErrorInfo`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, get_args

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from protos.spendstream.v1 import ingest_pb2 as pb
from protos.spendstream.v1 import usage_pb2
from server.errors import Reason, Refused
from server.http_api.routes import create_app
from server.status import TABLE
from server.tenancy.admin_service import AdminService
from server.tenancy.administration import Administration, NewKey
from server.tenancy.directory import key_record
from tests.contract.doors import INGEST_ONLY, READ_ONLY, SECRET, Answer, Doors, key_metadata, open_doors, to_request
from tests.contract.fakes import NOW
from tests.support.events import make_event, to_ndjson
from tests.support.patience import PATIENCE

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
BODY: Final = to_ndjson([make_event()])
UNKNOWN: Final = "lqt_" + "9" * 64


def reason_of(answer: Answer) -> str:
    """The word, of a whole error body."""
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json
    assert isinstance(body["error"], str)
    assert body["error"]
    reason: str = body["reason"]
    assert reason in REASONS
    return reason


def info_of(status: Any) -> str:
    """The word of a rich status, in lower case."""
    found = error_details_pb2.ErrorInfo()
    [info] = [found for detail in status.details if detail.Unpack(found)]
    assert info.domain == "spendstream"
    assert info.reason == info.reason.upper()
    reason: str = info.reason.lower()
    assert reason in REASONS
    return reason


async def failed(call: Any) -> tuple[grpc.StatusCode, str]:
    """The code and the word of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error: Any = caught.value
    status = rpc_status.from_call(error)
    assert status is not None
    assert (status.code, status.message) == (error.code().value[0], error.details())
    return error.code(), info_of(status)


@asynccontextmanager
async def open_office(tmp_path: Path) -> AsyncIterator[tuple[Doors, str]]:
    """Doors with all routes, and an admin key for all organizations."""
    address = LogAddress(tmp_path / "data")
    log = Log(address.data_dir, partitions=1, create=True)
    secret, key = Administration(log, NOW).create_key(NewKey("web", "acme", ("admin",), everywhere=True))
    log.close()
    desk = lambda directory: AdminService(address, directory, lambda: NOW)  # noqa: E731
    async with open_doors(desk=desk, registry=CollectorRegistry()) as doors:
        doors.directory.apply(*key_record(key))
        yield doors, secret


# --- every word, whoever says it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", REASONS)
async def test_every_word_on_every_wire(doors: Doors, reason: Reason) -> None:
    wanted = TABLE[reason]
    refused = Refused(reason, "It is refused")
    doors.reads.refuse = doors.quotas.refuse_request = doors.explorer.refuse = refused
    for answer in (await doors.get("/v1/users"), await doors.get("/v1/events"), await doors.post(BODY)):
        assert (answer.status, reason_of(answer)) == (wanted.http, reason)
        assert list(answer.json)[:2] == ["error", "reason"]
        assert ("Retry-After" in answer.headers) is refused.retryable
    request = to_request([make_event()], 7)
    for method, kind, raw in (
        ("UsageService/ListUsers", usage_pb2.ListUsersResponse, b""),
        ("UsageService/GetQuota", usage_pb2.GetQuotaResponse, b""),
        ("IngestService/Ingest", pb.IngestResponse, request),
    ):
        assert await failed(doors.unary(method, kind)(raw, metadata=key_metadata())) == (wanted.grpc, reason)
    stream = doors.stream()
    await stream.write(request)
    answered: pb.IngestResponse = await stream.read()
    assert (answered.sequence, answered.status.code, info_of(answered.status)) == (7, wanted.grpc.value[0], reason)
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


def test_the_list_is_closed() -> None:
    assert list(TABLE) == list(REASONS)
    assert [each.http for each in TABLE.values()] == sorted(each.http for each in TABLE.values())
    assert all(each.meaning and not each.meaning.endswith(".") for each in TABLE.values())


# --- every way to be refused over HTTP -------------------------------------------------------------------------------

READS: Final = ("/v1/users", "/v1/users/u", "/v1/users/?user_id=u", "/v1/costs", "/v1/quota", "/v1/budgets")


@pytest.mark.parametrize(
    ("path", "key", "status", "reason"),
    [
        *((path, UNKNOWN, 401, "unauthenticated") for path in (*READS, "/v1/stream/users")),
        *((path, INGEST_ONLY, 403, "forbidden") for path in (*READS, "/v1/stream/users")),
        ("/v1/quota?projectId=other", SECRET, 403, "forbidden"),
        ("/v1/quota?sort=name", SECRET, 400, "bad_request"),
        ("/v1/stream/users?sort=name", SECRET, 400, "bad_request"),
        ("/v1/users/", SECRET, 404, "not_found"),
        ("/nothing/here", SECRET, 404, "not_found"),
        ("/v1/ingest", SECRET, 405, "method_not_allowed"),
    ],
)
async def test_reads(doors: Doors, path: str, key: str, status: int, reason: str) -> None:
    answer = await doors.get(path, x_api_key=key)
    assert (answer.status, reason_of(answer)) == (status, reason)


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (BODY * 101, {}, 400, "bad_batch"),
        (b"", {}, 400, "bad_batch"),
        (b"{}", {}, 400, "bad_batch"),
        (b"not gzip", {"Content_Encoding": "gzip"}, 400, "bad_batch"),
        (BODY, {"x_api_key": None}, 401, "unauthenticated"),
        (BODY, {"x_api_key": READ_ONLY}, 403, "forbidden"),
        (b"x" * (21 << 20), {}, 413, "too_large"),
        (BODY, {"Content_Type": "text/plain"}, 415, "unsupported_type"),
        (BODY, {"Content_Encoding": "br"}, 415, "unsupported_encoding"),
    ],
)
async def test_batches(doors: Doors, body: bytes, headers: dict[str, str | None], status: int, reason: str) -> None:
    answer = await doors.post(body, **headers)
    assert (answer.status, reason_of(answer)) == (status, reason)


async def test_a_fault_of_ours(doors: Doors) -> None:
    doors.reads.refuse = doors.quotas.refuse_request = RuntimeError("unexpected")  # type: ignore[assignment]
    for answer in (await doors.get("/v1/users"), await doors.post(BODY)):
        assert (answer.status, reason_of(answer)) == (500, "internal")
    assert await failed(
        doors.unary("UsageService/ListUsers", usage_pb2.ListUsersResponse)(b"", metadata=key_metadata())
    ) == (
        grpc.StatusCode.INTERNAL,
        "internal",
    )
    stream = doors.stream()
    await stream.write(to_request([make_event()], 7))
    answered: pb.IngestResponse = await stream.read()
    assert (answered.sequence, info_of(answered.status)) == (7, "internal")
    await stream.done_writing()


async def test_not_ready(doors: Doors) -> None:
    doors.health.reasons.append("the disk is full")
    answer = await doors.get("/readyz")
    assert (answer.status, reason_of(answer), answer.json["status"]) == (503, "unavailable", "unready")


HOST: Final = b"Host: x\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"\x16\x03\x01\x02\r\n\r\n", 400, "bad_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"x: " + b"y" * 40_000 + b"\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"x: y\r\n" * 200 + b"\r\n", 400, "bad_request"),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"Expect: more\r\n\r\n", 417, "bad_request"),
        (
            b"POST /v1/ingest HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
            "unsupported_encoding",
        ),
        (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 405, "method_not_allowed"),
    ],
    ids=["no HTTP", "HTTP/2", "no Host", "long head", "many headers", "Expect", "Transfer-Encoding", "TRACE"],
)
async def test_what_http_itself_refuses(doors: Doors, sent: bytes, status: int, reason: str) -> None:
    reader, writer = await doors.connect()
    writer.write(sent)
    answer = await read_answer(reader)
    assert (answer.status, reason_of(answer)) == (status, reason)
    writer.close()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    return Answer(int(head[0].split()[1]), headers, await reader.readexactly(int(headers["Content-Length"])))


async def test_the_gate_and_the_bound_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_doors(connections=1) as doors:
        answer = await doors.get("/healthz")
        assert answer.status == 200
        reader, writer = await doors.connect()
        writer.write(b"GET /v1/quota HTTP/1.1\r\n" + HOST + b"\r\n")
        refused = await read_answer(reader)
        assert (refused.status, reason_of(refused)) == (503, "unavailable")
        writer.close()
        monkeypatch.setattr("server.http_api.gate.PER_TURN", 0)
        monkeypatch.setattr("server.http_api.gate.PATIENCE", 0.1)
        held = await doors.post(BODY)
        assert (held.status, reason_of(held)) == (503, "unavailable")


async def test_the_stream_says_why_it_ends(doors: Doors) -> None:
    async with doors.session.get(f"{doors.url}/v1/stream/users", headers={"x-api-key": SECRET}) as response:
        assert response.status == 200
        doors.add_key(SECRET, revoked=1)
        text = (await asyncio.wait_for(response.content.read(), PATIENCE)).decode()
    assert text.rstrip().endswith('event: error\ndata: {"error":"Invalid API key","reason":"unauthenticated"}')


async def test_every_route_refuses_with_a_reason(tmp_path: Path) -> None:
    async with open_office(tmp_path) as (doors, _):
        app = create_app(doors.services, desk=object(), registry=CollectorRegistry())  # type: ignore[arg-type]
        names = dict.fromkeys(("user_id", "name", "id", "event_id", "trace_id", "session_id"), "x")
        names["digest"] = "0" * 16
        unknown = {("POST", "/v1/metrics"), ("POST", "/v1/logs"), ("GET", f"/page/{'0' * 16}/x")}
        routes = {
            (route.method, route.resource.canonical.format(**names))
            for route in app.router.routes()
            if route.resource is not None
        }
        assert len(routes) > 30
        for path in sorted({path for _, path in routes}):
            for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
                headers = {"x-api-key": UNKNOWN}
                async with doors.session.request(method, doors.url + path, headers=headers) as response:
                    answer = Answer(response.status, dict(response.headers), await response.read())
                if (method, path) not in routes:
                    assert (answer.status, reason_of(answer)) == (405, "method_not_allowed"), (method, path)
                elif (method, path) in unknown:
                    assert (answer.status, reason_of(answer)) == (404, "not_found"), (method, path)
                elif path.startswith("/v1/"):
                    assert (answer.status, reason_of(answer)) == (401, "unauthenticated"), (method, path)
                else:
                    assert answer.status == 200, (method, path)


# --- the admin API ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("PUT", "/v1/admin/orgs/acme", b'{"monthlyQuota":-1}', 400, "bad_request"),
        ("PUT", "/v1/admin/orgs/acme", b"no JSON", 400, "bad_request"),
        ("PUT", "/v1/admin/orgs/acme", b'{"more":1}', 400, "bad_request"),
        ("PUT", "/v1/admin/orgs/acme", b" " * 70_000, 413, "too_large"),
        ("PUT", "/v1/budgets?projectId=nothing", b'{"usd":1,"window":"day"}', 403, "forbidden"),
        ("POST", "/v1/admin/keys/nothing/revoke", b"", 404, "not_found"),
        ("PUT", "/v1/admin/projects/web", b'{"organization":"beta"}', 409, "conflict"),
        ("GET", "/v1/admin/nothing", b"", 404, "not_found"),
        ("DELETE", "/v1/budgets/nothing", b"", 404, "not_found"),
    ],
)
async def test_administration(tmp_path: Path, method: str, path: str, body: bytes, status: int, reason: str) -> None:
    async with open_office(tmp_path) as (doors, key):
        async with doors.session.request(method, doors.url + path, data=body, headers={"x-api-key": key}) as response:
            answer = Answer(response.status, dict(response.headers), await response.read())
        assert (answer.status, reason_of(answer)) == (status, reason)


# --- gRPC ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind", "raw", "key", "code", "reason"),
    [
        ("IngestService/Ingest", pb.IngestResponse, b"", SECRET, "INVALID_ARGUMENT", "bad_batch"),
        ("IngestService/Ingest", pb.IngestResponse, b"\xff", SECRET, "INVALID_ARGUMENT", "bad_batch"),
        ("IngestService/Ingest", pb.IngestResponse, b"x" * (20 << 20) + b"x", SECRET, "INVALID_ARGUMENT", "too_large"),
        ("IngestService/Ingest", pb.IngestResponse, b"", UNKNOWN, "UNAUTHENTICATED", "unauthenticated"),
        ("IngestService/Ingest", pb.IngestResponse, b"", READ_ONLY, "PERMISSION_DENIED", "forbidden"),
        ("UsageService/ListUsers", usage_pb2.ListUsersResponse, b"", INGEST_ONLY, "PERMISSION_DENIED", "forbidden"),
        ("UsageService/ListUsers", usage_pb2.ListUsersResponse, b"\xff", SECRET, "INVALID_ARGUMENT", "bad_request"),
        ("UsageService/GetUser", usage_pb2.GetUserResponse, b"", None, "UNAUTHENTICATED", "unauthenticated"),
        ("UsageService/GetCosts", usage_pb2.GetCostsResponse, b"", None, "UNAUTHENTICATED", "unauthenticated"),
        ("UsageService/GetQuota", usage_pb2.GetQuotaResponse, b"", None, "UNAUTHENTICATED", "unauthenticated"),
    ],
)
async def test_calls(
    doors: Doors, method: str, kind: type[Message], raw: bytes, key: str | None, code: str, reason: str
) -> None:
    call = doors.unary(method, kind)(raw, metadata=key_metadata(key))
    assert await failed(call) == (grpc.StatusCode[code], reason)


async def test_streams_and_health(doors: Doors) -> None:
    watch: Any = doors.channel.unary_stream("/spendstream.v1.UsageService/WatchUsers")
    assert await failed(watch(b"").read()) == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")
    assert await failed(doors.stream(secret=UNKNOWN).read()) == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")
    health: Any = health_pb2_grpc.HealthStub(doors.channel)
    unknown = health.Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert await failed(unknown) == (grpc.StatusCode.NOT_FOUND, "not_found")


async def test_a_stream_whose_key_ends(doors: Doors) -> None:
    stream = doors.stream()
    await stream.write(to_request([make_event()], 1))
    assert (await stream.read()).accepted == 1
    doors.add_key(SECRET, revoked=1)
    last: pb.IngestResponse = await asyncio.wait_for(stream.read(), PATIENCE)
    assert isinstance(last.status, status_pb2.Status)
    assert info_of(last.status) == "unauthenticated"
