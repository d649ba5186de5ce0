"""`python -m tests.chaos.watching`: subscribers through ingest, some that break off, some hundreds that only listen.

Sends the same load twice, without anybody listening and with a crowd; says what became of the rate of ingest, of the
memory of the API process, and whether the tables of those that broke off are `GET /v1/users`. Exits 1 if not.

With `--kafka`: one load, a real broker, an API and a worker, and a third kind of subscriber, of `spendstream.users`.
"""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import click

from tests.chaos.cluster import cluster
from tests.support.clients import reader
from tests.support.live import Follower, Row, follow_until, sse, watch
from tests.support.server import KEY, Server, environment, server
from tests.support.users_topic import TopicFollower


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--events", default=1_000_000, show_default=True, type=click.IntRange(1000), help="Events of a load")
@click.option("--rate", default=20_000.0, show_default=True, help="Events a second")
@click.option("--users", default=10_000, show_default=True, help="Users they are of")
@click.option("--crowd", default=1000, show_default=True, help="Subscribers that only listen")
@click.option("--breaks", default=50, show_default=True, help="Times that each of two others breaks off")
@click.option("--seed", default=1, show_default=True)
@click.option("--kafka", is_flag=True, help="On a real broker, with a consumer of spendstream.users; no crowd")
@click.option("--listen", hidden=True, help="Be the crowd, at this address")
def main(
    events: int, rate: float, users: int, crowd: int, breaks: int, seed: int, kafka: bool, listen: str | None
) -> None:
    """Follow the users of a server that is under load."""
    if listen is not None:
        asyncio.run(_be_the_crowd(listen, crowd))
        return
    with tempfile.TemporaryDirectory(prefix="spendstream-watching-") as directory:
        if kafka:
            sys.exit(asyncio.run(_run_on_kafka(Path(directory), events, rate, users, breaks, random.Random(seed))))
        data_dir = Path(directory) / "data"
        with server(data_dir) as started:
            sys.exit(asyncio.run(_run(started, events, rate, users, crowd, breaks, random.Random(seed))))


async def _run(
    started: Server, events: int, rate: float, users: int, crowd: int, breaks: int, rng: random.Random
) -> int:
    alone = await _load(started, events, rate, users)
    await _settled(started, events)
    print(f"alone: {alone['eventsPerSecond']:,.0f} events/s, {alone['latencyMs']}, API {_memory(started)} MiB")
    used = _cpu(started.pid("api"))
    listeners = subprocess.Popen(  # noqa: ASYNC220 - nothing else is going on yet
        [sys.executable, "-m", "tests.chaos.watching", "--listen", started.http, "--crowd", str(crowd)],
        stdout=subprocess.PIPE,
    )
    try:
        assert listeners.stdout is not None
        await asyncio.to_thread(listeners.stdout.readline)  # all of them have had something
        done = asyncio.Event()
        longest = 2 * events / rate / max(breaks, 1)
        async with asyncio.TaskGroup() as group:
            followers = _follow(group, started, done, 2 * events, longest, breaks, rng)
            crowded = await _load(started, events, rate, users)
            await _settled(started, 2 * events)
            done.set()
        used = _cpu(started.pid("api")) - used
        print(f"CPU: API {used:.1f} s, the crowd itself {_cpu(listeners.pid):.1f} s")
    finally:
        listeners.kill()
        listeners.wait()
    print(f"{crowd} listen: {crowded['eventsPerSecond']:,.0f} events/s, {crowded['latencyMs']}, {_memory(started)} MiB")
    return await _compare(started, followers, breaks)


def _follow(
    group: asyncio.TaskGroup,
    started: Server,
    done: asyncio.Event,
    events: int,
    longest: float,
    breaks: int,
    rng: random.Random,
) -> dict[str, Follower]:
    """A follower over either wire that breaks off so many times, each time after `longest` seconds at most."""
    followers = {"sse": Follower(), "grpc": Follower()}
    subscriptions: dict[str, Any] = {
        "sse": lambda token: sse(started.http, KEY, token),
        "grpc": lambda token: watch(started.grpc, KEY, token),
    }
    for wire, follower in followers.items():
        pauses = [rng.uniform(0, longest) for _ in range(breaks)]
        is_done = partial(_has_all, follower, done, events)
        group.create_task(follow_until(subscriptions[wire], follower, is_done, pauses))
    return followers


async def _compare(started: Server, followers: dict[str, Follower], breaks: int) -> int:
    table = await _table(started)
    wrong = 0
    for wire, follower in followers.items():
        differences = _differences(follower.table, table)
        wrong += differences
        heard = f"{follower.events:,} events, {follower.snapshots} snapshots"
        print(f"{wire}: {breaks} breaks, {heard}, {differences} differences")
    return int(wrong > 0)


async def _table(started: Server) -> dict[str | None, Row]:
    async with reader(started) as tables:
        tables.page = 1000
        rows, _ = await tables.users()
    return {row["user_id"]: row for row in rows}


def _differences(found: dict[str | None, Row], table: dict[str | None, Row]) -> int:
    return sum(found.get(user) != row for user, row in table.items()) + len(found.keys() - table.keys())


async def _run_on_kafka(directory: Path, events: int, rate: float, users: int, breaks: int, rng: random.Random) -> int:
    async with cluster(directory, rng, apis=1, workers=1) as made:
        started = made.apis[0]
        done = asyncio.Event()
        consumer = TopicFollower(made.broker.bootstrap)
        longest = 2 * events / rate / max(breaks, 1)

        async def consume() -> None:
            for _ in range(breaks):
                await asyncio.to_thread(consumer.read, rng.uniform(0, longest))
            while not (done.is_set() and consumer.requests == events):
                await asyncio.to_thread(consumer.read, 2.0)

        async with asyncio.TaskGroup() as group:
            followers = _follow(group, started, done, events, longest, breaks, rng)
            group.create_task(consume())
            load = await _load(started, events, rate, users)
            await _settled(started, events)
            done.set()
        print(f"{events:,} events at {load['eventsPerSecond']:,.0f}/s, {load['latencyMs']}, {_memory(started)} MiB")
        rows = {user: dict(row) for (_, user), row in consumer.said.rows.items()}
        for row in rows.values():
            row.pop("project_id")
        wrong = _differences(rows, await _table(started)) + len(consumer.said.fell)
        print(f"topic: {breaks} breaks, {consumer.records:,} records, {wrong} differences")
        wrong += await _compare(started, followers, breaks)
        made.held.update(made.everyone)
    return int(wrong > 0)


def _has_all(follower: Follower, done: asyncio.Event, events: int) -> bool:
    return done.is_set() and bool(sum(row["requests"] for row in follower.table.values()) == events)


def _cpu(pid: int | None) -> float:
    """Seconds of processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _load(started: Server, events: int, rate: float, users: int) -> Any:
    arguments = ["--target", f"http://{started.http}", "--events", events, "--rate", rate, "--users", users, "--json"]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "server", "loadtest", *map(str, arguments)],
        env=environment(started.data_dir, {"key": KEY}),
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


async def _settled(started: Server, events: int) -> None:
    async with reader(started) as tables:
        quota = await tables.caught_up(events, patience=600)
    if quota["used"] != events:
        raise SystemExit(f"the tables have {quota['used']} of {events} events")


def _memory(started: Server) -> int:
    """Resident memory of the API process in MiB."""
    status = Path(f"/proc/{started.pid('api')}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) // 1024


async def _be_the_crowd(http: str, crowd: int) -> None:
    heard = 0
    everybody = asyncio.Event()

    async def listen(session: aiohttp.ClientSession) -> None:
        nonlocal heard
        async with session.get(f"http://{http}/v1/stream/users") as response:
            response.raise_for_status()
            async for chunk in response.content.iter_any():
                if b"event: snapshot" in chunk:
                    heard += 1
                    if heard == crowd:
                        everybody.set()

    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers={"x-api-key": KEY}) as session:
        tasks = [asyncio.create_task(listen(session)) for _ in range(crowd)]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(everybody.wait(), 300)
        print(f"{heard} listen", flush=True)
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    main()
