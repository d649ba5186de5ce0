"""A worker's partitions on Kafka, without a broker: what must hold whatever the group says when."""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from processor.core.tables.apply import Tables
from processor.ids.index import IdIndex
from processor.ids.index_checkpoint import Covered
from processor.log.address import LogAddress
from processor.log.errors import DamagedRecord
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.tail import KafkaTail
from processor.state.loader import Partition
from processor.state.partitions import RETRY, Holder
from tests.support.patience import until

NOWHERE = KafkaAccess("127.0.0.1:9")


class Closing:
    """A log that is only closed."""

    def close(self) -> None: ...


class Address:
    """While the log is opened for the warm copies, all partitions come to this worker."""

    kafka = NOWHERE

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.owned: dict[int, Any] = {}
        self.opened = 0

    def open(self) -> Closing:
        self.opened += 1
        self.owned |= {0: None, 1: None}
        return Closing()


async def test_partitions_that_come_while_their_copies_are_opened_do_not_end_the_worker(tmp_path: Path) -> None:
    """They did, in a takeover: a worker that was to follow no partition at all crashed."""
    address = Address(tmp_path)

    async def flush() -> None: ...

    where: Any = address
    holder = Holder(where, {"spendstream.events": 2}, address.owned, flush, lambda: 0, standby=True)
    following = asyncio.create_task(holder.follow())
    await until(lambda: address.opened or following.done())
    done, _ = await asyncio.wait({following}, timeout=1.5)
    assert not done, following.exception()
    assert address.opened == 1
    following.cancel()
    holder.writers.close()


class DamagedAddress(Address):
    """What a warm copy has to read first is damaged."""

    def open(self) -> Closing:
        self.opened += 1
        raise DamagedRecord("spendstream.claims", 1, 7)


async def test_a_damaged_record_of_a_copy_does_not_end_the_worker(tmp_path: Path) -> None:
    """It has partitions of its own, and whoever owns that one says what is to be done."""
    address = DamagedAddress(tmp_path)

    async def flush() -> None: ...

    where: Any = address
    holder = Holder(where, {"spendstream.events": 2}, address.owned, flush, lambda: 0, standby=True)
    began = time.monotonic()
    following = asyncio.create_task(holder.follow())
    while address.opened < 3 and not following.done():  # noqa: ASYNC110 - what is counted knows no event
        await asyncio.sleep(0.05)
    assert not following.done(), following.exception()
    assert time.monotonic() - began >= 2 * RETRY
    following.cancel()
    holder.writers.close()


def test_a_tail_of_no_partitions_has_no_records() -> None:
    tail = KafkaTail(NOWHERE, {})
    assert list(tail.poll()) == []
    tail.close()


class WatchedHolder(Holder):
    """A holder that says of which partitions it has a warm copy."""

    def copies(self) -> set[int]:
        return set(self._warm)


@pytest.mark.parametrize("durable", [True, False])
async def test_a_partition_with_claims_that_are_not_in_the_log_is_no_warm_copy(tmp_path: Path, durable: bool) -> None:
    """A checkpoint of it could name ids of messages that the next owner does not apply."""
    owned: dict[int, Partition] = {}
    index = IdIndex(tmp_path / "index", "log", lambda _: "digest")

    async def flush() -> None:
        owned[0].covered = Covered(1, "digest", 10)
        if not durable:  # messages are applied while the flush is on its way to the log
            index.claim(np.arange(100, 110, dtype=np.uint64).reshape(-1, 2), np.zeros(5, np.uint64), 2)

    index.claim(np.arange(20, dtype=np.uint64).reshape(-1, 2), np.zeros(10, np.uint64), 1)
    owned[0] = Partition(0, Tables(0, b"salt", index), index)
    address = LogAddress(tmp_path, KafkaAccess("127.0.0.1:1"))
    holder = WatchedHolder(address, {"rows": 1}, owned, flush, lambda: 0, standby=True)
    assert await holder.release({0}) == {0: 0}
    assert owned == {}
    assert holder.copies() == ({0} if durable else set())
    holder.writers.close()
