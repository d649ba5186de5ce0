"""Stores on a log on Kafka: partitions move between them, and whoever was paused or killed changes nothing."""

import asyncio
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from processor.core.clock import SECOND, parse_timestamp
from processor.event_store.manifest import ID_FORM
from processor.event_store.segments_topic import SegmentsTopic
from processor.log.address import LogAddress
from processor.log.kafka.config import KafkaAccess
from tests.integration.test_event_store import send, some
from tests.support import clients, stored
from tests.support.patience import PROCESS_PATIENCE
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


def names(directory: Path) -> set[str]:
    """The ids of the segments that have a file, whole or a draft."""
    return {path.name.partition(".")[0] for path in directory.iterdir() if ID_FORM(path.name.partition(".")[0])}


def without(directory: Path, name: str) -> Callable[[], bool]:
    """Return whether the store's directory has none of a segment's files, to be asked again and again."""
    return lambda: name not in names(directory)


LATE_TRIALS = 6
"""Stops of a store within a cut, of which one at least has to end with a manifest that comes too late."""


def stopped_within_a_cut(store: Server, kafka: Broker, prefix: str) -> str | None:
    """Stop a store that is about to cut a segment between its first file and its manifest; return the segment's id.

    None if that did not succeed, and the store goes on. Blocks.
    """
    directory = store.data_dir.parent / "events"
    before, deadline = names(directory), time.monotonic() + 5
    owned = {f"{number:04d}" for number in partitions(store)}
    while not (found := [name for name in names(directory) - before if name.partition("-")[0] in owned]):
        if time.monotonic() > deadline:
            return None
        time.sleep(0.001)  # a manifest takes several
    store.signal("store", signal.SIGSTOP)
    time.sleep(0.3)  # what it has sent arrives all the same
    if not has_manifest(store, kafka, prefix, found[0]):
        return found[0]
    store.signal("store", signal.SIGCONT)
    return None


def has_manifest(store: Server, kafka: Broker, prefix: str, name: str) -> bool:
    """Whether a segment is known. Blocks."""
    with closing(LogAddress(store.data_dir, KafkaAccess(kafka.bootstrap, prefix=prefix)).open()) as log:
        known = SegmentsTopic(log, lambda: 0)
        known.read_on()
        return name in known.known()


async def check(started: Server, kafka: Broker, prefix: str, events: int, generation: int = 0) -> list[dict[str, Any]]:
    address = LogAddress(started.data_dir, KafkaAccess(kafka.bootstrap, prefix=prefix))
    segments = await asyncio.to_thread(stored.wait_stored, address, generation)
    assert sum(each.rows for each in segments) == events
    assert await asyncio.to_thread(clients.verify, started) == []
    return await asyncio.to_thread(stored.rows, started.data_dir.parent / "events", segments)


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
            await asyncio.to_thread(wait_until, lambda: len(partitions(other)) == 2)
            for _ in range(5):
                await send(reader, some(40, chance))
            await reader.caught_up(400)
            await check(started, kafka, prefix, 400)

            sent = 400
            for _ in range(LATE_TRIALS):
                late = None
                while late is None:
                    await send(reader, some(40, chance))
                    sent += 40
                    late = await asyncio.to_thread(stopped_within_a_cut, other, kafka, prefix)
                # It stands still for longer than its session, so its partitions go.
                await asyncio.to_thread(wait_until, lambda: len(partitions(started)) == PARTITIONS)
                # By now all has arrived that it had sent, however busy the broker is: the manifest may have been on
                # its way.
                is_late = not await asyncio.to_thread(has_manifest, other, kafka, prefix, late)
                for _ in range(5):
                    await send(reader, some(40, chance))
                sent += 200
                await reader.caught_up(sent)
                await check(started, kafka, prefix, sent)
                other.signal("store", signal.SIGCONT)
                if is_late:  # nobody takes what it writes now, and its files are deleted
                    await asyncio.to_thread(wait_until, without(tmp_path / "events", late))
                    await check(started, kafka, prefix, sent)
                if other.entries("store.not_first"):
                    break
                # It heard first that its partitions are gone, and wrote nothing.
                await asyncio.to_thread(wait_until, lambda: len(partitions(other)) == 2)
            assert other.entries("store.not_first")

            await asyncio.to_thread(started.kill, "store")
            for _ in range(5):
                await send(reader, some(40, chance))
                await asyncio.to_thread(started.kill, "store")
            await reader.caught_up(sent + 200)
            rows = await check(started, kafka, prefix, sent + 200)
            await asyncio.to_thread(other.kill_all)
            for path in (tmp_path / "events").glob("*.*"):
                if path.suffix in {".parquet", ".idx"}:
                    path.unlink()
            await asyncio.to_thread(started.kill, "store")
            assert await check(started, kafka, prefix, sent + 200, generation=1) == rows


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
        await asyncio.to_thread(wait_until, lambda: "Mount it" in started.log())
        async with clients.reader(started) as reader:
            assert (await reader.request("GET", "/readyz")).status == 200
        shutil.move(tmp_path / "away", tmp_path / "events")
        assert await check(started, kafka, prefix, 40) == rows


async def test_as_of_waits_for_an_api_process_of_another_host(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    """It may have stamped an event and not appended it yet, however long that takes."""
    settings = on(kafka, prefix, tmp_path)
    with (
        server(tmp_path / "data", partitions=1, **settings) as started,
        server(tmp_path / "other", "api", **settings) as other,
    ):
        async with clients.reader(started) as reader:

            async def as_of() -> float:
                answer = await reader.get("/v1/events")
                return parse_timestamp(answer["asOf"]) / SECOND

            async def follows() -> bool:
                return await as_of() > time.time() - 2.5

            await send(reader, some(5, random.Random(13)))
            async with asyncio.timeout(PROCESS_PATIENCE):
                while not await follows():  # noqa: ASYNC110 - the API has no event for it
                    await asyncio.sleep(0.1)
            other.signal("api", signal.SIGSTOP)
            stopped = time.time()
            number = 0
            while (
                time.time() < stopped + 3 or number <= 5
            ):  # what is sent through this one is stored, and says nothing of the other
                number += 1
                await send(reader, some(5, random.Random(f"while it stands still {number}")))
                assert await as_of() < stopped
                await asyncio.sleep(0.1)
            other.signal("api", signal.SIGCONT)
            async with asyncio.timeout(PROCESS_PATIENCE):
                while not await follows():  # noqa: ASYNC110 - the API has no event for it
                    await asyncio.sleep(0.1)
