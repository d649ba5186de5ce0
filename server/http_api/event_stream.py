"""New events as server-sent events (WHATWG HTML, section 9.2): `GET /v1/stream/events`."""

import asyncio
from contextlib import aclosing, suppress

import msgspec
from aiohttp import web

from server.errors import Refused
from server.explore.params import parse_new_events
from server.http_api.explore_requests import inquiry_of, is_gone, secret_in
from server.http_api.user_stream import HEADERS, HEARTBEAT, HELLO
from server.live.event_feed import EventFrame
from server.services import Services
from server.status import http_body
from server.tenancy.keys import Key


async def stream_events(services: Services, request: web.Request) -> web.StreamResponse:
    """Answer with events until the client leaves, its key ends or the server stops.

    Raises `Refused` only before the first event.
    """
    secret = secret_in(request)

    def check() -> Key:
        return services.authenticate(secret, "read")

    question, parameter = parse_new_events(inquiry_of(services, request))
    # A browser that reconnects repeats the URL, so its header is newer than the parameter.
    token = request.headers.get("Last-Event-ID") or parameter
    subscription = await services.event_feed.open(secret, check, question, token, lambda: is_gone(request))
    response = web.StreamResponse(headers=HEADERS)
    response.enable_chunked_encoding() if request.version >= (1, 1) else response.force_close()
    try:
        await response.prepare(request)
        await response.write(HELLO)
        async with aclosing(services.event_feed.frames(subscription)) as frames:
            async for frame in frames:
                await response.write(HEARTBEAT if frame is None else frame.encoded(event))
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


def event(frame: EventFrame) -> bytes:
    """Return a frame as one event."""
    data = b'{"events":%b,"skipped":%d' % (frame.events, frame.skipped)
    if frame.as_of is not None:
        data += b',"asOf":%b,"lagSeconds":%b' % (msgspec.json.encode(frame.as_of), msgspec.json.encode(frame.lag))
    return b"id: %b\nevent: events\ndata: %b}\n\n" % (frame.token.encode(), data)
