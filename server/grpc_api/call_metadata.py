"""What a call begins with: its metadata and its message, and the pace of calls without a valid key."""

import asyncio
from typing import Any, Final

import grpc

from server.errors import Refused
from server.limits.connection_watch import parse_peer
from server.services import Services

Context = grpc.aio.ServicerContext[Any, Any]

MESSAGE_TIMEOUT: Final = 120.0
"""Seconds for the message of a call, as for a body over HTTP."""


def metadata_of(context: Context) -> dict[str, str]:
    """Return the text metadata of a call; values of the same name are joined like those of an HTTP header."""
    found: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            found[name] = f"{found[name]},{value}" if name in found else value
    return found


async def pace_stranger(services: Services, context: Context, refused: Refused) -> None:
    """Let a caller without a valid key wait for the answer, by its address, as over HTTP."""
    if refused.reason == "unauthenticated":
        await services.throttle.pace(parse_peer(context.peer())[0], refused)


async def message_of(context: Context, patience: float | None = None) -> bytes:
    """Return the one message of a call. Raises `Refused("bad_request")` if none has come after `patience` seconds
    (`MESSAGE_TIMEOUT`).

    The message may come long after the headers, or never, and meanwhile the call is one of those that all clients
    share. So no handler is of gRPC's kind that waits for it before anything: the key comes first.
    """
    seconds = MESSAGE_TIMEOUT if patience is None else patience
    try:
        async with asyncio.timeout(seconds):
            raw: Any = await context.read()
    except TimeoutError:
        raise Refused("bad_request", f"The message did not arrive within {seconds:.0f} seconds") from None
    if raw is grpc.aio.EOF:
        raise Refused("bad_request", "The call has no message")
    return bytes(raw)
