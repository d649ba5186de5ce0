"""What both Faust transports have in common."""

from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from processor.log.embedded import transport

EVENTS_0 = TP("spendstream.events", 0)


@pytest.mark.parametrize("stops", [False, True])
async def test_a_fetch_that_ends_while_the_worker_stops_does_not_keep_the_last_commit_from_being_made(
    stops: bool,
) -> None:
    """Faust seeks then, and would take the offset at which the partition goes on for one that is committed."""
    consumer: Any = object.__new__(transport.Consumer)
    consumer.app = SimpleNamespace(should_stop=stops)
    consumer._read_offset, consumer._committed_offset = {}, {EVENTS_0: None}

    async def seek_to_committed() -> dict[TP, int]:
        return {EVENTS_0: 200}

    consumer.seek_to_committed = seek_to_committed
    await consumer.perform_seek()
    assert consumer._committed_offset == {EVENTS_0: None if stops else 200}
