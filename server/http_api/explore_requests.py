"""Requests that ask about events: their key and parameters, and answers that stop where their client has left."""

import asyncio
import socket
import struct
from collections.abc import Coroutine
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from aiohttp import hdrs, web

from server.errors import Refused
from server.explore.explorer import Download
from server.explore.question_params import Inquiry
from server.explore.questions import Question
from server.http_api.connections import Connection
from server.limits.refusal_pacing import questions_of
from server.services import Services, secret_of

CHECK_EVERY: Final = 0.4
"""Seconds between two checks whether the client is still there."""
_NO_LINGER: Final = struct.pack("ii", 1, 0)

T = TypeVar("T")


def secret_in(request: web.Request) -> str | None:
    """Return the secret of the request's key."""
    return secret_of(request.headers.get("x-api-key"), request.headers.get(hdrs.AUTHORIZATION))


def inquiry_of(services: Services, request: web.Request) -> Inquiry:
    """Return a read as it was sent. Raises `Refused` for its key, and where there is no event store to ask."""
    key = services.authenticate(secret_in(request), "read")
    services.explorer.check()
    return Inquiry(key.project, tuple(request.query.items()), services.clock(), services.identity)


def id_in_path(request: web.Request, folder: str) -> str:
    """Return what follows `folder` in the path, decoded once; the router's match would leave `%2F` undecoded."""
    text = unquote(request.rel_url.raw_path.removeprefix(folder))
    return text.encode(errors="replace").decode()


def is_gone(request: web.Request) -> bool:
    """Return whether the client has left."""
    return request.transport is None or request.transport.is_closing()


def has_ended(request: web.Request) -> bool:
    """Return whether the client has closed its side; most that do have left, and the others are told by a reset."""
    return isinstance(request.protocol, Connection) and request.protocol.has_ended


async def while_connected(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; cancel it and raise `ConnectionError` if the client leaves before.

    One that has only closed its side gets what is answered within `CHECK_EVERY`.
    """
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait((task,), timeout=CHECK_EVERY))[0]:
            if is_gone(request) or has_ended(request):
                reset(request)
                raise ConnectionResetError("The client has left")
        return task.result()
    finally:
        task.cancel()


async def begin_answer(services: Services, request: web.Request, question: Question) -> Download:
    """Begin to answer a question while its client is there. Raises `ConnectionError`, and `Refused`: the refusals of a
    project are paced, as those of batches are, so that one that asks on and on does not take the loop from others."""
    try:
        return await while_connected(request, services.explorer.stream(question))
    except Refused as refused:
        await services.throttle.pace(questions_of(question.project), refused)
        raise


def reset(request: web.Request) -> None:
    """End the connection so that the client sees an error, even one that reads until the connection ends."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
