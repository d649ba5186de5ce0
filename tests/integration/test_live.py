"""The feed of a running server: through ingest, breaks and restarts a subscriber's table ends as `GET /v1/users`."""

import asyncio
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import clients
from tests.support.clients import Tally, reader
from tests.support.live import Follower, Row, follow_until, sse, watch
from tests.support.patience import PROCESS_PATIENCE, mostly_within
from tests.support.server import KEY, Server, server
from tests.support.traffic import make_traffic

EVENTS = 20_000
BREAKS = 50


def subscription(at: Server, wire: str, key: str = KEY) -> Any:
    """`subscribe(token)`; the address is looked up each time."""
    return (lambda token: sse(at.http, key, token)) if wire == "sse" else (lambda token: watch(at.grpc, key, token))


async def listed(at: Server) -> dict[str | None, Row]:
    async with reader(at) as tables:
        tables.page = 1000
        rows, total = await tables.users()
    assert total["users"] == len(rows)
    return {row["user_id"]: row for row in rows}


@pytest.mark.slow
async def test_subscribers_that_break_off_at_random_end_with_the_table(tmp_path: Path) -> None:
    rng = random.Random(14)
    traffic = make_traffic(14, EVENTS, users=1500)
    wires = {"sse": Follower(), "grpc": Follower()}
    done = asyncio.Event()

    def has_all(follower: Follower) -> bool:
        received = sum(row["requests"] for row in follower.table.values())
        return done.is_set() and bool(received == traffic.truth.unique)

    with server(tmp_path / "data") as started:
        breaks = {wire: [rng.uniform(0.0, 0.3) for _ in range(BREAKS)] for wire in wires}
        async with asyncio.timeout(240), asyncio.TaskGroup() as group:
            tasks = {
                wire: group.create_task(
                    follow_until(subscription(started, wire), follower, partial(has_all, follower), breaks[wire])
                )
                for wire, follower in wires.items()
            }
            await clients.send(started, traffic, Tally(), clients.Pace(traffic.events, rate=3000))
            async with reader(started) as tables:
                await tables.caught_up(traffic.truth.unique)
            done.set()
        assert {wire: task.result() >= BREAKS for wire, task in tasks.items()} == {"sse": True, "grpc": True}
        table = await listed(started)
        for wire, follower in wires.items():
            assert follower.table == table, wire
            assert follower.snapshots <= 2, "an id that is resumed brings no second snapshot"


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["sse", "grpc"])
async def test_a_feed_goes_on_after_a_crash_without_a_snapshot(tmp_path: Path, wire: str) -> None:
    traffic = make_traffic(15, 3000, users=300)
    half = len(traffic.http) // 2
    follower = Follower()
    expected = 0

    def has_all() -> bool:
        return bool(sum(row["requests"] for row in follower.table.values()) == expected)

    with server(tmp_path / "data") as started:
        subscribe = subscription(started, wire)
        for number, part in enumerate((traffic.http[:half], traffic.http[half:])):
            if number:
                await asyncio.to_thread(started.kill_all)
                await asyncio.to_thread(started.start)
            await clients.send_http(started, clients.http_batches(part), Tally())
            async with reader(started) as tables:
                so_far = traffic.http[:half] if not number else traffic.http
                sent = {event["event_id"].lower() for batch in so_far for event in batch}
                expected = len(sent)
                await tables.caught_up(expected)
            async with asyncio.timeout(PROCESS_PATIENCE):
                await follow_until(subscribe, follower, has_all, [0.2])
        assert follower.table == await listed(started)
        assert follower.snapshots == 1


async def test_a_revoked_key_ends_a_feed_within_a_second(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:

        async def trial() -> float:
            key = started.create_key("--scopes", "read")
            async with sse(started.http, key["key"]) as events, sse(started.http, KEY) as others:
                first = await asyncio.wait_for(anext(events), PROCESS_PATIENCE)
                assert first.kind == "snapshot"
                await asyncio.wait_for(anext(others), PROCESS_PATIENCE)
                ended = asyncio.ensure_future(anext(events))
                revoked = await asyncio.to_thread(started.cli, "keys", "revoke", key["key"][:12])
                began = time.monotonic()
                assert revoked.returncode == 0, revoked.stderr
                last = await asyncio.wait_for(ended, PROCESS_PATIENCE)
                assert (last.kind, last.data) == ("error", {"error": "Invalid API key", "reason": "unauthenticated"})
                return time.monotonic() - began

        await mostly_within(1, trial)
        code, _ = await asyncio.to_thread(started.stop)
        assert code == 0, started.log()
        assert not started.entries("child.killed")


async def test_costs_of_a_running_server(tmp_path: Path) -> None:
    traffic = make_traffic(16, 1000)
    with server(tmp_path / "data") as started:
        await clients.send(started, traffic, Tally())
        async with reader(started) as tables:
            await tables.caught_up(traffic.truth.unique)
            costs = await tables.get("/v1/costs?start=1970-01-01")
            _, total = await tables.users()
        del total["users"]
        assert costs["total"] == total
        by_day: dict[str, Any] = {}
        for row in costs["dailyByModel"]:
            by_day[row["day"]] = by_day.get(row["day"], 0) + row["cost_usd"]
        assert {row["day"]: row["cost_usd"] for row in costs["daily"]} == by_day
        assert sum(row["requests"] for row in costs["byModel"]) == traffic.truth.unique
