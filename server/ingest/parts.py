"""A large request in parts: its one reservation in the quota, and what of it waits for the disk."""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from processor.core.events.columns import Rows
from processor.core.events.message import Block
from server.errors import Refused, Rejection
from server.ingest.publisher import Done, Outcome
from server.limits.memory_budget import Hold
from server.limits.quota_port import Reservation

MAX_PART: Final = 1000
"""Most events of a part: those of a message of the log."""
MAX_WAITING: Final = 16 * 1024 * 1024
"""Bytes of one request's parts that wait for the disk at once."""


class SharedReservation:
    """A reservation for all parts of a request, ended once, when the last of them has ended and no other comes.

    To use with `with`, whose end says that no other comes.
    """

    def __init__(self, whole: Reservation) -> None:
        self._whole = whole
        self._open = 1
        self._offsets: dict[int, int] = {}
        self._is_in_doubt = False

    def part(self) -> "PartReservation":
        """The reservation of one more part."""
        self._open += 1
        return PartReservation(self)

    def end_part(self, offsets: Mapping[int, int], *, is_in_doubt: bool = False) -> None:
        """A part is durable at `offsets`, none for one that is not written, or it may be."""
        for partition, offset in offsets.items():
            self._offsets[partition] = max(offset, self._offsets.get(partition, offset))
        self._is_in_doubt |= is_in_doubt
        self._open -= 1
        if self._open:
            return
        if self._is_in_doubt:
            self._whole.doubt()
        elif self._offsets:
            self._whole.settle(self._offsets)
        else:
            self._whole.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_part({})


class PartReservation:
    """What a part has of it; a `Reservation`."""

    def __init__(self, whole: SharedReservation) -> None:
        self._whole = whole

    def settle(self, offsets: dict[int, int]) -> None:
        """See `Reservation`."""
        self._whole.end_part(offsets)

    def release(self) -> None:
        """See `Reservation`."""
        self._whole.end_part({})

    def doubt(self) -> None:
        """See `Reservation`."""
        self._whole.end_part({}, is_in_doubt=True)


class PartsOfRequest:
    """The parts of one request on their way to the disk."""

    def __init__(self) -> None:
        self.offsets: dict[int, int] = {}
        """Partition -> the last message with events of the request."""
        self.events: dict[int, int] = {}
        """Partition -> events that are durable."""
        self.rows: list[Rows] = []
        """The same events' rows."""
        self.rejected: list[Rejection] = []
        self._waiting = 0
        self._under_way = 0
        self._refused: Refused | None = None
        self._changed = asyncio.Event()

    def done_of(self, blocks: Mapping[int, Block], size: int, hold: Hold) -> Done:
        """What to call with the outcome of a part that is about to be submitted."""

        def done(outcome: Outcome) -> None:
            hold.close()
            self._under_way -= 1
            self._waiting -= size
            if isinstance(outcome, Refused):
                self._refused = outcome
            else:
                for partition, offset in outcome.items():
                    self.offsets[partition] = max(offset, self.offsets.get(partition, offset))
                    self.events[partition] = self.events.get(partition, 0) + len(blocks[partition])
                    self.rows.append(blocks[partition].rows)
            self._changed.set()

        return done

    def began(self, size: int) -> None:
        """A part has been submitted; its outcome comes in a later turn of the loop."""
        self._under_way += 1
        self._waiting += size

    @property
    def is_under_way(self) -> bool:
        """Whether any part waits for the disk."""
        return self._under_way > 0

    async def wait_for_room(self, size: int) -> None:
        """Wait until `size` more bytes may wait for the disk. Raises `Refused` once any part is."""
        while self._waiting and self._waiting + size > MAX_WAITING:
            await self.wait_for_one()
        self._check()

    async def wait_for_one(self) -> None:
        """Wait until a part has an outcome."""
        self._changed.clear()
        await self._changed.wait()

    async def wait_for_all(self) -> None:
        """Wait until every part has an outcome. Raises `Refused` if any was refused."""
        while self._under_way:
            await self.wait_for_one()
        self._check()

    def _check(self) -> None:
        if self._refused is not None:
            raise self._refused
