"""A bit that flipped on a broker's disk: the record is named, and neither counted nor passed over."""

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from processor.log.errors import DamagedRecord, LogError
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.log import KafkaLog
from processor.log.kafka.tail import KafkaTail
from processor.log.port import scan
from processor.log.records import TopicPartition
from processor.log.topics import CLAIMS, EVENTS, ROWS
from tests.support import bitflips, clients
from tests.support.clients import Pace, Reader, Tally, reader
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import Server, server, wait_until
from tests.support.traffic import make_traffic
from tools.kafka import Broker

OwnBroker = Callable[..., Broker]
E0 = TopicPartition(EVENTS, 0)


def start(broker: Broker) -> None:
    """Start the broker, and wait until it has its partitions: a worker that finds none of them at its start ends."""
    broker.start()
    wait_until(lambda: has_partitions(KafkaAccess(broker.bootstrap)))


def has_partitions(access: KafkaAccess) -> bool:
    try:
        with contextlib.closing(KafkaLog(access, create=False)) as log:
            return all(log.end(TopicPartition(topic, 0)) >= 0 for topic in (EVENTS, ROWS, CLAIMS))
    except LogError:
        return False


def has_crashed_again(worker: Server) -> bool:
    """Whether a worker has crashed twice; raises if it is no more, and so never will."""
    assert worker.is_running, worker.log()
    return len(worker.entries("worker.crashed")) > 1


def damage(broker: Broker, topic: str) -> tuple[Path, int, int]:
    """Flip a bit in the middle of a partition: the file, the byte, the offset of the batch.

    The broker runs on, as it does when a disk fails: it serves the bytes of its files as they are, and checks none.
    """
    path = bitflips.segment(broker, topic)
    chosen = [batch for batch in bitflips.batches(path) if not batch.is_control]
    batch = chosen[len(chosen) // 2]
    at = batch.at + (bitflips.HEADER + batch.size) // 2
    bitflips.flip(path, at)
    return path, at, batch.offset


def heal(path: Path, at: int) -> None:
    """As from another replica."""
    bitflips.flip(path, at)


async def ready(tables: Reader) -> None:
    """Wait until an API is ready: it waits for the worker."""
    deadline = time.monotonic() + PROCESS_PATIENCE
    while (answer := await tables.request("GET", "/readyz")).status != 200:
        assert time.monotonic() < deadline, answer.json
        await asyncio.sleep(0.2)


def _follow(tail: KafkaTail) -> Iterator[int]:
    """The offsets that a tail hands out within 20 s."""
    deadline = time.monotonic() + PROCESS_PATIENCE
    while time.monotonic() < deadline:
        for _, records in tail.poll():
            yield from (record.offset for record in records)


async def test_damaged_events_rows_and_claims_are_named_and_never_counted(
    own_broker: OwnBroker, tmp_path: Path
) -> None:
    broker = own_broker().start()
    access = KafkaAccess(broker.bootstrap)
    traffic = make_traffic(31, 3_000)
    KafkaLog(access, partitions=1).close()
    with server(tmp_path / "api", "api", broker=broker.url) as api:
        pace = Pace(traffic.events, rate=1_500)
        await clients.send(api, traffic, Tally(), pace)  # no worker yet: nothing of it is counted
        path, at, offset = damage(broker, EVENTS)
        name = f"record {EVENTS}:0:{offset} is damaged"

        # whoever reads the log gets what was before it, and then its name, again and again
        log = KafkaLog(access)
        for start in (0, 0, offset):
            read: list[int] = []
            with pytest.raises(DamagedRecord, match=name) as met:
                read.extend(record.offset for record in scan(log, E0, start))
            assert (met.value.topic, met.value.partition, met.value.offset) == (EVENTS, 0, offset)
            assert read == list(range(start, offset))
        log.close()
        tail = KafkaTail(access, {E0: 0})
        read = []
        for _ in range(2):
            with pytest.raises(DamagedRecord, match=name):
                read.extend(_follow(tail))
        assert read == list(range(offset))
        tail.close()
        exported = api.cli("export")
        assert exported.returncode == 2, exported.stdout
        assert name in exported.stderr

        # the worker counts what was before it, stands still, says so, and goes on once it can be read
        with server(tmp_path / "worker", "worker", broker=broker.url) as worker:
            wait_until(lambda: len(worker.entries("record.damaged")) > 1)
            assert name in worker.entries("record.damaged")[0]["error"]
            verified = api.cli("verify", "--json")
            assert verified.returncode == 0, verified.stderr
            assert json.loads(verified.stdout)["partitions"][0]["offset"] == offset - 1
            heal(path, at)
            async with reader(api) as tables:
                await ready(tables)
                assert await tables.differences(traffic.truth, exact_duplicates=True, details=5) == []
            assert worker.stop()[0] == 0
        assert api.stop()[0] == 0

    for topic in (ROWS, CLAIMS):
        path, at, offset = damage(broker, topic)
        name = f"record {topic}:0:{offset} is damaged"
        shutil.rmtree(tmp_path / "worker" / "index")  # or nothing reads the claims
        with server(tmp_path / "worker", "worker", broker=broker.url, start=False) as worker:
            worker.launch()
            wait_until(partial(has_crashed_again, worker))
            assert all(name in entry["error"] for entry in worker.entries("worker.crashed"))
            assert not worker.entries("worker.ready")
            if topic == ROWS:
                refused = worker.cli("api")
                assert refused.returncode == 2, refused.stderr
                assert name in refused.stderr
            heal(path, at)
            worker.wait_ready()  # it has begun anew by itself
        with server(tmp_path / "api", "api", broker=broker.url) as api:
            async with reader(api) as tables:
                assert await tables.differences(traffic.truth, exact_duplicates=True, details=5) == []
