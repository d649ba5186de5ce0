"""The gate before the HTTP API: it admits a few batches in each turn of the event loop; the others wait as bytes.

An event loop handles all sockets that are readable before the first request is done. With thousands of batches it would
read, parse and inflate every one, be seconds late for each, and refuse most in the end: throughput would fall under
load. Behind the gate they wait unparsed, and a batch that has waited for `PATIENCE` is refused at hardly more than the
cost of the answer. docs/decisions/0027.

They wait in a fair queue (Nagle, RFC 970): organizations take turns, of each the oldest request is next. So one with a
thousand waiting requests gets as many turns as one with a single request.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from server.errors import Refused
from server.limits.memory_budget import MemoryBudget
from server.status import http_response

T = TypeVar("T")


class FairQueue(Generic[T]):
    """The waiting items of several owners. Moments are of any monotonic clock."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[tuple[float, T]]] = {}
        """Owner -> (arrival, item), oldest first. The owner whose turn is next comes first."""
        self._arrivals: deque[tuple[float, str]] = deque()
        """(arrival, owner) over all owners in order, including items that are gone by now."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, owner: str, item: T, now: float) -> None:
        """Put an item behind the others of its owner."""
        if not self._count:
            self._arrivals.clear()  # those are of items that are gone
        self._count += 1
        self._queues.setdefault(owner, deque()).append((now, item))
        self._arrivals.append((now, owner))

    def admit(self, number: int, may_go: Callable[[str], bool], late: float) -> Iterator[T]:
        """Remove and return at most `number` next items, one of each owner that may go now: its oldest item, or its
        newest if it has items from before the moment `late`."""
        passed = 0
        while number and passed < len(self._queues):
            owner = next(iter(self._queues))
            queue = self._queues.pop(owner)
            if not may_go(owner):
                self._queues[owner] = queue
                passed += 1
                continue
            passed = 0
            number -= 1
            self._count -= 1
            _, item = queue.pop() if queue[0][0] < late else queue.popleft()
            if queue:
                self._queues[owner] = queue
            yield item

    def give_up(self, number: int, before: float) -> Iterator[T]:
        """Remove and return at most `number` items that came before a moment, the oldest first."""
        while number and self._arrivals and self._arrivals[0][0] < before:
            came, owner = self._arrivals.popleft()
            queue = self._queues.get(owner)
            if queue is None or queue[0][0] > came:
                continue  # the item has been removed already
            number -= 1
            self._count -= 1
            _, item = queue.popleft()
            if not queue:
                del self._queues[owner]
            yield item


PER_TURN: Final = 32
"""Batches that are admitted in one turn of the event loop."""
REFUSED_PER_TURN: Final = 256
PATIENCE: Final = 1.0
"""Most seconds that a batch waits."""
PAUSE: Final = 0.02
"""Seconds until the next try when no batch can be admitted."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Most bytes of all that waits; beyond them the next batch is refused at once."""

BATCH: Final = b"POST /v1/ingest"
"""How a batch of events begins."""
STARTS: Final = (BATCH, b"POST /v1/traces")
"""How batches begin: of events, of spans."""
MAX_HEAD: Final = 32 * 1024
"""Most bytes of a request line and its headers."""
_LINE: Final = BATCH + b" HTTP/1.1\r\n"
_KEY: Final = re.compile(rb"\r\n(?:x-api-key:|authorization:[ \t]*bearer[ \t])[ \t]*([!-~]*)", re.IGNORECASE)
LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*(?=\r\n)", re.IGNORECASE)
_PECULIAR: Final = re.compile(
    rb"\r\n(?:transfer-encoding|expect|upgrade|connection(?!:[ \t]*(?:keep-alive)?[ \t]*\r\n))", re.IGNORECASE
)


def full() -> Refused:
    """Return the refusal of a batch that has waited too long."""
    return Refused(
        "unavailable", "More batches arrive than can be accepted; retry the request unchanged", retry_after=1
    )


ANSWER: Final = http_response(full())
"""The response to a refused batch, in bytes."""


class Waiting(Protocol):
    """A connection whose next request has begun to arrive and is held back."""

    @property
    def held(self) -> bytes | None:
        """The bytes of the request so far; None: the connection is gone."""
        ...

    def let_in(self) -> None:
        """Continue with the request."""
        ...

    def refuse(self) -> None:
        """Answer the request with `full`."""
        ...


class Gate:
    """The gate of one event loop.

    `owner_of` returns the organization of a key; `room` is the memory in which its batches wait for the disk.
    `on_refused` counts a batch that is refused without being parsed; None: each is parsed, to be logged or traced.
    """

    def __init__(
        self,
        owner_of: Callable[[str], str],
        room: MemoryBudget,
        on_refused: Callable[[Refused], None] | None = None,
    ) -> None:
        self.on_refused = on_refused
        self._owner_of = owner_of
        self._room = room
        self._waiting: FairQueue[Waiting] = FairQueue()
        self._bytes = 0
        self._let_in = 0
        self._turning = False

    def lets_in(self) -> bool:
        """Return whether a batch is admitted at once, and count it then."""
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)
        if self._let_in >= PER_TURN or self._waiting or self._room.is_anybody_short():
            return False
        self._let_in += 1
        return True

    def wait(self, waiting: Waiting) -> None:
        """Queue a connection; it is called back when its turn has come."""
        head = waiting.held
        if head is None or self._bytes > MAX_BYTES:
            waiting.refuse()
            return
        found = _KEY.search(head, 0, MAX_HEAD)
        owner = self._owner_of(found[1].decode("ascii")) if found else ""
        self._waiting.add(owner, waiting, asyncio.get_running_loop().time())

    def hold(self, size: int) -> None:
        """Count `size` more bytes as held; negative: fewer."""
        self._bytes += size

    def _has_room(self, owner: str) -> bool:
        return not self._room.is_short(owner)

    def _turn(self) -> None:
        self._turning = False
        self._let_in = 0
        if self._waiting:
            self._admit_waiting()

    def _admit_waiting(self) -> None:
        """Refuse what has waited too long, and admit the next ones."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for waiting in self._waiting.give_up(REFUSED_PER_TURN, now - PATIENCE):
            if waiting.held is not None:
                waiting.refuse()
        for waiting in self._waiting.admit(PER_TURN, self._has_room, now - PATIENCE / 2):
            if waiting.held is not None:
                self._let_in += 1
                waiting.let_in()
        if self._let_in:
            self._turning = True
            loop.call_soon(self._turn)
        elif self._waiting:
            self._turning = True
            loop.call_later(PAUSE, self._turn)


def is_whole(data: bytes) -> bool:
    """Return True if these are exactly the bytes of one request, after which the connection stays usable.

    False if in doubt: the HTTP parser then has to see the request, which is refused anyway.
    """
    return end_of_first(data) == len(data)


def end_of_first(data: bytes) -> int | None:
    """Return where the batch ends that is first in `data`, which may be behind the end of that; None: in doubt."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0 or not data.startswith(_LINE):
        return None
    head = data[: end + 2]
    lengths = LENGTH.findall(head)
    if len(lengths) != 1 or _PECULIAR.search(head) is not None or head.count(b"\n") != head.count(b"\r\n"):
        return None
    return end + 4 + int(lengths[0])
