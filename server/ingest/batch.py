"""What intake takes and gives: a batch as it was sent, and its receipt."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from processor.core.events.codec import PayloadFormat
from processor.core.events.event import Handling
from processor.core.events.message import Body
from processor.core.events.prices.pricing import Sent
from processor.core.events.source import Api
from server.errors import Refused, Rejection
from server.tenancy.keys import Key


class Batch(Struct):
    """The events of one request as they were sent."""

    api: Api
    payload: PayloadFormat
    records: Sequence[bytes]
    lines: Sequence[int]
    """The number of each record in the request as sent, from 1, for `rejected`."""
    handling: Handling
    body: Body | None = None
    """What the records were cut from, if it was packed: the log keeps it as it came where it can."""
    digests: Sequence[int] | None = None
    """Of each record 64 bits for what a second copy may differ in, where the event's own digest has too much."""
    sent: Sequence[Sent | None] | None = None
    """What prices need of each record beside its columns, where that is known without reading it once more."""


class Receipt(Struct, frozen=True):
    """The result of a batch: `accepted` events are durable."""

    accepted: int
    rejected: tuple[Rejection, ...]
    position: str


class Arrived(Protocol):
    """A batch to take with others of the moment."""

    @property
    def key(self) -> Key:
        """Its sender's key, which has been authenticated."""
        ...

    @property
    def batch(self) -> Batch:
        """What was sent."""
        ...

    def done(self, outcome: Receipt | Refused, /) -> None:
        """Called once with what became of it, if it is taken. One receipt may be that of several batches."""
        ...


class Incoming(NamedTuple):
    """`Arrived`, with a function to call."""

    key: Key
    batch: Batch
    done: Callable[[Receipt | Refused], None]
