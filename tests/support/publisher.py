"""A log in memory behind the port to the log."""

from processor.core.events import message
from server.errors import Refused
from server.ingest.publisher import Late, Parts, ignore


class FakePublisher:
    """A log in memory: for unit tests, and the same contract suite as the real ones."""

    def __init__(self, partitions: int = 1, first: int = 0) -> None:
        """`first`: the offset of the first message in each partition."""
        self._first = first
        self.partitions = partitions
        self.identity = "fa4e"
        self.available = True
        self.messages: dict[int, list[bytes]] = {partition: [] for partition in range(partitions)}

    async def publish(self, parts: Parts, size: int, late: Late = ignore) -> dict[int, int]:
        if not self.available:
            raise Refused("unavailable", "The log cannot take events now; send them again unchanged", retry_after=1)
        offsets = {}
        for partition, part in parts.items():
            self.messages[partition].append(message.encode([part]))
            offsets[partition] = self._first + len(self.messages[partition]) - 1
        return offsets
