"""A log in memory behind the port to the log."""

import asyncio

from processor.core.events import message
from server.errors import Refused
from server.ingest.publisher import Done, Outcome, Parts, Publisher


class FakePublisher:
    """A log in memory: for unit tests, and the same contract suite as the real ones."""

    def __init__(self, partitions: int = 1, first: int = 0) -> None:
        """`first`: the offset of the first message in each partition."""
        self._first = first
        self.partitions = partitions
        self.identity = "fa4e"
        self.available = True
        self.messages: dict[int, list[bytes]] = {partition: [] for partition in range(partitions)}

    def submit(self, parts: Parts, size: int, done: Done) -> None:
        asyncio.get_running_loop().call_soon(lambda: done(self.write(parts)))

    def write(self, parts: Parts) -> Outcome:
        """What comes of parts that are written now."""
        if not self.available:
            return Refused("unavailable", "The log cannot take events now; send them again unchanged", retry_after=1)
        offsets = {}
        for partition, part in parts.items():
            self.messages[partition].append(message.encode([part]))
            offsets[partition] = self._first + len(self.messages[partition]) - 1
        return offsets


async def publish(publisher: Publisher, parts: Parts, size: int = 10) -> dict[int, int]:
    """Append, and wait for the offsets. Raises `Refused`."""
    durable: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    publisher.submit(parts, size, durable.set_result)
    outcome = await durable
    if isinstance(outcome, Refused):
        raise outcome
    return outcome
