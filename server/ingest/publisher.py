"""The port to the log: it takes blocks of events, and says when they are durable."""

from collections.abc import Callable, Mapping
from typing import Protocol

from processor.core.events.message import Block
from server.errors import Refused

Parts = Mapping[int, Block]
"""partition -> the events for it."""


Outcome = dict[int, int] | Refused
"""partition -> offset of each part, all of which are durable. Or `Refused`, as unavailable: some parts may be durable
all the same, so the same events have to be sent again, not others."""

Done = Callable[[Outcome], None]


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

    def submit(self, parts: Parts, size: int, done: Done) -> None:
        """Append, together with all else that this turn of the event loop brings; does not block.

        `done` is called once, in the loop, in a later turn. `size` is what the parts hold in bytes.
        Raises `NotPublished` if the log takes nothing now: then `done` is not called.
        """
        ...
