"""Before the HTTP API: of batches that arrive together a few come in in each turn of the event loop, the others wait.

An event loop looks at all that has arrived before the first of it is done. With thousands of batches before it, it
would read, parse and inflate every one of them, be seconds late for each, and refuse most in the end: the more is asked
of it, the less it does. Here they wait as bytes, and who has waited for `PATIENCE` is refused for hardly more than the
answer costs. docs/decisions/0027.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Final, Protocol

from server.errors import Refused
from server.http_api.fair_queue import FairQueue
from server.limits.memory_budget import MemoryBudget
from server.status import http_response

PER_TURN: Final = 32
"""Batches that come in in a turn of the event loop."""
REFUSED_PER_TURN: Final = 256
PATIENCE: Final = 1.0
"""Seconds that a batch waits at most."""
PAUSE: Final = 0.02
"""Seconds until the next look when no request may come in."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Of all that waits; beyond them the next one is refused at once."""

START: Final = b"POST /v1/ingest"
"""How a batch begins."""
MAX_HEAD: Final = 32 * 1024
"""Bytes of a request line and its headers."""
_LINE: Final = START + b" HTTP/1.1\r\n"
_KEY: Final = re.compile(rb"\r\nx-api-key:[ \t]*([!-~]*)", re.IGNORECASE)
LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*(?=\r\n)", re.IGNORECASE)
_PECULIAR: Final = re.compile(
    rb"\r\n(?:transfer-encoding|expect|upgrade|connection(?!:[ \t]*keep-alive[ \t]*\r\n))", re.IGNORECASE
)


def full() -> Refused:
    """Why a batch is refused that has waited too long."""
    return Refused("unavailable", "More batches arrive than can be taken; send it again", retry_after=1)


ANSWER: Final = http_response(full())
"""The response to a refused batch, as it is on the wire."""


class Waiting(Protocol):
    """A connection whose next request has begun to arrive, and is held."""

    @property
    def held(self) -> bytes | None:
        """What has arrived of it; None: it is gone."""
        ...

    def let_in(self) -> None:
        """Go on with the request."""
        ...

    def refuse(self) -> None:
        """Answer it: it is `full`."""
        ...


class Gate:
    """The turns of one event loop.

    `owner_of` names the organization of a key, `room` is what its batches wait in for the disk. `on_refused` counts a
    batch that is refused without a request being made of it; None: there is always one, for those who want to see each.
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
        """Whether a batch may come in at once; counts it."""
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)
        if self._let_in >= PER_TURN or self._waiting or self._room.is_anybody_short():
            return False
        self._let_in += 1
        return True

    def wait(self, waiting: Waiting) -> None:
        """Call it when its turn has come."""
        head = waiting.held
        if head is None or self._bytes > MAX_BYTES:
            waiting.refuse()
            return
        found = _KEY.search(head, 0, MAX_HEAD)
        owner = self._owner_of(found[1].decode("ascii")) if found else ""
        self._waiting.add(owner, waiting, asyncio.get_running_loop().time())

    def hold(self, size: int) -> None:
        """So many bytes more are held, or fewer."""
        self._bytes += size

    def _has_room(self, owner: str) -> bool:
        return not self._room.is_short(owner)

    def _turn(self) -> None:
        self._turning = False
        if not self._let_in and not self._waiting:
            return
        self._let_in = 0
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
    """True if these are all bytes of one usual request, after which the connection goes on.

    In doubt False: what it says decides only whether the HTTP parser has to see a request that is refused anyway.
    """
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0 or not data.startswith(_LINE):
        return False
    head = data[: end + 2]
    lengths = LENGTH.findall(head)
    if len(lengths) != 1 or len(data) != end + 4 + int(lengths[0]):
        return False
    return _PECULIAR.search(head) is None and head.count(b"\n") == head.count(b"\r\n")
