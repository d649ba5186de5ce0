"""Ports for servers that are started again at the address of their first start.

They lie below the range from which systems take the ports of outgoing connections and of port 0: while a server is down
its port would be given to the next client or server of another test. Each process of pytest-xdist has its own share of
them and goes round it, so that a port comes back only after all others of its share.
"""

import itertools
import os
import random
from collections.abc import Iterator
from typing import Final

from tools.kafka import is_free

RANGE: Final = range(10_000, 20_000)
SHARES: Final = 8


def _share() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % SHARES
    ports = RANGE[worker::SHARES]
    start = random.randrange(len(ports))  # two runs at once do not go the same way
    return itertools.cycle([*ports[start:], *ports[:start]])


_PORTS: Final = _share()


def next_bind() -> str:
    """Return an address of this machine with a port that no process listens on."""
    return next(f"127.0.0.1:{port}" for port in _PORTS if is_free(port))
