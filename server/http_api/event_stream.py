"""New events as server-sent events (WHATWG HTML, section 9.2): `GET /v1/stream/events`."""

import msgspec
from aiohttp import web

from server.explore.question_params import parse_new_events
from server.http_api.explore_requests import inquiry_of, is_gone, secret_in
from server.http_api.server_sent_events import send_events
from server.live.event_feed import EventFrame
from server.services import Services
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
    return await send_events(request, services.event_feed.frames(subscription), lambda frame: frame.encoded(event))


def event(frame: EventFrame) -> bytes:
    """Return a frame as one event."""
    data = b'{"events":%b,"skipped":%d' % (frame.events, frame.skipped)
    if frame.as_of is not None:
        data += b',"asOf":%b,"lagSeconds":%b' % (msgspec.json.encode(frame.as_of), msgspec.json.encode(frame.lag))
    return b"id: %b\nevent: events\ndata: %b}\n\n" % (frame.token.encode(), data)
