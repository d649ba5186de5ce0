"""A client of the live feed that reconnects to the server and resumes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import msgspec
from msgspec import Raw

from server.cli.output import say
from server.cli.remote import ServerSent, StreamMessage, events_of, refusal

PAUSE: Final = 1.0
"""Seconds until the next try after the connection was lost."""
PERMANENT: Final = {400, 401, 403, 404, 405}
"""HTTP statuses for which a retry does not help."""


_message = msgspec.json.Decoder(StreamMessage).decode


async def follow(url: str, key: str, users: tuple[str, ...]) -> AsyncIterator[tuple[str, StreamMessage]]:
    """Yield the feed's events, for ever. Raises `Refused` or `Unanswered` when a retry would not help."""
    last_id = ""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)  # longer than between two heartbeats
    async with aiohttp.ClientSession(timeout=timeout, headers={"x-api-key": key}) as session:
        while True:
            try:
                async for event in _events(session, url, users, last_id):
                    last_id = event.id
                    if event.kind == "budget":
                        yield event.kind, StreamMessage(budget=Raw(event.data))
                        continue
                    message = _message(event.data)
                    if message.error is not None:
                        break  # the server has ended the stream; the next try shows why
                    yield event.kind, message
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                say(f"spendstream: {url}: {str(error) or type(error).__name__}; trying again", err=True)
            await asyncio.sleep(PAUSE)


async def _events(
    session: aiohttp.ClientSession, url: str, users: tuple[str, ...], last_id: str
) -> AsyncIterator[ServerSent]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    params = [("user_id", user) for user in users]
    async with session.get(f"{url}/v1/stream/users", params=params, headers=headers) as response:
        if response.status in PERMANENT:
            raise refusal(url, response.status, await response.read())
        response.raise_for_status()
        async for event in events_of(response.content.iter_any()):
            yield event
