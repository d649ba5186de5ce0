"""The second baseline: what a good Python developer would write instead of a stream application.

FastAPI in front of PostgreSQL: a request is one transaction and one round trip, which takes the ids that are new
(`ON CONFLICT DO NOTHING`) and adds their sums to the rows of users (`ON CONFLICT DO UPDATE`); the commit is on the disk
before the answer. It is exact. It is spared what the product does besides: quota windows, rows by hour, conflicts,
errors that name line and field, a second wire.
"""

import asyncio
import gzip
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response

from processor.core.clock import DAY, parse_timestamp

CONNECTIONS: Final = 8
PICO: Final = 10**12
FAILED: Final = {"error", "timeout", "rate_limited"}

SCHEMA: Final = """
CREATE TABLE event (event_id uuid PRIMARY KEY, body text NOT NULL);
CREATE TABLE cost (
    user_id text, day integer, provider text, model text, environment text,
    requests bigint NOT NULL, errors bigint NOT NULL,
    input_tokens bigint NOT NULL, output_tokens bigint NOT NULL, cached_tokens bigint NOT NULL, cost numeric NOT NULL,
    first_seen bigint NOT NULL, last_seen bigint NOT NULL,
    PRIMARY KEY (user_id, day, provider, model, environment)
);
"""

# Both inserts go through their keys in one order, so that two requests never wait for each other.
TAKE: Final = """
WITH sent AS (
    SELECT DISTINCT ON (event_id) * FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::int[], $5::text[], $6::text[], $7::text[],
        $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[]
    ) AS s (event_id, body, user_id, day, provider, model, environment, errors, input, output, cached, cost, at)
    ORDER BY event_id
), fresh AS (
    INSERT INTO event SELECT event_id, body FROM sent ON CONFLICT DO NOTHING RETURNING event_id
)
INSERT INTO cost
SELECT user_id, day, provider, model, environment, count(*), sum(errors), sum(input), sum(output), sum(cached),
    sum(cost), min(at), max(at)
FROM sent JOIN fresh USING (event_id)
GROUP BY user_id, day, provider, model, environment
ORDER BY user_id, day, provider, model, environment
ON CONFLICT (user_id, day, provider, model, environment) DO UPDATE SET
    requests = cost.requests + excluded.requests, errors = cost.errors + excluded.errors,
    input_tokens = cost.input_tokens + excluded.input_tokens,
    output_tokens = cost.output_tokens + excluded.output_tokens,
    cached_tokens = cost.cached_tokens + excluded.cached_tokens, cost = cost.cost + excluded.cost,
    first_seen = least(cost.first_seen, excluded.first_seen), last_seen = greatest(cost.last_seen, excluded.last_seen)
"""

USERS: Final = """
SELECT nullif(user_id, '') AS user_id, sum(requests)::bigint AS requests, sum(errors)::bigint AS errors,
    sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens,
    sum(cached_tokens)::bigint AS cached_tokens, sum(cost) AS cost
FROM cost GROUP BY cost.user_id ORDER BY requests DESC, cost.user_id LIMIT $1 OFFSET $2
"""


class Event(msgspec.Struct):
    """What of an event the tables need; the rest is kept as it was sent."""

    event_id: UUID
    timestamp: str
    provider: str
    model: str
    environment: str
    status: str
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    user_id: str | None = None
    cached_tokens: int = 0


_decode = msgspec.json.Decoder(Event).decode


def create_app(dsn: str, key: str) -> FastAPI:
    """The whole application."""
    state: dict[str, asyncpg.Pool] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with asyncpg.create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS) as state["pool"]:
            await state["pool"].execute(SCHEMA)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/ingest")
    async def ingest(request: Request) -> Response:
        if request.headers.get("x-api-key") != key:
            return Response('{"error":"Invalid API key"}', 401)
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        lines = [line for line in body.split(b"\n") if line]
        try:
            events = list(map(_decode, lines))
            rows = [_row(event, line) for event, line in zip(events, lines, strict=True)]
        except (msgspec.MsgspecError, ValueError) as error:
            return Response(json.dumps({"error": str(error)}), 400)
        async with state["pool"].acquire() as connection:
            await connection.execute(TAKE, *map(list, zip(*rows, strict=True)))
        return Response(b'{"accepted":%d}' % len(events), 202, media_type="application/json")

    @app.get("/v1/users")
    async def users(limit: int = 50, cursor: int = 0) -> Response:
        async with state["pool"].acquire() as connection:
            rows = [dict(row) for row in await connection.fetch(USERS, limit, cursor)]
            total = await connection.fetchval("SELECT coalesce(sum(requests), 0)::bigint FROM cost")
        for row in rows:
            row["cost_usd"] = msgspec.Raw(f"{row.pop('cost') / PICO:f}".encode())
        following = str(cursor + limit) if len(rows) == limit else None
        found: dict[str, Any] = {"users": rows, "total": {"requests": total}, "nextCursor": following}
        return Response(msgspec.json.encode(found), media_type="application/json")

    return app


def _row(event: Event, line: bytes) -> tuple[Any, ...]:
    at = parse_timestamp(event.timestamp)
    return (
        event.event_id,
        line.decode(),
        event.user_id or "",  # nobody's: a key has no null
        at // DAY,
        event.provider,
        event.model,
        event.environment,
        int(event.status in FAILED),
        event.input_tokens,
        event.output_tokens,
        event.cached_tokens,
        int(event.cost_usd * PICO),
        at,
    )


async def _run(dsn: str, key: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(dsn, key), log_level="warning", loop="uvloop", http="httptools")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: setattr(server, "should_exit", True))
    while not server.started and not serving.done():  # noqa: ASYNC110 - it has nothing to wait for
        await asyncio.sleep(0.01)
    print(json.dumps({"event": "ready", "http": f"127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(_run(*sys.argv[1:]))
