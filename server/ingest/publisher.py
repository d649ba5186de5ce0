"""The port to the log: take blocks, answer when they are durable. `FakePublisher` is for unit tests."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from processor.core.events import message
from processor.core.events.message import Block
from server.errors import Refused

Parts = Mapping[int, tuple[Block, Sequence[bytes]]]
"""partition -> a request's block there and its events' original bytes."""


class NotPublished(Refused):
    """Nothing of a batch is in the log, nor ever will be."""

    def __init__(self, message: str) -> None:
        super().__init__("unavailable", message, retry_after=1)


class Publisher(Protocol):
    """Appends blocks of events to the log."""

    @property
    def partitions(self) -> int:
        """How many partitions the events topic has."""
        ...

    @property
    def identity(self) -> str:
        """The log's name in position tokens (hex)."""
        ...

    async def publish(self, parts: Parts, size: int) -> dict[int, int]:
        """Append; returns partition -> offset once every part is durable. `size` is what the parts hold in bytes.

        Raises `Refused("unavailable")` if the log cannot take them now; some parts may be durable all the same, so
        the same events must be sent again, not others. As `NotPublished` if it is known that none is or will be.
        """
        ...


class FakePublisher:
    """A log in memory: for unit tests, and the same contract suite as the real ones."""

    def __init__(self, partitions: int = 1, first: int = 0) -> None:
        """`first`: the offset of the first message in each partition."""
        self._first = first
        self.partitions = partitions
        self.identity = "fa4e"
        self.available = True
        self.messages: dict[int, list[bytes]] = {partition: [] for partition in range(partitions)}

    async def publish(self, parts: Parts, size: int) -> dict[int, int]:
        if not self.available:
            raise Refused("unavailable", "The log cannot take events now; send them again unchanged", retry_after=1)
        offsets = {}
        for partition, part in parts.items():
            self.messages[partition].append(message.encode([part]))
            offsets[partition] = self._first + len(self.messages[partition]) - 1
        return offsets
