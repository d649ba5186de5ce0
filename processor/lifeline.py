"""A child's tie to its supervisor: when the supervisor is gone, however it went, the child ends at once.

On Linux the kernel does it (PR_SET_PDEATHSIG), from the moment of the fork on, imports and long calls included.
Elsewhere a thread does: the supervisor holds the write end of a pipe and never writes; the kernel closes it with the
process.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

VARIABLE: Final = "SPENDSTREAM_LIFELINE_FD"
EXIT_ORPHANED: Final = 71


PR_SET_PDEATHSIG: Final = 1


def tie() -> Callable[[], None] | None:
    """What the supervisor has its child do between fork and exec; None where the kernel cannot do it.

    Everything that could fail or take a lock is done before the fork.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl: Any = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was gone already
            os._exit(EXIT_ORPHANED)

    return bind


def watch() -> bool:
    """Watch the pipe named in the environment; False if there is none, and so no supervisor."""
    named = os.environ.pop(VARIABLE, None)
    if named is not None:
        threading.Thread(target=_wait, args=(int(named),), name="lifeline", daemon=True).start()
    return named is not None


def _wait(fd: int) -> None:
    while os.read(fd, 1):
        pass
    os._exit(EXIT_ORPHANED)  # nothing to save: what was acknowledged is durable
