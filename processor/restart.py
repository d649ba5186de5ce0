"""A worker or store without a supervisor begins anew by itself where it would end with exit code 70.

What it has in memory then is not to be used any more: another process owns its partitions, or its rows may be wrong. To
replace the program in the process (exec) is as good as its end, and needs no service manager. One that is killed, or
killed for its memory, is still for a service manager to start.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

from processor.structured_log import get_logger

VARIABLE: Final = "SPENDSTREAM_WORKER_LIVES"
"""`restarts:seconds of the pause`: what one life leaves to the next."""

FIRST_PAUSE: Final = 0.1
MAX_PAUSE: Final = 5.0
STABLE: Final = 20.0
"""Seconds after which a life counts as sound, and the pauses begin anew."""

_began: list[tuple[float, str]] = []
"""When this life began and what runs the next one, if it is to be followed by another one."""


def arm(module: str = "processor") -> None:
    """From here on `end` begins anew, with this module."""
    _began[:] = [(time.monotonic(), module)]


def end(code: int) -> NoReturn:
    """End the process at once with this exit code, or begin anew. Nothing in memory is saved. From any thread."""
    if _began:
        began, module = _began[0]
        lived = time.monotonic() - began
        restarts = 1 if lived > STABLE else _restarts() + 1
        pause = min(FIRST_PAUSE * 2 ** (restarts - 1), MAX_PAUSE)
        get_logger().error("worker.restarting", code=code, restart_in=pause)
        os.environ[VARIABLE] = f"{restarts}:{pause}"
        try:
            _close_on_exec()
            os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606 - itself
        except OSError as error:
            get_logger().critical("worker.cannot_restart", error=str(error))
    os._exit(code)


def pause() -> bool:
    """The pause between two lives; True if there was one before. SIGTERM ends it, and the process with exit code 0."""
    _, _, seconds = os.environ.get(VARIABLE, "").partition(":")
    if not seconds:
        return False
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: sys.exit(0))
    time.sleep(float(seconds))
    return True


def _restarts() -> int:
    return int(os.environ.get(VARIABLE, "0").partition(":")[0])


def _close_on_exec() -> None:
    """Files, sockets and locks are not to outlive the program, whatever opened them."""
    for found in Path("/dev/fd").iterdir():
        fd = int(found.name)
        if fd > 2:
            with contextlib.suppress(OSError):  # it was closed meanwhile, as that of the listing itself
                os.set_inheritable(fd, False)
