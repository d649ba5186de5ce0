"""The live feed as server-sent events (WHATWG HTML, section 9.2): `GET /v1/stream/users`."""

from collections.abc import Mapping

from aiohttp import hdrs, web

from processor.core.clock import format_timestamp
from server.alerts.budget_json import budget_reached
from server.alerts.budgets import Reached
from server.http_api.server_sent_events import send_events
from server.live.frames import Frame
from server.reads import read_json
from server.services import Services, secret_of
from server.tenancy.keys import Key


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
    return await send_events(request, services.feed.frames(subscription), _written)


def _first(request: web.Request) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query.items():
        found.setdefault(name, value)
    return found


def _written(frame: Frame | Reached) -> bytes:
    return frame.encoded("sse", event) if isinstance(frame, Frame) else budget_event(frame)


def budget_event(reached: Reached) -> bytes:
    """Return a reached budget as one event, without an `id:`, as a stream cannot be resumed there."""
    return b"event: budget\ndata: %b\n\n" % read_json.encode(budget_reached(reached))


def event(frame: Frame) -> bytes:
    """Return a frame as one event."""
    kind = b"snapshot" if frame.snapshot else b"update"
    data = read_json.user_rows(frame.rows), format_timestamp(frame.as_of).encode()
    return b'id: %b\nevent: %b\ndata: {"users":%b,"asOf":"%b"}\n\n' % (frame.token.encode(), kind, *data)
