"""How processes that compute beside ingest leave the cores to it.

A lower priority alone does not: Linux lets what runs go on for its slice of some milliseconds, also when a process of a
higher one wakes (EEVDF, `RUN_TO_PARITY`). An acknowledgement wakes several threads one after the other, and waited for
each. From Linux 6.12 on a thread that wakes interrupts one whose slice is longer than its own (`PREEMPT_SHORT`), so
these processes ask for long slices; where the system does not know them, the priority is all.
"""

import ctypes
import os
import platform
import sys
from typing import Final

SLICE: Final = 100_000_000
"""Nanoseconds; the most that Linux grants."""

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
