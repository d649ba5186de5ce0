"""A live view with real tables behind it, and clients of its feed over either wire that keep a table of their own."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain, count
from typing import Any, Final

import aiohttp
import grpc
from yarl import URL

from processor.core.clock import format_timestamp
from processor.view.view import View
from processor.view.view_follower import Arrivals
from protos.spendstream.v1 import usage_pb2
from server.alerts.notices import BudgetNotices
from server.live.feed import Feed
from tests.support.tables import NOON, Usage, Worker
from tests.support.truth import plain_decimal

IDENTITY: Final = "fa4e"

Row = dict[str, Any]
"""A user's row as JSON has it, its numbers with all their digits."""


class Live:
    """A view that real tables are brought into, and its feed."""

    def __init__(self, partitions: int = 2) -> None:
        self.worker = Worker(partitions)
        self.view = View()
        self.arrivals = Arrivals(self.view)
        self.notices = BudgetNotices(lambda: NOON)
        self.feed = Feed(self.view, self.arrivals, IDENTITY, notices=self.notices)

    def bring(self, *events: Usage, project: str = "default", at: int = NOON) -> None:
        """One request, as far as the view and whoever waits for it."""
        self.worker.send(events, project=project)
        for partition, records in enumerate(self.worker.work_all()):
            self.view.apply(partition, records)
        self.view.mark_current(at)
        self.arrivals.notify()


@dataclass
class Event:
    """One server-sent event, or one `WatchUsersResponse` in the same words."""

    kind: str
    id: str
    rows: list[Row]
    as_of: str = ""
    data: Any = None


@dataclass
class Follower:
    """The table a subscriber has been told, and where it resumes."""

    table: dict[str | None, Row] = field(default_factory=dict)
    token: str = ""
    events: int = 0
    snapshots: int = 0

    def take(self, event: Event) -> None:
        """Take in one event."""
        self.events += 1
        if event.kind == "snapshot":
            self.snapshots += 1
            self.table.clear()
        for row in event.rows:
            self.table[row["user_id"]] = row
        self.token = event.id


# --- server-sent events ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def sse(
    http: str, key: str, token: str = "", *, query: str = "", **headers: str
) -> AsyncIterator[AsyncIterator[Event]]:
    """Subscribe over HTTP; gives the events. Raises `aiohttp.ClientResponseError` for a refusal."""
    sent = {"x-api-key": key} | {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        sent["Last-Event-ID"] = token
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    url = URL(f"http://{http}/v1/stream/users{query}", encoded=True)
    async with (
        aiohttp.ClientSession(timeout=timeout, read_bufsize=1 << 22) as session,
        session.get(url, headers=sent) as response,
    ):
        response.raise_for_status()
        assert response.content_type == "text/event-stream"
        yield _events(response.content)


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[Event]:
    """By the book: fields until a blank line, comments passed over, an event without data is none."""
    fields: dict[str, str] = {}
    buffer = b""
    async for chunk in content.iter_any():
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            if line:
                name, _, value = line.decode().partition(":")
                fields[name] = value.removeprefix(" ")
            elif "data" in fields:
                data = json.loads(fields["data"], parse_float=plain_decimal)
                yield Event(fields["event"], fields.get("id", ""), data.get("users", []), data.get("asOf", ""), data)
                fields = {}
            else:
                fields = {}


# --- gRPC ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def watch(address: str, key: str, token: str = "", **request: Any) -> AsyncIterator[AsyncIterator[Event]]:
    """Subscribe over gRPC; gives the events. Iterating raises `grpc.aio.AioRpcError`."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        method: Any = channel.unary_stream(
            "/spendstream.v1.UsageService/WatchUsers",
            request_serializer=usage_pb2.WatchUsersRequest.SerializeToString,
            response_deserializer=usage_pb2.WatchUsersResponse.FromString,
        )
        asked = usage_pb2.WatchUsersRequest(resume_token=token or None, **request)
        call = method(asked, metadata=(("x-api-key", key),))
        try:
            yield _responses(call)
        finally:
            call.cancel()


async def _responses(call: Any) -> AsyncIterator[Event]:
    async for response in call:
        if response.HasField("budget"):
            data = {field.name: value for field, value in response.budget.ListFields()}
            numbers = {name: Decimal(data[name]) for name in ("usd", "spent")}
            yield Event("budget", response.resume_token, [], data={"user_id": None, "model": None, **data, **numbers})
            continue
        kind = "snapshot" if response.snapshot else "update"
        yield Event(kind, response.resume_token, [_row(row) for row in response.users], response.as_of)


def _row(row: usage_pb2.UserRow) -> Row:
    """The row as JSON has it."""
    names = ("requests", "errors", "input_tokens", "output_tokens", "cached_tokens")
    cost = Decimal(row.sums.cost_usd)
    return {
        "user_id": row.user_id if row.HasField("user_id") else None,
        **{name: getattr(row.sums, name) for name in names},
        "cost_usd": int(cost) if cost == int(cost) else cost,
        "unpriced": row.sums.unpriced,
        "first_seen": row.first_seen or None,
        "last_seen": row.last_seen or None,
    }


NOON_TEXT: Final = format_timestamp(NOON)


async def follow_until(
    subscribe: Callable[[str], AbstractAsyncContextManager[AsyncIterator[Event]]],
    follower: Follower,
    is_done: Callable[[], bool],
    disconnects: Sequence[float],
) -> int:
    """Follow a feed until `is_done()`, breaking off after each of `disconnects` (seconds); returns how often it was.

    What the server or the network breaks off is resumed too, and not counted. After that connections last longer and
    longer: rows that are sent together count only when all of them have come.
    """
    broken = 0
    for seconds in chain(disconnects, (min(5.0, 0.5 * 1.5**number) for number in count())):
        try:
            async with asyncio.timeout(seconds), subscribe(follower.token) as events:
                async for event in events:
                    assert event.kind in {"snapshot", "update"}, event
                    follower.take(event)
        except TimeoutError:
            broken += 1
        except (grpc.aio.AioRpcError, aiohttp.ClientError, OSError):
            await asyncio.sleep(0.05)
        if broken >= len(disconnects) and is_done():
            break
    return broken
