"""Traces of a running server, received by a collector of the test: the spans of a request, nobody's name in them."""

import asyncio
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from protos.spendstream.v1 import ingest_pb2 as pb
from tests.support.events import make_event, to_ndjson, to_proto
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import KEY, run_cli, server

pytestmark = pytest.mark.slow

MANUAL: Final = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
PARENT: Final = "b7ad6b7169203331"
TRACEPARENT: Final = f"00-{TRACE}-{PARENT}-01"


@dataclass
class Collector:
    """What an OpenTelemetry collector would have received."""

    port: int = 0
    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)
    raw: bytes = b""

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response(content_type="application/x-protobuf")

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    async def wait_for(self, *names: str) -> None:
        async with asyncio.timeout(PROCESS_PATIENCE):
            while not all(self.named(name) for name in names):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", made.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    try:
        yield made
    finally:
        await runner.cleanup()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


async def test_a_request_is_a_span_within_its_senders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with collector() as seen:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{seen.port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        with server(tmp_path / "data", start=False, traces="true") as started:
            await asyncio.to_thread(started.start)
            events = [make_event(event_id=str(uuid.uuid4()), user_id="alice") for _ in range(3)]
            headers = {"x-api-key": KEY, "Content-Type": "application/x-ndjson", "traceparent": TRACEPARENT}
            base = f"http://{started.http}"
            async with aiohttp.ClientSession() as session:
                async with session.post(f"{base}/v1/ingest", data=to_ndjson(events), headers=headers) as response:
                    assert response.status == 202
                async with session.get(f"{base}/v1/users/alice", headers={"x-api-key": "lqt_" + "0" * 64}) as response:
                    assert response.status == 401
                async with session.get(f"{base}/readyz") as response:
                    assert response.status == 200
            async with grpc.aio.insecure_channel(started.grpc) as channel:
                call: Any = channel.unary_unary("/spendstream.v1.IngestService/Ingest")
                request = pb.IngestRequest(events=[to_proto(make_event(event_id=str(uuid.uuid4())))])
                await call(request.SerializeToString(), metadata=(("x-api-key", KEY), ("traceparent", TRACEPARENT)))
                with pytest.raises(grpc.aio.AioRpcError):
                    await call(request.SerializeToString(), metadata=(("x-api-key", "lqt_" + "0" * 64),))
            grpc_name = "spendstream.v1.IngestService/Ingest"
            await seen.wait_for("POST /v1/ingest", "GET /v1/users/{user_id}", grpc_name, "log.append", "tables.flush")
            code, _ = await asyncio.to_thread(started.stop)
            assert code == 0, started.log()
            assert not started.entries("child.killed")

    [ingest] = seen.named("POST /v1/ingest")
    assert (ingest.trace_id.hex(), ingest.parent_span_id.hex()) == (TRACE, PARENT)
    assert ingest.kind == ingest.SPAN_KIND_SERVER
    assert attributes(ingest) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": "/v1/ingest",
        "http.response.status_code": 202,
    }
    inner = {span.name: span for span in seen.spans if span.parent_span_id == ingest.span_id}
    assert set(inner) == {"events.decode", "quota.reserve", "log.append"}
    assert attributes(inner["events.decode"]) == {"events": 3}
    for span in inner.values():
        assert ingest.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= ingest.end_time_unix_nano
    [refused] = seen.named("GET /v1/users/{user_id}")
    assert attributes(refused)["http.response.status_code"] == 401
    assert refused.status.code == refused.status.STATUS_CODE_UNSET  # the caller's doing
    called = {attributes(span)["rpc.grpc.status_code"]: span for span in seen.named(grpc_name)}
    assert set(called) == {0, grpc.StatusCode.UNAUTHENTICATED.value[0]}
    assert called[0].trace_id.hex() == TRACE
    assert not [span for span in seen.spans if "readyz" in span.name]
    assert sum(attributes(span)["messages"] for span in seen.named("tables.flush")) == 2
    roles = {(each["service.name"], each["spendstream.role"]) for each in seen.resources}
    assert roles == {("spendstream", "api"), ("spendstream", "worker")}
    assert all(each["deployment.environment.name"] == "test" for each in seen.resources)
    for secret in (KEY, KEY[4:20], "alice"):
        assert secret.encode() not in seen.raw


def test_a_collector_that_is_away_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with server(tmp_path / "data", start=False, traces="true") as started:
        started.start()
        assert (
            started.cli("loadtest", "--target", f"http://{started.http}", "--key", KEY, "--events", "2000").returncode
            == 0
        )
        code, _ = started.stop()
        assert code == 0, started.log()
        assert not started.entries("child.killed")


def test_off_means_that_nothing_of_it_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, server.api, server.cli.commands, processor.__main__;"
        "list(server.cli.commands.main.commands.values());"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "OTEL_" in run_cli(tmp_path / "data", "serve", "--help").stdout


async def test_the_block_of_the_manual_exports_what_senders_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"^```sh\n(SPENDSTREAM_TRACES=.*?)```", MANUAL.read_text(), re.MULTILINE | re.DOTALL)
    *assigned, program, command = shlex.split(block.replace("\\\n", ""))
    assert (program, command) == ("spendstream", "serve")
    given = dict(each.split("=", 1) for each in assigned)
    assert given.pop("SPENDSTREAM_TRACES") == "true"
    assert given["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
    assert float(given["OTEL_TRACES_SAMPLER_ARG"]) == 0.01
    async with collector() as seen:
        given["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{seen.port}"
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        with server(tmp_path / "data", command, start=False, traces="true") as started:
            await asyncio.to_thread(started.start)
            async with aiohttp.ClientSession() as session:
                for flags in ("00", "01"):
                    headers = {"x-api-key": KEY, "Content-Type": "application/x-ndjson"}
                    headers["traceparent"] = f"00-{TRACE}-{PARENT}-{flags}"
                    body = to_ndjson([make_event()])
                    async with session.post(f"http://{started.http}/v1/ingest", data=body, headers=headers) as said:
                        assert said.status == 202
            assert (await asyncio.to_thread(started.stop))[0] == 0
    [ingest] = seen.named("POST /v1/ingest")
    assert (ingest.trace_id.hex(), ingest.parent_span_id.hex()) == (TRACE, PARENT)
    inner = {span.name for span in seen.spans if span.parent_span_id == ingest.span_id}
    assert inner == {"events.decode", "quota.reserve", "log.append"}
