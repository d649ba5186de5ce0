"""Who may be answered now: lanes of questions, in each of which the projects take turns.

Everything here belongs to one event loop.
"""

import asyncio
import math
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from server.errors import Refused

RETRY_AFTER: Final = 2
"""Seconds after which a place may be free again."""


class Lane:
    """Runs some questions at a time; the others wait, and projects that have waiting ones take turns."""

    def __init__(self, slots: int, running: int, waiting: int) -> None:
        """`slots` questions run at once; of one project `running`, while `waiting` may wait."""
        self._slots = slots
        self._running = running
        self._waiting = waiting
        self._now: Counter[str] = Counter()
        """Project -> its questions that run."""
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """Projects with waiting questions; whose turn is next comes first."""

    @property
    def running(self) -> int:
        """How many questions run."""
        return self._now.total()

    @asynccontextmanager
    async def turn(self, project: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it for the length of the block. Raises `Refused` (queries_busy)."""
        await self._enter(project)
        try:
            yield
        finally:
            self._end(project)

    async def _enter(self, project: str) -> None:
        queue = self._queues.get(project)
        if queue is not None and len(queue) >= self._waiting:
            raise busy(f"{self._waiting} questions of the project are waiting already; ask again when one is answered")
        future = asyncio.get_running_loop().create_future()
        self._queues.setdefault(project, deque()).append(future)
        self._admit()
        try:
            await future
        except asyncio.CancelledError:
            self._give_up(project, future)
            raise

    def _give_up(self, project: str, future: "asyncio.Future[None]") -> None:
        if future.done() and not future.cancelled():  # its turn came at the same moment
            self._end(project)
        else:
            self._leave(project, future)

    def _end(self, project: str) -> None:
        """One of a project's questions has ended: its slot is free."""
        self._now[project] -= 1
        if not self._now[project]:
            del self._now[project]
        self._admit()

    def _leave(self, project: str, future: "asyncio.Future[None]") -> None:
        queue = self._queues.get(project)
        if queue is not None and future in queue:
            queue.remove(future)
            if not queue:
                del self._queues[project]

    def _admit(self) -> None:
        """Give free slots to the projects in turn."""
        for project in [*self._queues]:
            if self._now.total() >= self._slots:
                return
            if self._now[project] >= self._running:
                continue
            queue = self._queues.pop(project)
            while queue and queue[0].done():  # given up in this turn of the loop: `_give_up` comes later
                queue.popleft()
            if queue:
                queue.popleft().set_result(None)
                self._now[project] += 1
            if queue:
                self._queues[project] = queue  # behind the others


class Places(Lane):
    """A lane of downloads, which last as long as their clients read. Each has its place for `share` seconds, and longer
    while no other project waits for one; a project has one place.

    Others wait for `patience` seconds, and are then told when a place is free at the latest.
    """

    def __init__(self, slots: int, share: float, patience: float) -> None:
        super().__init__(slots, 1, 1)
        self._share = share
        self._patience = patience
        self._held: dict[asyncio.Timeout, float] = {}
        """What ends a download -> when its place is due (seconds of the loop); the earliest comes first."""

    @asynccontextmanager
    async def turn(self, project: str) -> AsyncIterator[None]:
        """See `Lane.turn`; also raises `Refused` in the block, where its place goes to another project."""
        if self._now[project] or project in self._queues:
            raise busy("A download of the project runs or waits already; ask again when it has ended")
        try:
            async with asyncio.timeout(self._patience):
                await self._enter(project)
        except TimeoutError:
            raise self._taken() from None
        ending = asyncio.timeout(None)
        try:
            async with ending:
                self._held[ending] = asyncio.get_running_loop().time() + self._share
                self._remind()
                yield
        except TimeoutError:
            if not ending.expired():
                raise
            raise busy(
                f"The download had its place for {self._share:.0f} s, and one of another project waits for it: "
                "download a shorter period at a time"
            ) from None
        finally:
            self._held.pop(ending, None)
            self._end(project)

    def _admit(self) -> None:
        super()._admit()
        self._remind()

    def _leave(self, project: str, future: "asyncio.Future[None]") -> None:
        super()._leave(project, future)
        self._remind()

    def _remind(self) -> None:
        """Let as many downloads end as others wait, those that are due first, as soon as they are."""
        waiting = sum(map(len, self._queues.values()))
        for number, (ending, due) in enumerate(self._held.items()):
            if not ending.expired():
                ending.reschedule(due if number < waiting else None)

    def _taken(self) -> Refused:
        due = min(self._held.values(), default=0.0)
        seconds = max(math.ceil(due - asyncio.get_running_loop().time()), RETRY_AFTER)
        return busy(
            f"As many downloads of other projects run as may; one of them ends in {seconds} s at the latest: "
            "ask again then",
            seconds,
        )


def busy(message: str, retry_after: int = RETRY_AFTER) -> Refused:
    """Return the refusal of a question for which there is no place."""
    return Refused("queries_busy", message, retry_after=retry_after)
