"""The port to the log: append blocks of events, and return when they are durable."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from processor.core.events.message import Block
from server.errors import Refused

Parts = Mapping[int, tuple[Block, Sequence[bytes]]]
"""partition -> a request's block of events there, and their original bytes."""


Late = Callable[[dict[int, int] | None], None]
"""Called with the outcome of parts whose publisher was cancelled: see `Publisher.publish`."""


def ignore(_: dict[int, int] | None) -> None:
    """A `Late` that does nothing."""


class NotPublished(Refused):
    """Nothing of a batch is in the log, or ever will be."""

    def __init__(self, message: str) -> None:
        super().__init__("unavailable", message, retry_after=1)


class Publisher(Protocol):
    """Appends blocks of events to the log."""

    @property
    def partitions(self) -> int:
        """The number of partitions of the events topic."""
        ...

    @property
    def identity(self) -> str:
        """The log's name in position tokens (hex)."""
        ...

    async def publish(self, parts: Parts, size: int, late: Late = ignore) -> dict[int, int]:
        """Append the parts, of `size` bytes; return partition -> offset once every part is durable.

        If the caller is cancelled, `late` is called in the event loop with the outcome: the offsets, or None if some of
        the parts may be or become durable.

        Raises `Refused("unavailable")` if the log cannot store them now. Some parts may be durable nevertheless, so the
        client must retry with the same events. Raises `NotPublished` if it is known that none is or will be.
        """
        ...
