"""A worker's partitions on Kafka, without a broker: what must hold whatever the group says when."""

import asyncio
from pathlib import Path
from typing import Any

from processor.log.kafka_config import KafkaAccess
from processor.log.kafka_tail import KafkaTail
from processor.state.holder import Holder

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
    holder = Holder(where, {"spendstream.events": 2}, lambda: address.owned, flush, standby=True)
    following = asyncio.create_task(holder.follow())
    done, _ = await asyncio.wait({following}, timeout=1.5)
    assert not done, following.exception()
    assert address.opened == 1
    following.cancel()
    holder.writers.close()


def test_a_tail_of_no_partitions_has_no_records() -> None:
    tail = KafkaTail(NOWHERE, {})
    assert list(tail.poll()) == []
    tail.close()
