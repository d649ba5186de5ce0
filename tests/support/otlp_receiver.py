"""A receiver of OTLP on this machine that keeps what it is sent as OTLP JSON, over each of the three protocols."""

import base64
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from aiohttp import web
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.support.otlp import JsonObject, spans_of

PROTOBUF: Final = "application/x-protobuf"


@dataclass
class OtlpReceiver:
    """What came in, request by request."""

    http: str = ""
    grpc: str = ""
    bodies: list[JsonObject] = field(default_factory=list)

    async def over_http(self, request: web.Request) -> web.Response:
        """POST /v1/traces."""
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        if request.content_type == PROTOBUF:
            self.bodies.append(as_json(trace_service_pb2.ExportTraceServiceRequest.FromString(body)))
            return web.Response(content_type=PROTOBUF)
        self.bodies.append(json.loads(body))
        return web.json_response({})

    async def over_grpc(self, request: Any, context: object) -> Any:
        """TraceService/Export."""
        self.bodies.append(as_json(request))
        return trace_service_pb2.ExportTraceServiceResponse()


def as_json(request: Any) -> JsonObject:
    """An ExportTraceServiceRequest in OTLP's own JSON: ids are hex, enumerations are numbers."""
    made: JsonObject = MessageToDict(request, use_integers_for_enums=True)
    for span in spans_of(made):
        for holder in [span, *span.get("links", [])]:
            for name in ("traceId", "spanId", "parentSpanId"):
                if name in holder:
                    holder[name] = base64.b64decode(holder[name]).hex()
    return made


@asynccontextmanager
async def otlp_receiver() -> AsyncIterator[OtlpReceiver]:
    """On two free ports of this machine."""
    made = OtlpReceiver()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/traces", made.over_http)
    runner = web.AppRunner(app, access_log=None, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.http = f"http://127.0.0.1:{runner.addresses[0][1]}"
    served = grpc.aio.server()

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        async def Export(self, request: Any, context: object) -> Any:
            return await made.over_grpc(request, context)

    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), served)  # type: ignore[no-untyped-call]
    made.grpc = f"127.0.0.1:{served.add_insecure_port('127.0.0.1:0')}"
    await served.start()
    try:
        yield made
    finally:
        await served.stop(0)
        await runner.cleanup()
