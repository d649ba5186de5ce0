"""Spans of requests and calls, named by OpenTelemetry's semantic conventions for HTTP and RPC servers."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
from aiohttp import web

from processor import tracing

PROBES: Final = {"/healthz", "/readyz", "/metrics"}
"""Paths without a span: they are requested every few seconds."""

BROKEN: Final = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}

T = TypeVar("T")


@web.middleware
async def trace_requests(request: web.Request, handler: Any) -> web.StreamResponse:
    """Make a span for each request, a stream included. It has the route, not the path: that may contain a user's id."""
    resource = request.match_info.route.resource
    route = "" if resource is None else resource.canonical
    if route in PROBES:
        found: web.StreamResponse = await handler(request)
        return found
    attributes = {"http.request.method": request.method, "url.scheme": request.scheme, "http.route": route}
    with tracing.server_span(f"{request.method} {route}".rstrip(), request.headers, attributes) as span:
        response: web.StreamResponse = await handler(request)
        span.set_attribute("http.response.status_code", response.status)
        if response.status >= 500:
            tracing.fail(span, str(response.status))
        return response


async def trace_call(
    service: str,
    method: str,
    metadata: dict[str, str],
    code: Callable[[], grpc.StatusCode | None],
    answer: Awaitable[T],
) -> T:
    """Await `answer` within a span of its call; a stream is one call."""
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    with tracing.server_span(f"{service}/{method}", metadata, attributes) as span:
        try:
            return await answer
        finally:
            found = code() or grpc.StatusCode.OK
            span.set_attribute("rpc.grpc.status_code", found.value[0])
            if found in BROKEN:
                tracing.fail(span, found.name)
