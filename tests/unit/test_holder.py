"""What a worker keeps of a partition that it gives up: only what the log has, too."""

from pathlib import Path

import numpy as np
import pytest

from processor.core.pipeline import Tables
from processor.log.address import LogAddress
from processor.log.kafka_config import KafkaAccess
from processor.state.holder import Holder
from processor.state.index import IdIndex
from processor.state.loader import Partition
from processor.state.manifest import Covered


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
    holder = Holder(address, {"rows": 1}, lambda: owned, flush, standby=True)
    assert await holder.release({0}) == {0: 0}
    assert owned == {}
    assert bool(holder._warm) == durable
    holder.writers.close()
