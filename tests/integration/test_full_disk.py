"""A start on a full disk: reads are answered, `/readyz` says why events are not taken, and with room they are."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from processor.log.address import LogAddress
from tests.chaos import faults
from tests.chaos.faults import CannotRun
from tests.support import clients, stored
from tests.support.clients import Reader
from tests.support.events import make_event
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import server, wait_until


async def post(reader: Reader, events: int) -> int:
    return (await reader.ingest([make_event(user_id="u") for _ in range(events)])).status


async def answers_reads_and_takes_events_with_room(reader: Reader, disk: Path, events: int, why: str) -> None:
    """`events` were counted before; `why` is what `/readyz` says while the disk is full."""
    assert (await reader.get("/v1/users"))["total"]["requests"] == events
    answer = await reader.request("GET", "/readyz")
    assert answer.status == 503
    assert why in json.dumps(answer.json)
    assert await post(reader, 1) == 503
    assert (await reader.request("GET", "/healthz")).status == 200
    faults.free(disk)
    async with asyncio.timeout(PROCESS_PATIENCE):
        while (await reader.request("GET", "/readyz")).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert await post(reader, 5) == 202
    await reader.caught_up(events + 5)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_start_on_a_full_disk(tmp_path: Path, end: str) -> None:
    try:
        with faults.small_disk(tmp_path / "disk", 48), server(tmp_path / "disk" / "data") as started:
            async with clients.reader(started) as reader:
                assert await post(reader, 10) == 202
                await reader.caught_up(10)
            if end == "stop":
                await asyncio.to_thread(started.stop)
                faults.fill(tmp_path / "disk")
            else:
                faults.fill(tmp_path / "disk")
                await asyncio.to_thread(started.kill_all)
            await asyncio.to_thread(started.start)
            async with clients.reader(started) as reader:
                await answers_reads_and_takes_events_with_room(reader, tmp_path / "disk", 10, "full")
            assert await asyncio.to_thread(clients.verify, started) == []
    except CannotRun as error:
        pytest.skip(str(error))


async def test_a_start_on_a_full_disk_with_a_log_to_recover(tmp_path: Path) -> None:
    data = tmp_path / "disk" / "data"
    try:
        with faults.small_disk(tmp_path / "disk", 48), server(data) as started:
            async with clients.reader(started) as reader:
                assert [await post(reader, 100) for _ in range(20)] == [202] * 20
                await reader.caught_up(2000)
            await asyncio.to_thread(started.kill_all)
            (data / "recovery-needed").touch()
            faults.fill(tmp_path / "disk")
            await asyncio.to_thread(started.start)
            async with clients.reader(started) as reader:
                why = "has to be recovered first"
                await answers_reads_and_takes_events_with_room(reader, tmp_path / "disk", 2000, why)
            assert not [path.name for path in data.glob("recovery-*")]
            assert await asyncio.to_thread(clients.verify, started) == []
    except CannotRun as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("reserve", [16, 0])
async def test_the_event_store_lags_while_the_disk_is_full_and_is_exact_with_room(tmp_path: Path, reserve: int) -> None:
    """With a reserve it stops before the log does, which goes on into it; without one it runs into the end itself."""
    disk, data = tmp_path / "disk", tmp_path / "disk" / "data"
    settings: dict[str, Any] = {"event_store": True, "partitions": 2, "store_min_free": f"{reserve}M"}
    try:
        with faults.small_disk(disk, 64), server(data, **settings) as started:
            async with clients.reader(started) as reader:
                assert await post(reader, 50) == 202
                before = await asyncio.to_thread(stored.wait_stored, LogAddress(data))
                events = 50
                if reserve:
                    faults.fill(disk, leave=reserve << 19)
                    await asyncio.to_thread(wait_until, lambda: started.entries("store.disk_full"))
                    assert [await post(reader, 100) for _ in range(5)] == [202] * 5
                    events += 500
                    await reader.caught_up(events)
                    assert await asyncio.to_thread(stored.live, LogAddress(data)) == before
                faults.fill(disk)
                for _ in range(400):  # what SQLite's files have room for is still taken
                    if await post(reader, 100) != 202:
                        break
                    events += 100
                else:
                    raise AssertionError("the disk is not full")
                await asyncio.to_thread(started.kill, "store")
                await asyncio.sleep(1)
                faults.free(disk)
                await asyncio.to_thread(wait_until, started.is_ready)
                assert await post(reader, 50) == 202
                events += 50
                await reader.caught_up(events)
            segments = await asyncio.to_thread(stored.wait_stored, LogAddress(data))
            assert sum(each.rows for each in segments) == events
            assert await asyncio.to_thread(clients.verify, started) == []
    except CannotRun as error:
        pytest.skip(str(error))
