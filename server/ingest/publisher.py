"""The port to the log: take blocks, answer when they are durable."""

from collections.abc import Callable, Mapping
from typing import Protocol

from processor.core.events.message import Block
from server.errors import Refused

Parts = Mapping[int, Block]
"""partition -> the events for it."""


Late = Callable[[dict[int, int] | None], None]
"""What is told of parts whose publisher was cancelled: see `Publisher.publish`."""


def ignore(_: dict[int, int] | None) -> None:
    """A `Late` that does nothing."""


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

    async def publish(self, parts: Parts, size: int, late: Late = ignore) -> dict[int, int]:
        """Append; returns partition -> offset once every part is durable. `size` is what the parts hold in bytes.

        A caller that is cancelled is told by `late`, in the loop, what became of the parts it left behind: their
        offsets, or None if some of them may be or become durable.

        Raises `Refused("unavailable")` if the log cannot take them now; some parts may be durable all the same, so
        the same events must be sent again, not others. As `NotPublished` if it is known that none is or will be.
        """
        ...
