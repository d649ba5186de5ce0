"""`python -m tests.chaos.ready`: how long a server that was killed takes to be ready again, with a long history.

Fills the log with events of so many users, lets the real server work them off, then again and again sends some traffic,
kills every process in the midst of it, starts the server and takes the time. Wants a quiet machine, about 5 GB of disk
and some minutes. In the end all totals must be exact. The last line printed is JSON.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Final
from uuid import UUID

import click

from processor.core.events import codec, message
from processor.core.events.message import build_blocks
from processor.core.events.source import Source
from processor.log.embedded.log import Log
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS
from tests.chaos.recovery import Recovery
from tests.chaos.report import commit
from tests.support import clients
from tests.support.clients import Pace, Tally
from tests.support.server import KEY, Server, server
from tests.support.traffic import Traffic, bulk_line, make_traffic

IN_MESSAGE: Final = 1000
IN_COMMIT: Final = 20
"""Messages appended at once."""
TRAFFIC: Final = 20_000
RATE: Final = 2_000
"""Events a second while the server is killed."""
PATIENCE: Final = 3600.0


def fill(data_dir: Path, events: int, users: int) -> None:
    """A log with `events` unique events, of `users` users on one day: as many rows."""
    rng = random.Random("fill")  # another one than any traffic has: ids must not meet
    log = Log(data_dir, partitions=1)
    at = time.time_ns() // 1000
    source = Source("default", "default", "fill", at, "json", "partial")
    appends: list[tuple[bytes | None, bytes | None]] = []
    for start in range(0, events, IN_MESSAGE):
        lines = [
            bulk_line(_id(rng), f"user-{number % users}", "2026-04-20T10:00:00Z")
            for number in range(start, min(events, start + IN_MESSAGE))
        ]
        decoded = codec.decode("json", lines, "partial", at)
        assert not decoded.faults, decoded.faults[:1]
        appends.append((None, message.encode([build_blocks(source, decoded.columns, 1)[0]])))
        if len(appends) == IN_COMMIT or start + IN_MESSAGE >= events:
            log.append([Append(TopicPartition(EVENTS, 0), appends)], at)
            appends = []
    log.close()


def _id(rng: random.Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))


async def used(target: Server, expected: int) -> int:
    """Wait until so many events are counted; returns how many are."""
    deadline = time.monotonic() + PATIENCE
    async with clients.reader(target) as reader:
        while True:
            with suppress(OSError, TimeoutError, clients.WrongAnswer):
                found = int((await reader.get("/v1/users?limit=1"))["total"]["requests"])
                if found >= expected or time.monotonic() > deadline:
                    return found
            await asyncio.sleep(0.5)


async def measure(started: Server, traffic: Traffic, kill_after: float) -> tuple[float, float]:
    """Kill all of it under load and start it; returns the seconds to the ready line, and to events in the tables."""
    tally, found = Tally(), list[float]()
    recovery = Recovery(started, tally, found)
    pace = Pace(traffic.events, RATE)
    sending = asyncio.create_task(clients.send(started, traffic, tally, pace))
    await asyncio.sleep(kill_after)
    await asyncio.to_thread(started.kill_all)
    recovery.start()
    began = time.monotonic()
    await asyncio.to_thread(started.start, PATIENCE)
    ready = time.monotonic() - began
    pace.let_go()  # what was tried in vain has used up the traffic's time
    await recovery.settle(sending, PATIENCE)
    await sending
    return ready, found[0] if found else float("nan")


@click.command()
@click.option("--events", default=10_000_000, show_default=True, type=click.IntRange(min=1000))
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(min=1), help="Users, a row each")
@click.option("--starts", default=5, show_default=True, type=click.IntRange(min=1), help="Kills and starts")
@click.option("--directory", type=click.Path(path_type=Path), help="Where there is room; default: the system's")
def main(events: int, rows: int, starts: int, directory: Path | None) -> None:
    """Measure the time to ready after kill -9 of everything."""
    with tempfile.TemporaryDirectory(prefix="spendstream-ready-", dir=directory) as made:
        sys.exit(asyncio.run(_main(events, rows, starts, Path(made) / "data")))


async def _main(events: int, rows: int, starts: int, data_dir: Path) -> int:
    say(f"filling the log with {events:,} events of {rows:,} users")
    await asyncio.to_thread(fill, data_dir, events, rows)
    rng = random.Random(2)
    readies: list[float] = []
    visibles: list[float] = []
    expected = events
    with server(data_dir, start=False, key=KEY, max_lag=3600) as started:
        await asyncio.to_thread(started.start, PATIENCE)
        say("ready for the first time; working the events off")
        found = await used(started, expected)
        say(f"{found:,} events in the tables")
        for number in range(starts):
            traffic = await asyncio.to_thread(make_traffic, number, TRAFFIC)
            ready, visible = await measure(started, traffic, rng.uniform(1, 5))
            expected += traffic.truth.unique
            found = await used(started, expected)
            say(f"start {number + 1}: ready after {ready:.2f} s, new events in the tables after {visible:.2f} s")
            readies.append(ready)
            visibles.append(visible)
        await asyncio.sleep(1)
        found = await used(started, expected)
        differences = [] if found == expected else [f"{found} events are counted, not {expected}"]
        differences += await asyncio.to_thread(clients.verify, started, PATIENCE)
    for line in differences:
        say(f"DIFFERS: {line}")
    result = {
        "commit": commit(),
        "events": events,
        "rows": rows,
        "starts": starts,
        "ready": {"median": round(median(readies), 2), "max": round(max(readies), 2)},
        "visible": {"median": round(median(visibles), 2), "max": round(max(visibles), 2)},
        "exact": not differences,
    }
    print(json.dumps(result), flush=True)
    return int(bool(differences))


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
