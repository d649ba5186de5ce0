"""A wall clock that is months ahead, for seconds or for longer: nothing is lost by it, and every quota holds."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from processor.core.clock import DAY
from processor.log.embedded.log import Log
from processor.log.records import TopicPartition
from processor.log.topics import EVENTS
from tests.support import clients
from tests.support.clients import reader
from tests.support.clock import Clock
from tests.support.crowd import Crowd
from tests.support.events import make_event
from tests.support.logs import put
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import Server, run_cli, server, wait_until

LIMIT: Final = 2000
HOUR: Final = 3600.0
AHEAD: Final = 100 * 24 * HOUR
PARTITIONS: Final = 2
RETENTION: Final = 90


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    with Clock(tmp_path).held() as held:
        yield held


async def send(started: Server, events: int) -> tuple[int, dict[str, str]]:
    """One batch, over a connection of its own; returns the status and the header fields."""
    async with reader(started) as tables:
        answer = await tables.ingest([make_event(timestamp=datetime.now(UTC).isoformat()) for _ in range(events)])
        return answer.status, answer.headers


async def send_for(started: Server, seconds: float) -> int:
    """Send a batch of two events ten times a second; all are taken. Returns how many events that were."""
    sent = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert (await send(started, 2))[0] == 202
        sent += 2
        await asyncio.sleep(0.1)
    return sent


async def used(started: Server, expected: int) -> int:
    """What the quota says of this month, once that is what is expected, or after a while."""
    async with reader(started) as tables:
        return int((await tables.caught_up(expected))["used"])


async def use_up(started: Server) -> Crowd:
    """Have many senders take what is left of the quota. All are answered, but some may be asked to come again (503): a
    process may not know yet what of the month is used.
    """
    crowd = Crowd([started], LIMIT, seed=random.SystemRandom().randrange(10**6))
    await crowd.run(crowd.has_used_up, PROCESS_PATIENCE)
    assert not crowd.lost
    return crowd


async def until_limited(started: Server) -> int:
    """Returns how many events were taken meanwhile."""
    done = started.cli("orgs", "set", "default", "--monthly-quota", str(LIMIT))
    assert done.returncode == 0, done.stderr
    taken, known = 0, 0
    while known < 20:  # each API process has to know
        status, headers = await send(started, 1)
        assert status == 202
        taken += 1
        if "ratelimit" in {name.lower() for name in headers}:
            known += 1
        else:
            await asyncio.sleep(0.1)
    return taken


def exported(started: Server, path: Path) -> dict[str, str]:
    """All events of the log: id -> arrival of its first copy."""
    done = started.cli("export", "--output", str(path))
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        found.setdefault(line["event_id"], line["_spendstream"]["arrival"])
    return found


@pytest.mark.parametrize("wrong", ["for four seconds", "for longer than is doubted", "at a start"])
async def test_a_quota_is_exact_over_two_processes_after_a_clock_was_months_ahead(
    wrong: str, clock: Clock, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    with server(tmp_path / "data", api_processes=2) as started:
        before = await until_limited(started)
        assert await used(started, before) == before
        clock.set(AHEAD)
        if wrong == "at a start":
            started.stop()
            started.start()
        taken = await send_for(started, 4)
        if wrong == "for longer than is doubted":
            clock.let_pass(61)
            taken += await send_for(started, 2)
        clock.set(0)
        if wrong == "for four seconds":
            assert await used(started, before + taken) == before + taken, "they count in this month"
        crowd = await use_up(started)
        assert await used(started, LIMIT) == LIMIT
        arrivals = await asyncio.to_thread(exported, started, tmp_path / "all.ndjson")
        assert sum(arrival.startswith(f"{now:%Y-%m}") for arrival in arrivals.values()) == LIMIT
        if wrong == "for four seconds":
            assert len(arrivals) == LIMIT
            rest = LIMIT - before - taken
            assert len(crowd.taken) <= rest <= len(crowd.taken | crowd.doubtful)
        assert crowd.taken <= arrivals.keys()
        assert clients.verify(started) == []


def first_offsets(log: Log) -> list[int]:
    return [log.first(TopicPartition(EVENTS, number)) for number in range(PARTITIONS)]


def ages(log: Log, now: float) -> list[float]:
    """Days since the messages that are left were written, the oldest first."""
    found = [record.at for number in range(PARTITIONS) for record in log.read(TopicPartition(EVENTS, number), 0)]
    return sorted((now - at / 1e6) / 86_400 for at in found)[::-1]


async def test_retention_deletes_nothing_young_by_a_clock_that_is_months_ahead(clock: Clock, tmp_path: Path) -> None:
    log = Log(tmp_path / "data", partitions=PARTITIONS)
    now = time.time_ns() // 1000
    for day in range(85, 0, -1):
        put(log, [make_event() for _ in range(6)], arrival=now - day * DAY)
    with server(tmp_path / "data", partitions=PARTITIONS, retention=RETENTION, retention_interval=0.05) as started:

        async def pass_days(days: int) -> None:
            for _ in range(days):
                await send_for(started, 1.3)
                clock.let_pass(24 * HOUR)
            await send_for(started, 1.3)

        await pass_days(3)  # retention has begun
        assert first_offsets(log) == [0, 0]
        clock.set(AHEAD)
        await send_for(started, 4)
        clock.let_pass(HOUR)
        await send_for(started, 3)
        started.stop()
        started.start()
        await send_for(started, 3)
        assert first_offsets(log) == [0, 0], "nor after a start with it, nor in an hour"
        clock.set(0)
        await send_for(started, 2)
        assert first_offsets(log) == [0, 0], "nor when it is right again"

        # Days pass, and what is past its time goes.
        began = clock.passed
        await pass_days(6)
        oldest = ages(log, time.time() + clock.passed)[0]
        await asyncio.to_thread(wait_until, lambda: ages(log, time.time() + clock.passed)[0] < RETENTION + 2.5)
        assert oldest > RETENTION - 1
        assert clock.passed > began
        assert clients.verify(started) == []
    assert run_cli(tmp_path / "data", "verify").returncode == 0
