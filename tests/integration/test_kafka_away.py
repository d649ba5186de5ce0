"""An API process while its broker is away: told at once, and well again without hands."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from processor.log.address import LogAddress
from processor.log.kafka.config import DELIVERY_MS, KafkaAccess
from processor.log.kafka.log import KafkaLog
from processor.log.port import scan
from processor.log.records import TopicPartition
from processor.log.topics import EVENTS
from server.errors import Refused
from server.ingest.log_publisher import LogPublisher
from tests.contract.test_publishers import parts_of
from tests.support.publisher import publish
from tests.support.server import wait_until
from tests.support.tables import NOON
from tools.kafka import Broker

OwnBroker = Callable[..., Broker]


async def test_senders_are_told_at_once_that_the_broker_is_away(own_broker: OwnBroker, tmp_path: Path) -> None:
    broker = own_broker().start()
    access = KafkaAccess(broker.bootstrap)
    KafkaLog(access, partitions=1).close()
    publisher = LogPublisher(LogAddress(tmp_path, access), lambda: NOON, 1 << 20)
    assert (await publish(publisher, parts_of(1, partitions=1))) == {0: 0}
    await asyncio.to_thread(broker.kill)

    async def refused(number: int) -> None:
        with pytest.raises(Refused) as found:
            await publish(publisher, parts_of(number, partitions=1))
        assert (found.value.reason, found.value.retry_after) == ("unavailable", 1)

    first = asyncio.create_task(refused(2))
    await asyncio.sleep(1)
    assert publisher.failure is None
    behind = [asyncio.create_task(refused(3 + number)) for number in range(5)]
    await first
    began = time.monotonic()
    await asyncio.gather(*behind)
    assert time.monotonic() - began < DELIVERY_MS / 1000 / 2, "those behind have had a try of their own"
    assert publisher.failure is not None
    began = time.monotonic()
    for number in range(50):
        await refused(100 + number)
    assert time.monotonic() - began < 5 * DELIVERY_MS / 1000, "each of the fifty has had a try of its own"
    assert publisher.failure is not None

    await asyncio.to_thread(broker.start)
    await asyncio.to_thread(wait_until, lambda: publisher.failure is None)
    (offset,) = (await publish(publisher, parts_of(200, partitions=1))).values()
    await asyncio.to_thread(publisher.close)
    log = KafkaLog(access, create=False)
    offsets = [record.offset for record in scan(log, TopicPartition(EVENTS, 0))]
    log.close()
    assert offsets[0] == 0
    assert offsets[-1] == offset
    assert len(offsets) == 2, "something that was refused at once is in the log"
