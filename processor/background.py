"""How processes that compute beside ingest leave the cores to it.

A lower priority alone does not: Linux lets what runs go on for its slice of some milliseconds, also when a process of a
higher one wakes (EEVDF, `RUN_TO_PARITY`). An acknowledgement wakes several threads one after the other, and waited for
each. From Linux 6.12 on a thread that wakes interrupts one whose slice is longer than its own (`PREEMPT_SHORT`), so
these processes ask for long slices; where the system does not know them, the priority is all.
"""

import asyncio
import ctypes
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

SLICE: Final = 100_000_000
"""Nanoseconds; the most that Linux grants."""

ROOM: Final = 0.45
"""Of one core: as much is idle while this process rests, at least, of a machine that is not full. A machine of two
cores that takes as many events as it can is idle for a seventh of the time, as it waits for the disk; at half of that
rate for a third."""

REST: Final = 1.0
"""How many times as long as it has worked this process rests while the machine is full."""

MOST_REST: Final = 2.0
LOOK: Final = 0.2
"""Seconds: a rest at most, and its part in which it is seen how much of the machine is idle."""

WEIGHT: Final = 0.3
"""That of the last look; the rest is that of those before it. A machine may be idle for an instant at any load."""

SPARED: Final = 8
"""Pieces of work after which it is seen again whether the machine is full, once it was not."""

_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""Machine -> number of the system call (sched_setattr(2)), for which Python and the C library have no function."""


class _Attributes(ctypes.Structure):
    """`struct sched_attr`, in its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def step_back(nice: int) -> bool:
    """Lower the priority of this process by `nice`, and let others that wake interrupt it.

    Call it before there are threads: those that begin later inherit it. Returns whether the system took the slice, too.
    """
    own = os.nice(nice)
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or not sys.platform.startswith("linux"):
        return False
    wanted = _Attributes(size=ctypes.sizeof(_Attributes), nice=own, runtime=SLICE)
    done: int = ctypes.CDLL(None).syscall(number, 0, ctypes.byref(wanted), 0)
    return done == 0


def cpu_ticks() -> tuple[int, int]:
    """Return for how many ticks of the system's clock all cores together have been, and for how many of these they were
    busy, also for other guests of the same hardware. Zeros where the system does not say (it is Linux that does)."""
    try:
        with Path("/proc/stat").open(encoding="ascii") as stat:
            ticks = [int(each) for each in stat.readline().split()[1:9]]  # see proc_stat(5): those of guests come after
    except (OSError, ValueError):
        return 0, 0
    return sum(ticks), sum(ticks) - sum(ticks[3:5])


class Yielding:
    """Work that rests while the machine is full: the lowest priority still takes what others leave for a moment, on
    hardware threads that may share a core with theirs. Whether it is full shows while this process rests."""

    def __init__(self, ticks: Callable[[], tuple[int, int]] = cpu_ticks, cores: int | None = None) -> None:
        self._ticks = ticks
        self._cores = cores or os.cpu_count() or 1
        self._spared = 0
        """Pieces of work that do without a rest."""
        self._idle: float | None = None
        """Cores, by the last looks."""

    async def rest(self, worked: float) -> None:
        """Rest for `REST` times as long as has been worked, at most `MOST_REST`. Where something is left of the machine
        go on after `LOOK`, and do not rest before `SPARED` more of such pieces."""
        if self._spared:
            self._spared -= 1
            return
        rest = min(REST * worked, MOST_REST)
        look = min(rest, LOOK)
        total, busy = self._ticks()
        await asyncio.sleep(look)
        total_then, busy_then = self._ticks()
        passed = total_then - total
        idle = self._cores * (passed - (busy_then - busy)) / passed if passed else ROOM
        self._idle = idle if self._idle is None else WEIGHT * idle + (1 - WEIGHT) * self._idle
        if self._idle >= ROOM:
            self._spared = SPARED
        else:
            await asyncio.sleep(rest - look)
