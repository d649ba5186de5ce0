"""Stores on a log on Kafka: partitions move between them, and whoever was paused or killed changes nothing."""

import asyncio
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from processor.log.address import LogAddress
from processor.log.kafka.config import KafkaAccess
from tests.integration.test_event_store import send, some
from tests.support import clients, stored
from tests.support.server import Server, server, wait_until
from tools.kafka import Broker

pytestmark = pytest.mark.kafka

PARTITIONS = 4


def on(kafka: Broker, prefix: str, directory: Path) -> dict[str, Any]:
    """The settings of roles that share a log and the directory of its store."""
    store = {"event_store": True, "store_dir": directory / "events"}
    return {"broker": kafka.url, "kafka_prefix": prefix, **store}


def partitions(started: Server) -> list[int]:
    """What a store owned last, by its log."""
    found = [entry["partitions"] for entry in started.entries("store.partitions")]
    return list(found[-1]) if found else []


async def check(started: Server, kafka: Broker, prefix: str, events: int, generation: int = 0) -> list[dict[str, Any]]:
    address = LogAddress(started.data_dir, KafkaAccess(kafka.bootstrap, prefix=prefix))
    segments = await asyncio.to_thread(stored.wait_stored, address, generation)
    assert sum(each.rows for each in segments) == events
    assert await asyncio.to_thread(clients.verify, started) == []
    return await asyncio.to_thread(stored.rows, started.data_dir.parent / "events", segments)


@pytest.mark.timeout(240)
async def test_partitions_move_between_stores(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    chance = random.Random(11)
    settings = on(kafka, prefix, tmp_path)
    with (
        server(tmp_path / "data", partitions=PARTITIONS, **settings) as started,
        server(tmp_path / "other", "store", start=False, **settings) as other,
    ):
        async with clients.reader(started) as reader:
            for _ in range(5):
                await send(reader, some(40, chance))
            await reader.caught_up(200)
            await check(started, kafka, prefix, 200)
            await asyncio.to_thread(other.start)
            await asyncio.to_thread(wait_until, lambda: len(partitions(other)) == 2, 40)
            for _ in range(5):
                await send(reader, some(40, chance))
            await reader.caught_up(400)
            await check(started, kafka, prefix, 400)

            other.signal("store", signal.SIGSTOP)  # longer than its session, so its partitions go
            await asyncio.to_thread(wait_until, lambda: len(partitions(started)) == PARTITIONS, 40)
            for _ in range(5):
                await send(reader, some(40, chance))
            await reader.caught_up(600)
            other.signal("store", signal.SIGCONT)
            await check(started, kafka, prefix, 600)

            await asyncio.to_thread(started.kill, "store")
            for _ in range(5):
                await send(reader, some(40, chance))
                await asyncio.to_thread(started.kill, "store")
            await reader.caught_up(800)
            rows = await check(started, kafka, prefix, 800)
            await asyncio.to_thread(other.kill_all)
            for path in (tmp_path / "events").glob("*.*"):
                if path.suffix in {".parquet", ".idx"}:
                    path.unlink()
            await asyncio.to_thread(started.kill, "store")
            assert await check(started, kafka, prefix, 800, generation=1) == rows


@pytest.mark.timeout(120)
async def test_a_store_that_does_not_see_the_directory_makes_nothing_anew(
    kafka: Broker, prefix: str, tmp_path: Path
) -> None:
    chance = random.Random(12)
    settings = on(kafka, prefix, tmp_path)
    with server(tmp_path / "data", partitions=1, **settings) as started:
        async with clients.reader(started) as reader:
            await send(reader, some(40, chance))
            await reader.caught_up(40)
            rows = await check(started, kafka, prefix, 40)
            await asyncio.to_thread(started.kill_all)
        shutil.move(tmp_path / "events", tmp_path / "away")
        await asyncio.to_thread(started.start)
        await asyncio.to_thread(wait_until, lambda: "Mount it" in started.log(), 40)
        async with clients.reader(started) as reader:
            assert (await reader.request("GET", "/readyz")).status == 200
        shutil.move(tmp_path / "away", tmp_path / "events")
        assert await check(started, kafka, prefix, 40) == rows
