"""Access logs, off by default: a line for each request and call, with the key's prefix as listed, never the key."""

import time
from typing import Any, Final

import grpc
from aiohttp import web

from processor.structured_log import structlog
from server.tenancy.keys import is_well_formed

GONE: Final = 499
"""The status that is logged for a request whose client went away, as nginx does."""
PREFIX: Final = 12

log = structlog.get_logger("spendstream.access")


@web.middleware
async def log_requests(request: web.Request, handler: Any) -> web.StreamResponse:
    """Log each request. The outermost middleware, so that it sees the final response. A stream is logged at its end."""
    began = time.monotonic()
    status, size = GONE, 0
    try:
        response: web.StreamResponse = await handler(request)
        status, size = response.status, response.body_length
        return response
    finally:
        resource = request.match_info.route.resource
        log.info(
            "http.request",
            method=request.method,
            path="" if resource is None else resource.canonical,  # not the path: that may contain a user's id
            status=status,
            bytes_in=request.content_length,
            bytes_out=size,
            ms=_milliseconds(began),
            peer=request.remote,
            key=prefix_of(request.headers.get("x-api-key") or request.headers.get("Authorization", "")[7:]),
        )


def log_call(method: str, code: grpc.StatusCode, began: float, peer: str, secret: str | None) -> None:
    """Log a gRPC call that has ended; a stream is one call. `began` is from `time.monotonic`."""
    log.info("grpc.call", method=method, code=code.name, ms=_milliseconds(began), peer=peer, key=prefix_of(secret))


def prefix_of(secret: str | None) -> str | None:
    """Return the prefix by which a key is listed; None for text that is not a key."""
    return secret[:PREFIX] if secret is not None and is_well_formed(secret) else None


def _milliseconds(began: float) -> float:
    return round(1000 * (time.monotonic() - began), 1)
