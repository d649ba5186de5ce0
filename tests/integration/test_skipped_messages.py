"""A transport that drops a message on its way, on both logs: tables and event store notice, and are exact."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from processor.log.address import LogAddress
from processor.log.kafka.config import KafkaAccess
from tests.integration.test_event_store import metrics, send, some
from tests.support import clients, stored
from tests.support.dropping import OFFSET, dropped, dropping
from tests.support.server import server, wait_until

BATCHES = 12


@pytest.mark.parametrize("log", ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
async def test_a_message_that_was_dropped_on_its_way_is_fetched_again(
    log: str, tmp_path: Path, prefix: str, request: pytest.FixtureRequest
) -> None:
    settings: dict[str, Any] = {}
    address = LogAddress(tmp_path / "data")
    if log == "kafka":
        broker: Any = request.getfixturevalue("kafka")
        settings = {"broker": broker.url, "kafka_prefix": prefix}
        address = LogAddress(tmp_path / "data", KafkaAccess(broker.bootstrap, prefix=prefix))
    place = tmp_path / "dropping"
    with dropping(place), server(tmp_path / "data", event_store=True, as_shipped=True, **settings) as started:
        async with clients.reader(started) as reader:
            for _ in range(BATCHES):
                await send(reader, some(10, random.Random(21)))
                await asyncio.sleep(0.1)
            await reader.caught_up(10 * BATCHES)
            segments = await asyncio.to_thread(stored.wait_stored, address)
        assert dropped(place) == {"worker", "store"}
        assert sum(each.rows for each in segments) == 10 * BATCHES
        assert await asyncio.to_thread(clients.verify, started) == []
        (broken,) = started.entries("worker.broken")
        assert f"messages 0:{OFFSET} to" in broken["error"]
        (skipped,) = started.entries("store.messages_skipped")
        assert (skipped["partition"], skipped["first"]) == (0, OFFSET)
        ended = {entry["child"]: entry["code"] for entry in started.entries("child.ended")}
        assert ended == {"worker": 70, "store": 70}
        await asyncio.to_thread(wait_until, lambda: "spendstream_store_skips 1.0" in metrics(started))
