"""The live feed as server-sent events (WHATWG HTML, section 9.2): `GET /v1/stream/users`."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Final

from aiohttp import hdrs, web

from processor.core.clock import format_timestamp
from server.alerts.budget_json import budget_reached
from server.alerts.budgets import Reached
from server.errors import Refused
from server.live.frames import Frame
from server.reads import read_json
from server.services import Services, secret_of
from server.status import API_HEADERS, http_body
from server.tenancy.keys import Key

HEADERS: Final = {
    **API_HEADERS,
    "Content-Type": "text/event-stream",
    "X-Accel-Buffering": "no",  # proxies that know the header pass events on without buffering
}
HELLO: Final = b": spendstream\nretry: 1000\n\n"
HEARTBEAT: Final = b": heartbeat\n\n"


async def stream_users(services: Services, request: web.Request) -> web.StreamResponse:
    """Answer with events until the client leaves, its key ends or the server stops.

    Raises `Refused` only before the first event.
    """
    secret = secret_of(request.headers.get("x-api-key"), request.headers.get(hdrs.AUTHORIZATION))

    def check() -> Key:
        return services.authenticate(secret, "read")

    check()  # before anything else of the request
    params = _first(request)
    subscription = await services.feed.open(
        secret,
        check,
        {name: value for name, value in params.items() if name != "after"},
        request.query.getall("user_id", ()),
        # A browser that reconnects repeats the URL, so its header is newer than the parameter.
        request.headers.get("Last-Event-ID") or params.get("lastEventId"),
        params.get("after"),
        lambda: request.transport is None or request.transport.is_closing(),
    )
    response = web.StreamResponse(headers=HEADERS)
    response.enable_chunked_encoding() if request.version >= (1, 1) else response.force_close()
    try:
        await response.prepare(request)
        await response.write(HELLO)
        async with aclosing(services.feed.frames(subscription)) as frames:
            async for frame in frames:
                await response.write(_written(frame))
    except Refused as refused:
        with suppress(ConnectionError):
            await response.write(b"event: error\ndata: %b\n\n" % http_body(refused))
    except ConnectionError:  # the client went away
        return response
    except asyncio.CancelledError:
        if request.transport is not None:
            request.transport.abort()  # the client does not read: do not wait until it has
        raise
    await response.write_eof()
    return response


def _first(request: web.Request) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query.items():
        found.setdefault(name, value)
    return found


def _written(frame: Frame | Reached | None) -> bytes:
    if frame is None:
        return HEARTBEAT
    return frame.encoded("sse", event) if isinstance(frame, Frame) else budget_event(frame)


def budget_event(reached: Reached) -> bytes:
    """Return a reached budget as one event, without an `id:`, as a stream cannot be resumed there."""
    return b"event: budget\ndata: %b\n\n" % read_json.encode(budget_reached(reached))


def event(frame: Frame) -> bytes:
    """Return a frame as one event."""
    kind = b"snapshot" if frame.snapshot else b"update"
    data = read_json.user_rows(frame.rows), format_timestamp(frame.as_of).encode()
    return b'id: %b\nevent: %b\ndata: {"users":%b,"asOf":"%b"}\n\n' % (frame.token.encode(), kind, *data)
