"""`spendstream demo`: fill a project of its own with a month of made-up traffic for the page to show."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from processor.settings import Settings
from processor.wall_clock import now
from server.cli.common import fail, load_or_exit
from server.cli.demo_traffic import month
from server.cli.grouped_help import Command
from server.cli.keys import administration
from server.cli.output import say
from server.cli.progress import progress_bar
from server.cli.remote import PATIENCE, Question, Unanswered, ask, local_url, refusal, url_option
from server.cli.settings_flags import settings_options
from server.errors import Refused
from server.ingest.intake import MAX_EVENTS
from server.processes import server_address
from server.status import NDJSON, POSITION
from server.tenancy.administration import NewKey

if TYPE_CHECKING:
    import aiohttp

PROJECT: Final = "demo"
URL: Final = (
    "Fill this server  [default: the one that runs on the data directory, or http:// and SPENDSTREAM_HTTP_BIND]"
)
TRIES: Final = 20
APART: Final = 0.25
"""Seconds between two tries: a new key is known to the server within a second."""


@click.command(cls=Command)
@url_option("--url", URL, default=None)
@click.option(
    "--traces", metavar="N", type=click.IntRange(1, 100_000), default=3000, show_default=True, help="Runs of an agent"
)
@settings_options(Settings, "data_dir", "broker")
def demo(url: str | None, traces: int, **flags: Any) -> None:
    """Fill a project with a month of made-up traffic.

    Sends traces of an agent with tools, sessions, versions of prompts and scores to the project `demo`, which it makes,
    and prints a key to sign in with. It refuses a project that has events. Runs beside the server's data directory.
    """
    url = url or _running(flags)
    with administration(flags) as admin:
        secret, key = admin.create_key(NewKey(project=PROJECT))
    problem = f"The project {PROJECT!r} has events already: nothing was sent"
    sent = 0
    try:
        sent = asyncio.run(_fill(url, secret, traces))
    except Refused as refused:
        problem = refused.message
    except Unanswered as error:
        problem = str(error)
    if not sent:
        with administration(flags) as admin:
            admin.revoke(key.id)
        fail(problem)
    say(f"{sent:,} events are in the project {PROJECT}. Sign in at {url}/ with this key:")
    say(secret)


def _running(flags: dict[str, Any]) -> str:
    """Return the address of the server that is meant where none is named."""
    found = server_address.find(load_or_exit(Settings, dict(flags)).data_dir)
    return found or local_url()


async def _fill(url: str, key: str, traces: int) -> int:
    """Send the traffic; return the number of events, 0 if the project has some. Raises `Unanswered` and `Refused`."""
    import aiohttp

    if not await _is_empty(url, key):
        return 0
    events = list(month(traces, datetime.fromtimestamp(now() / 1_000_000, UTC)))
    position = ""
    headers = {"x-api-key": key, "Content-Type": NDJSON}
    with progress_bar("demo") as bar:
        show = bar("")
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(PATIENCE)) as session:
            for done, body in _bodies(events):
                position = await _send(session, url, body)
                show(done, len(events))
    await ask(url, key, Question("/v1/users", {"limit": "1", "after": position}))  # the tables contain all of it
    return len(events)


async def _send(session: "aiohttp.ClientSession", url: str, body: bytes) -> str:
    """Send a request, again while the server says "not now"; return its position. Raises `Unanswered` and `Refused`."""
    import aiohttp

    for left in reversed(range(TRIES)):
        try:
            async with session.post(f"{url.rstrip('/')}/v1/ingest", data=body) as response:
                text = await response.read()
                if response.status == HTTPStatus.ACCEPTED:
                    return str(response.headers[POSITION])
                refused = refusal(url, response.status, text)
                if not refused.retryable or not left:
                    raise refused
                await asyncio.sleep(min(5, int(response.headers.get("Retry-After", 1))))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unanswered(f"no answer from {url}: {str(error) or type(error).__name__}") from None
    raise Unanswered(f"{url} took no batch in {TRIES} tries")


async def _is_empty(url: str, key: str) -> bool:
    """Return whether the project has no event; waits until the server knows the key. Raises as `ask` does."""
    for left in reversed(range(TRIES)):
        try:
            answer = msgspec.json.decode(await ask(url, key, Question("/v1/users", {"limit": "1"})))
            return bool(answer["total"]["requests"] == 0)
        except Refused as refused:
            if refused.reason != "unauthenticated" or not left:
                raise
        await asyncio.sleep(APART)
    return False


def _bodies(events: list[dict[str, Any]]) -> Iterator[tuple[int, bytes]]:
    """Yield how many events are sent after each request, and its body."""
    for start in range(0, len(events), MAX_EVENTS):
        part = events[start : start + MAX_EVENTS]
        yield start + len(part), b"".join(msgspec.json.encode(event) + b"\n" for event in part)
