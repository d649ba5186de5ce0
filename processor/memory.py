"""The memory that a container or service leaves to the program, what the roles need at least, and what is given back.

Where there is less the kernel kills a process without a word, often while it is still starting.
"""

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20

NEEDED: Final = {"worker": 128 * MIB, "store": 128 * MIB, "api": 128 * MIB, "serve": 256 * MIB}
"""Bytes that a role takes with empty tables, and some room. `serve` is the supervisor, one API and the worker."""

EVENT_STORE: Final = 384 * MIB
"""Bytes that the store and the query process take beside them, before the first question."""

_UNLIMITED: Final = 1 << 60
"""What version 1 says where there is no limit is about 2^63."""


def too_low(role: str, processes: int = 1, limit: int | None = None, *, has_store: bool = False) -> str | None:
    """Why the memory is too low for a role with so many API processes to work; None: it is not.

    `limit` is that of this process's control group, in bytes, unless it is given. `has_store`: of `serve`, that it
    starts the event store and its query process, too.
    """
    found = cgroup_limit() if limit is None else limit
    needed = NEEDED[role] + (processes - 1) * NEEDED["api"] + (EVENT_STORE if has_store else 0)
    if found is None or found >= needed:
        return None
    return (
        f"the memory limit of this container or service is {found // MIB} MiB, and {role} needs {needed // MIB} MiB "
        "with empty tables: it will be killed without another word. Raise the limit"
        f"{', or set SPENDSTREAM_EVENT_STORE=off' if has_store else ''} (docs/operations.md, Memory)"
    )


def cgroup_limit(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The lowest memory limit of this process's control group and those above it, in bytes; None: there is none.

    Reads both versions (https://docs.kernel.org/admin-guide/cgroup-v2.html, memory.max; cgroup-v1/memory.rst).
    """
    return min(_limits(cgroups, own), default=None)


def _limits(cgroups: Path, own: Path) -> Iterator[int]:
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not on this system
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if not kinds:
            root, name = cgroups, "memory.max"
        elif "memory" in kinds.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be that of the host, of which only the container's own group is to be seen.
        group = root / path.lstrip("/")
        for each in (group, *group.parents):
            try:
                limit = int((each / name).read_text())
            except (OSError, ValueError):  # "max", or no such file
                limit = _UNLIMITED
            if limit < _UNLIMITED:
                yield limit
            if each == root:
                break


BURST: Final = 16 * MIB
"""Bytes of work after which what it leaves free is worth giving back."""
QUIET: Final = 1.0
"""Seconds without work after which it is given back."""


def can_trim() -> bool:
    """Return whether `trim` does anything: musl and other systems have no malloc_trim(3)."""
    return sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim")


def trim() -> None:
    """Give memory back to the system that is free within this process, of all threads, where the C library can."""
    if can_trim():
        ctypes.CDLL(None).malloc_trim(0)


class Trimming:
    """Trims once a burst of work is over: it may leave 50 MiB that the C library keeps. Not while there is work, which
    would ask for the same memory again, and would wait the 5 ms that it takes. For one thread."""

    def __init__(self, give_back: Callable[[], None] = trim, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._give_back = give_back
        self._monotonic = monotonic
        self._size = 0
        """Bytes of work since the last time."""
        self._since = 0.0
        """When the last work came."""

    def worked(self, size: int) -> None:
        """There was work of so many bytes."""
        self._size += size
        self._since = self._monotonic()

    def rested(self) -> None:
        """There was none. To be called again and again."""
        if self._size >= BURST and self._monotonic() - self._since >= QUIET:
            self._size = 0
            self._give_back()
