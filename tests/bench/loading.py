"""What both load generators have in common: they read all requests first, say so, and start at a word."""

import gc
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import uvloop
from msgspec import Struct, field

from tests.bench.corpus import read_bodies


class Order(Struct):
    """What a load generator is to do."""

    port: int
    key: str
    bodies: str
    """File of the request bodies."""
    lanes: int
    """Connections or streams."""
    depth: int
    """Requests on their way at once in each of them."""
    rate: float | None = None
    """Requests a second, evenly; None: as fast as they are answered."""
    watchers: int = 0
    """HTTP only: connections that ask, after an acknowledgement, until the tables contain that batch."""
    encoding: str = "gzip"
    remember: bool = False
    """HTTP only: whether to tell which requests were taken."""


class Outcome(Struct):
    """What came of it."""

    began: float = 0.0
    """`time.monotonic` when the first byte was sent."""
    ended: float = 0.0
    """When the last answer was there."""
    last_sent: float = 0.0
    """When the last request was sent; `load_fresh` only."""
    requests: int = 0
    accepted: int = 0
    refused: int = 0
    busy: int = 0
    """Of the refused ones: 503 with Retry-After."""
    taken: list[int] = field(default_factory=list)
    """Numbers of the requests that were accepted, if they were to be remembered."""
    position: str = ""
    """Of the last answer."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from when a request was due until its answer, in the order of the answers; `load_fresh`: if taken."""
    refusals: list[float] = field(default_factory=list)
    """The same of the refused ones; `load_fresh` only."""
    late: list[float] = field(default_factory=list)
    """Seconds from when a request was due until it was sent, at a rate; `load_fresh` only."""
    visible: list[float] = field(default_factory=list)
    """Seconds from an acknowledgement until a read contained the batch."""
    cpu: float = 0.0
    """Seconds of CPU of the load generator meanwhile."""


def main(load: Callable[[Order, list[bytes]], Callable[[], Awaitable[Outcome]]]) -> None:
    """The program: the order as its argument, a ready line, a line to start it, the outcome as a line."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    start = load(order, read_bodies(Path(order.bodies)))
    gc.freeze()
    gc.disable()
    print('{"event":"ready"}', flush=True)
    sys.stdin.readline()
    before = cpu_seconds()
    outcome = uvloop.run(_run(start))
    outcome.cpu = cpu_seconds() - before
    say(msgspec.json.encode(outcome))
    sys.stdin.readline()  # whoever measures reads our CPU time before we go


def say(line: bytes) -> None:
    """Write a line to standard output, all of it."""
    left = memoryview(line + b"\n")
    while left:  # `print` loses what a full pipe does not take at once, if Python does not buffer
        left = left[os.write(sys.stdout.fileno(), left) :]


async def _run(start: Callable[[], Awaitable[Outcome]]) -> Outcome:
    return await start()


def cpu_seconds() -> float:
    """CPU time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def now() -> float:
    """The clock that all processes of this machine share."""
    return time.monotonic()
